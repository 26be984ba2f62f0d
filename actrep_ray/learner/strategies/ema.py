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
from safetensors import safe_open
from torch import nn

from actrep_ray.learner.saving import Snapshot
from actrep_ray.learner.strategies.base import Strategy

_FILE = "ema.safetensors"
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

    def snapshot(self, model: nn.Module, *, is_writer: bool) -> Snapshot:
        """Copy the whole averages by the model's names. Every rank must take part."""
        whole: dict[str, torch.Tensor] = {}
        with self.in_place():
            for name, parameter in _trained(model):
                value = self._strategy.whole_master(parameter)
                if is_writer:
                    whole[name] = value.to("cpu", copy=True).contiguous()
        return Snapshot({_FILE: whole}) if is_writer else Snapshot()

    def load(self, folder: Path, model: nn.Module) -> None:
        """Go on from what `snapshot` gave, under any strategy and number of ranks.

        A state without averages is one that was trained without them: they begin now.

        Raises:
            ValueError: if the file belongs to another model.
        """
        self.restart()
        path = folder / _FILE
        if not path.is_file():
            _log.warning("%s: no such file; the moving average begins with these weights", path)
            return
        parameters = dict(_trained(model))
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != set(parameters):
                other = min(set(file.keys()) ^ set(parameters))
                raise ValueError(f"{path}: {other!r} is not in both this file and what is trained")
            with self.in_place():
                for name, parameter in parameters.items():
                    self._strategy.write_master(parameter, file.get_tensor(name))

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self._averages, self._strategy.local_shards(), strict=True)

    def _swap(self) -> None:
        for average, shard in self._pairs():
            weight = shard.clone()
            shard.copy_(average)
            average.copy_(weight)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
