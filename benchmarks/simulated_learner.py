"""A learner whose training is replaced by waiting; a module of its own, since it starts quickly."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from actrep_ray.records import LearnerRow
from actrep_ray.weights.buckets import pack_weights


@dataclass(frozen=True)
class Latency:
    """What an engine and a learner are like.

    Attributes:
        group_s: Mean seconds in which an engine finishes a group; they vary by a third.
        width: Groups that one engine works on at the same time.
        update_s: Seconds of a learner step.
        weights_mib: Size of the weights that are pushed.
    """

    group_s: float
    width: int
    update_s: float
    weights_mib: int


class SimulatedLearner:
    """Takes rows, waits, and holds weights."""

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        num = latency.weights_mib * 2**20 // 4 // 64
        self._weights = {f"layer{i}.norm.weight": torch.zeros(num) for i in range(64)}

    def update(self, rows: Sequence[LearnerRow]) -> int:
        """Waits `update_s`; returns the tokens that it was given."""
        time.sleep(self._latency.update_s)
        return sum(len(response) for row in rows for response in row.responses)

    def export(self) -> list["ray.ObjectRef"]:
        """The weights as a learner gives them away."""
        return [ray.put(bucket) for bucket in pack_weights(self._weights.items())]
