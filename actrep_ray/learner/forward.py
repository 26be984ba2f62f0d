"""Log-probabilities without training: of the policy, or of the reference policy."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from actrep_ray.learner.batch.loader import MicroBatchLoader
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.batch.rows import TokenValues, by_answer
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.models import lora
from actrep_ray.records import LearnerRow


class Forward(Protocol):
    """Runs a batch through the policy or its reference: log-probabilities and entropies."""

    def __call__(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Policy.forward`."""
        ...


class WithoutAdapters:
    """The policy without its adapters, which is the reference of LoRA; a `Forward`.

    Args:
        policy: With adapters.
        strategy: What splits it.
    """

    def __init__(self, policy: Policy, strategy: Strategy) -> None:
        self._model = policy.model
        self._strategy = strategy

    def __call__(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Policy.forward`."""
        with lora.adapters_off(self._model):
            return self._strategy.forward(
                batch, temperature=temperature, with_entropy_grad=with_entropy_grad
            )


@torch.no_grad()
def score_rows(
    loader: MicroBatchLoader,
    rows: Sequence[LearnerRow],
    minis: Iterable[Sequence[int]],
    forward: Forward,
    temperature: float,
) -> TokenValues:
    """Log-probabilities of this rank's answers, float32 [R_i] each. Every rank must take part.

    Args:
        loader: Makes micro-batches.
        rows: Of the whole batch.
        minis: Mini-batches: scored one by one, a rank scores the rows that it will train on.
        forward: The policy's or the reference's.
        temperature: Divides the logits.
    """
    values: TokenValues = {}
    for mini in minis:
        for micro in loader.load(rows, mini):
            log_probs, _ = forward(micro.batch, temperature=temperature)
            if micro.weight or any(key not in values for key in micro.batch.answers):
                values |= by_answer(micro.batch, log_probs)
    return values
