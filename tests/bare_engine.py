"""An engine that holds nothing, for tests of what is around engines."""

from actrep_ray.rollout.engine import Engine
from actrep_ray.weights.buckets import Weights
from data_prep.video import FramePlan


class BareEngine(Engine):
    """It has no frames, no weights and no memory; who derives from it says what it answers."""

    def prefetch(self, plan: FramePlan) -> None:
        """It shows no frames."""

    def replace_weights(self, weights: Weights) -> None:
        """It has none."""

    def verify_weights(self, weights: Weights) -> None:
        """It has none."""

    def sleep(self) -> None:
        """Nothing is held."""

    def wake(self) -> None:
        """Nothing was given away."""

    def shutdown(self) -> None:
        """Nothing is held."""
