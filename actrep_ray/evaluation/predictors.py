"""Counting in video: prompts in, greedy answers out, and samples beside them if they are asked for.

Scoring is a separate step.

The predictor never sees labels: what it is given of a clip are its frames and its question.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from actrep_ray.config import Recipe
from actrep_ray.evaluation.predictions import (
    Prediction,
    prediction_of_text,
    write_predictions,
)
from actrep_ray.evaluation.scores import Metrics, score_predictions
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import Prompt, RolloutGroup, RolloutStatus
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.tasks.base import Task, labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.rows import Row
from data_prep.video import FileState

_AT_ONCE = 64  # clips whose greedy answers are asked for before their samples


class Generator(Protocol):
    """What answers prompts: an engine, or a pool of them."""

    def generate(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> list[RolloutGroup]: ...


class Pool(Protocol):
    """What gives each group as soon as it is there: `RolloutPool`."""

    def submit(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: Callable[[RolloutGroup], None],
    ) -> None: ...

    def wait(self, is_done: Callable[[], Any], what: Callable[[], str]) -> None: ...


def predict(
    clips: Sequence[Row],
    generator: Generator,
    inputs: QwenVLInputs,
    recipe: Recipe,
    files: Mapping[str, FileState] | None = None,
) -> list[Prediction]:
    """Answer each clip once, greedily, in order.

    Args:
        clips: What to count in; their labels are not looked at.
        generator: A rollout engine or pool.
        inputs: Of the same model.
        recipe: Its `video`, `data` and `rollout` sections are used.
        files: What videos were when a run began, if they may have changed since.

    Raises:
        RefusedError: if a clip cannot be read, or its prompt is too long.
    """
    prompts = prompts_of(clips, inputs, recipe, files)
    groups = generator.generate(prompts, greedy_of(recipe))
    task = load_task(recipe.task)
    return [predictions_of(group, task, recipe.data.dialect)[0] for group in groups]


def predict_each(
    clips: Sequence[Row], pool: Pool, inputs: QwenVLInputs, recipe: Recipe, *, num_samples: int = 0
) -> Iterator[Prediction]:
    """As `predict`, each clip as soon as it is answered, in any order.

    Args:
        clips: As of `predict`.
        pool: Rollout workers.
        inputs: Of the same model.
        recipe: As of `predict`; samples are drawn at its `rollout.temperature` and `rollout.top_p`.
        num_samples: Samples of each clip beside the greedy answer: none, or at least 2.

    Raises:
        RefusedError: as `predict` does.
        TimeoutError: if no group came for `rollout.timeout_s`.
    """
    task, groups = load_task(recipe.task), deque[RolloutGroup]()
    prompts = prompts_of(clips, inputs, recipe)
    for first in range(0, len(prompts), _AT_ONCE):  # so that a clip's groups come soon together
        some = prompts[first : first + _AT_ONCE]
        pool.submit(some, greedy_of(recipe), groups.append)
        if num_samples:
            again, sampling = map(_to_sample, some), sampling_of(recipe, num_samples)
            pool.submit(list(again), sampling, groups.append)
    answers: dict[str, list[Prediction]] = {}
    num_answered = 0
    while num_answered < len(clips):
        told = f"{num_answered} of {len(clips)} clips were answered"
        pool.wait(lambda: groups, partial(str, told))
        group = groups.popleft()
        found = predictions_of(group, task, recipe.data.dialect)
        before = answers.pop(group.prompt.clip_id, [])
        if num_samples and not before:
            answers[group.prompt.clip_id] = found
            continue
        greedy, *samples = found + before if len(found) == 1 else before + found
        num_answered += 1
        yield replace(greedy, samples=tuple(samples))


def greedy_of(recipe: Recipe) -> SamplingSettings:
    """How the one answer to a question is written that evaluations judge."""
    return SamplingSettings(max_tokens=recipe.rollout.max_response_tokens, temperature=0.0)


def sampling_of(recipe: Recipe, num_samples: int) -> SamplingSettings:
    """How several answers to a question are drawn, as in training."""
    return SamplingSettings(
        max_tokens=recipe.rollout.max_response_tokens,
        group_size=num_samples,
        temperature=recipe.rollout.temperature,
        top_p=recipe.rollout.top_p,
    )


def sampling_json(recipe: Recipe, num_samples: int) -> dict[str, float]:
    """`sampling_of` for a file: how many answers there are and how they are drawn."""
    settings = sampling_of(recipe, num_samples)
    return {
        "num": settings.group_size,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
    }


def _to_sample(prompt: Prompt) -> Prompt:
    """The same question once more.

    Draws depend on the id (`actrep_ray.rollout.draws`): on the clip alone, whatever is asked beside
    it and whatever was answered before.
    """
    return replace(prompt, prompt_id=f"samples-{prompt.clip_id}")


def prompts_of(
    clips: Sequence[Row],
    inputs: QwenVLInputs,
    recipe: Recipe,
    files: Mapping[str, FileState] | None = None,
) -> list[Prompt]:
    """What is asked about each clip; arguments as in `predict`."""
    known: Mapping[str, FileState] = files or {}
    task = load_task(recipe.task)
    return [
        Prompt(
            prompt_id=f"eval-{i:06d}-{clip.id}",
            clip_id=clip.id,
            question=task.question(clip, recipe.data),
            plan=inputs.plan(clip, recipe.video, known.get(clip.file)),
            row_id=clip.id,
        )
        for i, clip in enumerate(clips)
    ]


def predictions_of(group: RolloutGroup, task: Task, dialect: str) -> list[Prediction]:
    """What each answer of a group says."""
    return [
        prediction_of_text(
            group.prompt.clip_id,
            rollout.text,
            task,
            dialect=dialect,
            num_tokens=len(rollout.token_ids),
            is_truncated=rollout.status is RolloutStatus.TRUNCATED,
        )
        for rollout in group.rollouts
    ]


def evaluate(
    clips: Sequence[Row],
    generator: Generator,
    inputs: QwenVLInputs,
    recipe: Recipe,
    path: Path,
    files: Mapping[str, FileState] | None = None,
) -> Metrics:
    """Predict, write the predictions to `path`, and score them; see `predict`."""
    predictions = predict(clips, generator, inputs, recipe, files)
    task = load_task(recipe.task)
    write_predictions(path, predictions, task)
    return score_predictions(
        predictions,
        labels_of(clips, task),
        task,
        num_bootstrap=recipe.eval.num_bootstrap,
        seed=recipe.seed,
    )


def with_whole_weights(recipe: Recipe) -> Recipe:
    """The settings of engines that answer from a checkpoint: nobody sends them adapters.

    Those that it was trained with are merged into its weights. An engine with room for adapters
    would pay for them at each token, and have no use for layers that another model lacks.
    """
    lora = recipe.model.lora.model_copy(update={"rank": 0})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": lora})})
