"""A moving average of the trained weights, float32; every rank keeps that of its own shards.

    average <- decay * average + (1 - decay) * weight        after each optimiser step

It begins as the weights that training begins with, so it needs no correction for a start at zero.
To be read or written whole, the averages are swapped with the optimiser's weights for a while.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from actrep_ray.learner.saving import Snapshot
from actrep_ray.learner.shares import Shares
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.models.tensor_files import TensorFiles, are_there

_STEM = "ema"
_log = logging.getLogger(__name__)


class Ema:
    """The average of what a strategy trains.

    Args:
        strategy: Holds this rank's shards of the weights.
        decay: Fraction of the old average that an optimiser step keeps, above 0 and below 1.
    """

    def __init__(self, strategy: Strategy, decay: float) -> None:
        self._strategy = strategy
        self._decay = decay
        self.restart()

    def restart(self) -> None:
        """Begin again with the present weights."""
        self._averages = [shard.clone() for shard in self._strategy.local_shards()]

    def update(self) -> None:
        """Take the weights that an optimiser step has left into the average."""
        for average, shard in self._pairs():
            average.lerp_(shard, 1.0 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """`Strategy.whole_master` gives averages for a while, and writing a master writes one.

        Nothing may be computed with the model meanwhile.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def snapshot(self, model: nn.Module, shares: Shares) -> Snapshot:
        """Copy this rank's share of the whole averages, by the model's names."""
        whole = ((name, self._strategy.whole_master(p)) for name, p in _trained(model))
        with self.in_place():
            kept = dict(shares.kept(whole, torch.float32))
        return shares.snapshot(_STEM, kept)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Go on from what `snapshot` gave, under any strategy and number of ranks.

        A state without averages is one that was trained without them: they begin now.

        Raises:
            ValueError: if the file belongs to another model.
        """
        self.restart()
        path = folder / f"{_STEM}.safetensors"
        if not are_there(folder, _STEM):
            _log.warning("%s: no such file; the moving average begins with these weights", path)
            return
        parameters, saved = dict(_trained(model)), TensorFiles(folder, _STEM)
        if saved.names != parameters.keys():
            other = min(saved.names ^ parameters.keys())
            raise ValueError(f"{path}: {other!r} is not in both this file and what is trained")
        with self.in_place():
            for name, parameter in parameters.items():
                self._strategy.write_master(parameter, saved.get(name))

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self._averages, self._strategy.local_shards(), strict=True)

    def _swap(self) -> None:
        for average, shard in self._pairs():
            weight = shard.clone()
            shard.copy_(average)
            average.copy_(weight)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
