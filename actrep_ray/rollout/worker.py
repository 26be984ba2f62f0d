"""A rollout worker: one engine behind the methods that a pool calls. A plain class, without Ray."""

import time
from collections.abc import Sequence
from pathlib import Path

from actrep_ray.config import Recipe
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.rollout.hf_engine import HfEngine
from actrep_ray.rollout.vllm_engine import VllmEngine
from actrep_ray.types import Prompt, RolloutGroup
from actrep_ray.weights import WeightBucket, unpack_weights


class RolloutWorker:
    """Generates with the engine that the recipe names; if that cannot run, it is an error.

    Args:
        recipe: Settings; `device` must not be `auto` any more.
        model_path: Folder of the checkpoint to start from.
        index: Number of this worker; its engine's seed differs from its siblings'.
    """

    def __init__(self, recipe: Recipe, model_path: str | Path, index: int) -> None:
        self.engine = _make_engine(recipe, model_path, seed=recipe.seed * 1000 + index)

    def ready(self) -> bool:
        """Returns when the engine has started."""
        return True

    def policy_version(self) -> int:
        """Version of the weights in use."""
        return self.engine.policy_version

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """Answer every prompt, in order."""
        return self.engine.generate(prompts, settings)

    def load_weights(self, buckets: Sequence[WeightBucket], policy_version: int) -> float:
        """Replace the weights and verify them; returns how many seconds it took."""
        start = time.perf_counter()
        self.engine.load_weights(unpack_weights(buckets), policy_version)
        return time.perf_counter() - start

    def shutdown(self) -> None:
        """Free the engine."""
        self.engine.shutdown()


def _make_engine(recipe: Recipe, model_path: str | Path, seed: int) -> Engine:
    assert recipe.device != "auto", "the pool resolves the device"
    engine_class: type[HfEngine] | type[VllmEngine]
    engine_class = VllmEngine if recipe.rollout.engine == "vllm" else HfEngine
    return engine_class(
        model_path,
        recipe.rollout,
        recipe.video,
        device=recipe.device,
        seed=seed,
        dtype=recipe.model.dtype,
    )
