"""Carries the learners' weights to the rollout engines and proves that they arrived.

    LearnerPool ──export_weights_ref()──► object store (buckets) ──► every engine loads, verifies

What is proved at each push: that each tensor's checksum is the same before and after the transfer
(`unpack_weights`), that weights in use by the engine are those it was given (`verify_magnitudes`),
and that every engine reports the new version.
"""

import time
from typing import TYPE_CHECKING

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
        ref = self.learners.export_weights_ref()
        exported = time.perf_counter()
        self.rollouts.load_weights(ref, policy_version)
        versions = self.rollouts.policy_versions()
        if set(versions) != {policy_version}:
            raise RuntimeError(
                f"pushed policy version {policy_version}, but the engines report {versions}"
            )
        return {
            "sync/export_s": exported - start,
            "sync/load_s": time.perf_counter() - exported,
            "sync/policy_version": float(policy_version),
        }
