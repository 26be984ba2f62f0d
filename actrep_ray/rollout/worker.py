"""A rollout worker: one engine behind the methods that a pool calls. A plain class, without Ray."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actrep_ray.cluster.placement import is_colocated
from actrep_ray.config import Recipe
from actrep_ray.models.torch_names import device_named
from actrep_ray.records import Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.weights.buckets import WeightBucket, unpack_weights
from data_prep.locks import BusyError
from data_prep.video import FramePlan, VideoError

_TURN_S = 1.0  # new weights and prompts wait at most this long for their turn (and one step)

Request = tuple[Sequence[Prompt], SamplingSettings]


@dataclass(frozen=True)
class Turn:
    """What a worker did in one call.

    Attributes:
        groups: That were finished.
        began_s: Wall clock, seconds since 1970.
        ended_s: Likewise.
        refused: Prompts that cannot be answered.
    """

    groups: list[RolloutGroup]
    began_s: float
    ended_s: float
    refused: Sequence[Refusal] = ()


@dataclass(frozen=True)
class Loaded:
    """New weights in use.

    Attributes:
        policy_version: As the engine reports it.
        began_s: Wall clock, seconds since 1970.
        ended_s: Likewise.
    """

    policy_version: int
    began_s: float
    ended_s: float


class RolloutWorker:
    """Generates with an engine that it starts; if that cannot run, it is an error.

    Args:
        start: Starts the engine, in the worker's process: `partial(start_engine, ...)`.
    """

    def __init__(self, start: Callable[[], Engine]) -> None:
        self.engine = start()
        self._to_add: deque[tuple[Prompt, SamplingSettings]] = deque()

    def ready(self) -> int:
        """Returns when the engine has started: the version of its weights."""
        return self.engine.policy_version

    def advance(self, requests: Sequence[Request]) -> Turn:
        """Take more prompts and compute until one is answered or refused, or for about a second.

        A caller that has the next call waiting before this one returns keeps the engine at work.
        Prompts whose clips are not decoded in that time are left to the next calls: hundreds of
        them would else make one turn of many minutes, which is what a worker that hangs looks like.
        """
        began, until = time.time(), time.monotonic() + _TURN_S
        groups: list[RolloutGroup] = []
        refused: list[Refusal] = []
        self._to_add.extend((one, settings) for prompts, settings in requests for one in prompts)
        try:
            while self._to_add:
                prompt, settings = self._to_add.popleft()
                self.engine.add([prompt], settings)
                if time.monotonic() >= until:
                    break
            refused += self.engine.take_refused()
            while self._is_due and not groups + refused and time.monotonic() < until:
                groups += self.engine.step()
                refused += self.engine.take_refused()
        except BaseException:
            self._to_add.clear()
            self.engine.forget()
            raise
        return Turn(groups, began, time.time(), refused)

    @property
    def _is_due(self) -> bool:
        """Whether the engine has all that it was given, and something to compute."""
        return bool(self.engine.num_unfinished) and not self._to_add

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """Answer every prompt, in order."""
        return self.engine.generate(prompts, settings)

    def prefetch(self, plans: Sequence[FramePlan]) -> None:
        """Decode clips into this node's frame cache in the background; returns at once."""
        threading.Thread(target=self._decode, args=(plans,), name="prefetch", daemon=True).start()

    def _decode(self, plans: Sequence[FramePlan]) -> None:
        for plan in plans:
            with suppress(VideoError, BusyError):  # raised where the clip is used
                self.engine.prefetch(plan)

    def load_weights(self, policy_version: int, *buckets: WeightBucket) -> Loaded:
        """Replace the weights and verify them."""
        began = time.time()
        self.engine.load_weights(unpack_weights(buckets), policy_version)
        return Loaded(self.engine.policy_version, began, time.time())

    def sleep(self) -> None:
        """Free what the engine holds of its GPU until `wake`; nothing may be at work."""
        self.engine.sleep()

    def wake(self) -> None:
        """Take the memory back."""
        self.engine.wake()

    def shutdown(self) -> None:
        """Free the engine."""
        self.engine.shutdown()


def with_own_device(recipe: Recipe) -> Recipe:
    """The recipe with its device settled by what this process sees, for an engine in it."""
    return recipe.model_copy(update={"device": device_named(recipe.device).type})


def start_engine(recipe: Recipe, model_path: str | Path) -> Engine:
    """Start the engine that `rollout.engine` names.

    Args:
        recipe: Settings; `device` must not be `auto` any more.
        model_path: Folder of the checkpoint to start from.
    """
    assert recipe.device != "auto", "the pool resolves the device"
    lora = recipe.model.lora if recipe.sends_adapters else None
    if recipe.rollout.engine == "hf":
        from actrep_ray.rollout.hf_engine import HfEngine

        return HfEngine(
            model_path,
            recipe.rollout,
            recipe.video,
            device=recipe.device,
            seed=recipe.seed,
            dtype=recipe.model.dtype,
            lora=lora,
        )
    from actrep_ray.rollout.vllm_engine import VllmEngine

    return VllmEngine(
        model_path,
        recipe.rollout,
        recipe.video,
        device=recipe.device,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
        lora=lora,
        shares_gpu=is_colocated(recipe),
        is_visual_frozen=recipe.model.is_frozen("vision_tower")
        and recipe.model.is_frozen("merger"),
    )
