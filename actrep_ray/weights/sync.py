"""Carries the learners' weights to the rollout engines and proves that they arrived.

    learners ──export_weights_refs()──► object store (buckets) ──► every engine loads, verifies

What is proved at each push: that each tensor's checksum is the same before and after the transfer
(`unpack_weights`), that weights in use by the engine are those it was given (`verify_magnitudes`),
and that every engine reports the new version.

A push has a line of its own in the timeline, from its begin until the last engine has the weights.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from actrep_ray.run.profile import Timeline


class WeightSource(Protocol):
    """What holds the weights: the learners."""

    def export_weights_refs(self) -> Sequence[Any]:
        """References of `WeightBucket`s with the current weights."""


class WeightSink(Protocol):
    """What the weights are for: the rollout engines."""

    @property
    def timeline(self) -> Timeline:
        """Record of who did what when."""

    @property
    def num_workers(self) -> int:
        """Number of engines."""

    def let_go_of_weights(self) -> None:
        """Hold those that were pushed last no longer: others are to come."""

    def load_weights(self, refs: Sequence[Any], policy_version: int) -> None:
        """Replace every engine's weights, all at the same time."""

    def start_load(
        self,
        refs: Sequence[Any],
        policy_version: int,
        then: Callable[[], None],
        *,
        at_once: int | None = None,
    ) -> None:
        """As `load_weights`, `at_once` at a time; `then` is called when all have them."""

    def policy_versions(self) -> list[int]:
        """What each engine reports."""


class WeightSync:
    """Pushes weights from learners to engines.

    Args:
        learners: Where the weights are.
        rollouts: Where they go.
    """

    def __init__(self, learners: WeightSource, rollouts: WeightSink) -> None:
        self.learners = learners
        self.rollouts = rollouts

    def push(self, policy_version: int) -> dict[str, float]:
        """Give every engine the learners' current weights, stamped with a version.

        Returns:
            `sync/export_s`, `sync/load_s` (both seconds that passed) and `sync/policy_version`.

        Raises:
            RuntimeError: if a weight changed on its way, or an engine reports another version.
        """
        start = time.perf_counter()
        self.rollouts.let_go_of_weights()
        refs = self.export()
        metrics = {"sync/export_s": time.perf_counter() - start}
        return metrics | self.deliver(refs, policy_version)

    def export(self) -> Sequence[Any]:
        """The learners' current weights, for `deliver` or `start_delivery`.

        Unless the engines let go of the old ones before, the object store holds both for a while.
        """
        span = self.rollouts.timeline.span
        with span("weights", "sync", "export"), span("learner", "ranks", "export weights"):
            return self.learners.export_weights_refs()

    def deliver(self, refs: Sequence[Any], policy_version: int) -> dict[str, float]:
        """Give every engine weights that were exported, all at the same time.

        Args:
            refs: What `export` returned.
            policy_version: Version to stamp them with.

        Returns:
            `sync/load_s` (seconds that passed) and `sync/policy_version`.

        Raises:
            RuntimeError: if a weight changed on its way, or an engine reports another version.
        """
        began = _now()
        self.rollouts.load_weights(refs, policy_version)
        return self._arrived(policy_version, began)

    def start_delivery(
        self, refs: Sequence[Any], policy_version: int, then: Callable[[dict[str, float]], None]
    ) -> None:
        """As `deliver`, to half of the engines at a time, while the other half generates.

        Returns at once; `then` is called with the metrics when all engines have the weights, and
        errors are raised, by whoever waits in the pool's mailbox.
        """
        began = _now()
        self.rollouts.start_load(
            refs,
            policy_version,
            lambda: then(self._arrived(policy_version, began)),
            at_once=-(-self.rollouts.num_workers // 2),
        )

    def _arrived(self, policy_version: int, began: "_Moment") -> dict[str, float]:
        ended = _now()
        self.rollouts.timeline.add("weights", "sync", "deliver", began.wall_s, ended.wall_s)
        versions = self.rollouts.policy_versions()
        if set(versions) != {policy_version}:
            raise RuntimeError(
                f"pushed policy version {policy_version}, but the engines report {versions}"
            )
        return {
            "sync/load_s": ended.monotonic_s - began.monotonic_s,
            "sync/policy_version": float(policy_version),
        }


class _Moment(NamedTuple):
    wall_s: float  # for the timeline, whose spans come from several machines; may be set back
    monotonic_s: float  # for durations


def _now() -> _Moment:
    return _Moment(time.time(), time.perf_counter())
