"""What the systems of peers.py have in common: the clips of each step, the reward, the notes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from actrep_ray.config import Recipe
from actrep_ray.driver.phases import GrpoData
from actrep_ray.driver.sampling import CountSampler
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.rows import clips_among
from data_prep.schema import Clip
from data_prep.video import FramePlan
from rewards.compute_score import compute_score
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


@dataclass(frozen=True)
class Work:
    """What all of them do: steps of clips, and how answers to them are sampled and scored."""

    recipe: Recipe
    inputs: QwenVLInputs
    steps: list[list[Clip]]

    @classmethod
    def of(cls, recipe: Recipe) -> "Work":
        """The clips that our driver draws, in its order."""
        clips = clips_among(GrpoData.load(recipe).train)
        sampler = CountSampler(clips, recipe.sampling, seed=recipe.seed)
        train = recipe.train
        steps = [
            [drawn.clip for drawn in sampler.take(train.prompts_per_step)]
            for _ in range(train.num_steps)
        ]
        return cls(recipe, QwenVLInputs(recipe.model.path), steps)

    @property
    def group_size(self) -> int:
        return self.recipe.train.group_size

    @property
    def max_tokens(self) -> int:
        return self.recipe.rollout.max_response_tokens

    def plan(self, clip: Clip) -> FramePlan:
        return self.inputs.plan(clip, self.recipe.video)

    def question(self, clip: Clip) -> str:
        return load_task(self.recipe.task).question(clip, self.recipe.data)

    def scorer(self) -> "Scorer":
        clips = [clip for step in self.steps for clip in step]
        return Scorer(labels_of(clips, load_task(self.recipe.task)), self.recipe.reward.weights)


class Scorer:
    """The reward of an answer to a clip, by `rewards.compute_score`."""

    def __init__(self, labels: Mapping[str, Reference], weights: Mapping[str, Any]) -> None:
        self._labels, self._weights = labels, weights

    def __call__(self, clip_id: str, text: str) -> float:
        labels = self._labels[clip_id]
        truth = {"count": labels.count, "cycles": labels.cycles}
        extra = {"duration_s": labels.duration_s}
        return compute_score("peers", text, truth, extra, weights=self._weights)["score"]


def any_text(response: ParsedResponse, reference: Reference) -> float:
    """A reward that differs between any two texts, where real rewards would all be nothing."""
    return crc32(response.text.encode()) / 2**32


@dataclass
class Notes:
    """What a system notes down; the first step is a warm-up.

    Attributes:
        seconds: Of each step.
        cpu_s: CPU seconds of each step, of all threads.
        lengths: Tokens of each answer, by step.
        rewards: Mean of each step.
        prompt_tokens: Mean length of prompts, by batch.
        parts: Seconds of phases of each step, by name.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    lengths: list[Sequence[int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    prompt_tokens: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def begin(self) -> None:
        """The first step begins now."""
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def end_step(self) -> None:
        """A step ends now, and the next one begins."""
        last, last_cpu = self._last, self._last_cpu
        self.begin()
        self.seconds.append(self._last - last)
        self.cpu_s.append(self._last_cpu - last_cpu)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds to a phase of the step that is going on."""
        values = self.parts.setdefault(phase, [])
        values += [0.0] * (len(self.seconds) + 1 - len(values))
        values[-1] += seconds

    def summary(self) -> dict[str, Any]:
        """Means over the steps after the first one."""
        lengths = [n for step in self.lengths[1:] for n in step]
        total = sum(self.seconds[1:])
        return {
            "step_s": total / len(self.seconds[1:]),
            "cpu_s": float(np.mean(self.cpu_s[1:])),
            "samples_per_s": len(lengths) / total,
            "tokens_per_s": sum(lengths) / total,
            "mean_length": float(np.mean(lengths)),
            "prompt_tokens": float(np.mean(self.prompt_tokens)),
            "reward": float(np.mean(self.rewards[1:])),
            "parts_s": {name: float(np.mean(values[1:])) for name, values in self.parts.items()},
        }
