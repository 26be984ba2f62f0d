"""Carries the learners' weights to the rollout engines and proves that they arrived.

    LearnerPool ──export_weights_refs()──► object store (buckets) ──► every engine loads, verifies

What is proved at each push: that each tensor's checksum is the same before and after the transfer
(`unpack_weights`), that weights in use by the engine are those it was given (`verify_magnitudes`),
and that every engine reports the new version.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actrep_ray.learner.pool import LearnerPool
    from actrep_ray.rollout.pool import RolloutPool


class WeightSync:
    """Pushes weights from learners to engines.

    Args:
        learners: Where the weights are.
        rollouts: Where they go.
    """

    def __init__(self, learners: "LearnerPool", rollouts: "RolloutPool") -> None:
        self.learners = learners
        self.rollouts = rollouts

    def push(self, policy_version: int) -> dict[str, float]:
        """Give every engine the learners' current weights, stamped with a version.

        Returns:
            `sync/export_s`, `sync/load_s` (both wall clock) and `sync/policy_version`.

        Raises:
            RuntimeError: if a weight changed on its way, or an engine reports another version.
        """
        start = time.perf_counter()
        with self.rollouts.timeline.span("learner", "ranks", "export weights"):
            refs = self.learners.export_weights_refs()
        metrics = {"sync/export_s": time.perf_counter() - start}
        return metrics | self.deliver(refs, policy_version)

    def deliver(self, refs: Sequence[Any], policy_version: int) -> dict[str, float]:
        """Give every engine weights that were exported, all at the same time.

        Args:
            refs: What `LearnerPool.export_weights_refs` returned.
            policy_version: Version to stamp them with.

        Returns:
            `sync/load_s` (wall clock) and `sync/policy_version`.

        Raises:
            RuntimeError: if a weight changed on its way, or an engine reports another version.
        """
        start = time.perf_counter()
        self.rollouts.load_weights(refs, policy_version)
        return self._metrics(policy_version, start)

    def start_delivery(
        self, refs: Sequence[Any], policy_version: int, then: Callable[[dict[str, float]], None]
    ) -> None:
        """As `deliver`, to half of the engines at a time, while the other half generates.

        Returns at once; `then` is called with the metrics when all engines have the weights, and
        errors are raised, by whoever waits in the pool's mailbox.
        """
        start = time.perf_counter()
        self.rollouts.start_load(
            refs,
            policy_version,
            lambda: then(self._metrics(policy_version, start)),
            at_once=-(-self.rollouts.num_workers // 2),
        )

    def _metrics(self, policy_version: int, start: float) -> dict[str, float]:
        versions = self.rollouts.policy_versions()
        if set(versions) != {policy_version}:
            raise RuntimeError(
                f"pushed policy version {policy_version}, but the engines report {versions}"
            )
        return {
            "sync/load_s": time.perf_counter() - start,
            "sync/policy_version": float(policy_version),
        }
