"""What reinforcement could win, asked before a run: its engines, sampler, rewards and filter alone.

    sampler ─ N clips ─► engines ─ K / G groups each ─► reward workers ─► drop_reason ─► Probe

The prompts are those of the run's first steps (same seed, same Random Count Sampling, same ids),
asked in batches of a step's size. No learner is started and no weight moves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from actrep_ray.cluster.session import cluster
from actrep_ray.config import ConfigError, Recipe
from actrep_ray.driver.dealing import Sampler
from actrep_ray.driver.groups import FLAT, drop_reason
from actrep_ray.driver.phases import make_prompt, prompt_name, source_for
from actrep_ray.driver.sources import GroupSource
from actrep_ray.driver.strata import make_sampler
from actrep_ray.evaluation.answer_figures import Answers, answers_of
from actrep_ray.evaluation.headroom import Headroom, Probe, Start, headroom_of
from actrep_ray.evaluation.predictors import with_whole_weights
from actrep_ray.evaluation.step_forecast import ProbedGroups
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.scoring.worker import make_spec
from actrep_ray.tasks.base import Task, labels_of, step_accuracy
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.rows import Row
from rewards.reference import Reference

MIN_PROMPTS = 8
"""Fewer say nothing: one right answer would move a share by more than a tenth."""

MAX_PROMPTS, MAX_ANSWERS = 100_000, 1024
"""More prompts, and answers to each, are a slip of the finger."""

Progress = Callable[[int], None]
"""Is told how many groups are there."""


@dataclass(frozen=True)
class Scored:
    """What came back of the prompts.

    Attributes:
        groups: Scored, in the order of the prompts.
        generate_s: Seconds of generating, for a group.
        score_s: Seconds of scoring, for a group.
    """

    groups: list[RolloutGroup]
    generate_s: float
    score_s: float


def prepare_headroom(
    recipe: Recipe, *, num_prompts: int, num_answers: int | None = None
) -> "HeadroomJob":
    """Check everything that can be checked before an engine starts.

    Args:
        recipe: Of a GRPO run; `model.path` is the start that is asked.
        num_prompts: Clips to ask about.
        num_answers: Answers to each, a multiple of `train.group_size`, which is the default.

    Raises:
        ValueError: for settings, data or a model that cannot be used.
    """
    group_size = recipe.train.group_size
    num_answers = group_size if num_answers is None else num_answers
    if not MIN_PROMPTS <= num_prompts <= MAX_PROMPTS:
        raise ConfigError(f"{num_prompts} prompts: expected {MIN_PROMPTS} to {MAX_PROMPTS:,}")
    if not 1 <= num_answers <= MAX_ANSWERS or num_answers % group_size:
        raise ConfigError(
            f"{num_answers} answers to a prompt: expected a multiple of train.group_size="
            f"{group_size}, since groups are judged whole, and at most {MAX_ANSWERS:,}"
        )
    make_spec(recipe)
    clips = load_clips(recipe, "train", limit=recipe.data.max_train_clips)
    sampler = make_sampler(clips, recipe)
    model = resolve_model(recipe.model.path)
    inputs = QwenVLInputs(model)
    inputs.check_dialect(recipe.data.dialect)
    return HeadroomJob(recipe, model, inputs, sampler, num_prompts, num_answers // group_size)


@dataclass(frozen=True)
class HeadroomJob:
    """A probe whose settings, data and model were checked; nothing has been started.

    Attributes:
        recipe: Settings.
        model: Folder of the weights that are asked.
        inputs: What makes prompts of clips.
        sampler: Draws the clips.
        num_prompts: Clips to ask about.
        num_groups: Groups of each.
    """

    recipe: Recipe
    model: Path
    inputs: QwenVLInputs
    sampler: Sampler[Row]
    num_prompts: int
    num_groups: int

    @property
    def total(self) -> int:
        """Groups that will be sampled."""
        return self.num_prompts * self.num_groups

    def run(self, progress: Progress) -> Headroom:
        """Start engines and reward workers, ask, and put together what comes back.

        Args:
            progress: Is told as groups arrive.
        """
        recipe = with_whole_weights(self.recipe)
        with cluster(recipe, roles=("rollout", "reward")):
            rollouts = RolloutPool.start(recipe, self.model)
            probe = self.probe(source_for(recipe, rollouts, RewardPool.start(recipe)), progress)
        return headroom_of(probe, num_bootstrap=recipe.eval.num_bootstrap)

    def probe(self, source: GroupSource, progress: Progress) -> Probe:
        """Ask, by workers that were started."""
        prompts, labels = self.prompts()
        scored = ask(source, prompts, labels, self.recipe.train.prompts_per_step, progress)
        return self.judged(scored, labels)

    def prompts(self) -> tuple[list[Prompt], dict[str, Reference]]:
        """What is asked, the groups of a prompt one after the other, and the clips' labels.

        The ids are those of the run's first steps, so the answers to its first step are its own.
        """
        drawn, size = self.sampler.take(self.num_prompts), self.recipe.train.prompts_per_step
        prompts = [
            make_prompt(
                prompt_name(i // size + 1, i % size) + (f".{j}" if j else ""),
                sampled,
                self.recipe,
                self.inputs.plan(sampled.clip, self.recipe.video),
            )
            for i, sampled in enumerate(drawn)
            for j in range(self.num_groups)
        ]
        labels = labels_of([sampled.clip for sampled in drawn], load_task(self.recipe.task))
        return prompts, labels

    def judged(self, scored: Scored, labels: Mapping[str, Reference]) -> Probe:
        """What came back, by prompt, as the recipe's filter judges it."""
        recipe, task, groups = self.recipe, load_task(self.recipe.task), scored.groups
        if failed := [group.failure for group in groups if group.failure]:
            raise ConfigError(
                f"reward.weights: {len(failed)} of {len(groups)} groups could not be scored "
                f"({failed[0]}), and without them nothing is foretold"
            )
        shape = (self.num_prompts, self.num_groups)
        reasons = [drop_reason(group, recipe) for group in groups]
        by_prompt = [reasons[i : i + self.num_groups] for i in range(0, len(groups), shape[1])]
        strata = [group.prompt.stratum for group in groups[:: self.num_groups]]
        return Probe(
            start=self.start(),
            asked=_joined(answers_of(groups, labels, task), self.num_groups),
            drop_reasons=by_prompt,
            flat=FLAT,
            groups=ProbedGroups(
                strata=np.unique(strata, return_inverse=True)[1],
                is_useful=np.reshape([reason is None for reason in reasons], shape),
                response_tokens=np.reshape([_num_tokens(group) for group in groups], shape),
                prompt_tokens=np.reshape([group.num_prompt_tokens for group in groups], shape),
            ),
            accuracy=_accuracy(groups, labels, task),
            generate_s=scored.generate_s,
            score_s=scored.score_s,
        )

    def start(self) -> Start:
        """What is asked of whom."""
        recipe, size = self.recipe, self.recipe.train.prompts_per_step
        return Start(
            recipe=recipe.name,
            model=str(self.model),
            group_size=recipe.train.group_size,
            prompts_per_step=size,
            max_refills=int(recipe.train.max_refill_factor * size),
            temperature=recipe.rollout.temperature,
            seed=recipe.seed,
        )


def ask(
    source: GroupSource,
    prompts: Sequence[Prompt],
    labels: Mapping[str, Reference],
    batch_size: int,
    progress: Progress,
) -> Scored:
    """Have prompts answered and scored, a batch of a step's size after the other.

    The seconds are medians over the batches, without the first one where there are others: engines
    warm up in it.
    """
    groups: list[RolloutGroup] = []
    seconds: list[tuple[float, float]] = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        began = time.perf_counter()
        answered = _generate(source, batch, partial(_add_to, progress, first))
        answered_at = time.perf_counter()
        groups += source.score(answered, labels)
        times = (answered_at - began, time.perf_counter() - answered_at)
        seconds.append((times[0] / len(batch), times[1] / len(batch)))
    generate_s, score_s = np.median(seconds[1:] or seconds, axis=0)
    return Scored(groups, float(generate_s), float(score_s))


def _generate(
    source: GroupSource, batch: Sequence[Prompt], progress: Progress
) -> list[RolloutGroup]:
    """As `GroupSource.generate`, and tell of each group that arrives.

    Raises:
        RefusedError: naming clips that cannot be used; a run would put their rows aside.
    """
    arrived: dict[str, RolloutGroup] = {}
    refused: list[Refusal] = []

    def keep(group: RolloutGroup) -> None:
        arrived[group.prompt.prompt_id] = group
        progress(len(arrived))

    source.submit(batch, keep, refused.append)
    source.rollouts.wait(
        lambda: len(arrived) + len(refused) == len(batch),
        lambda: f"{len(batch) - len(arrived)} of {len(batch)} groups",
    )
    if refused:
        raise RefusedError(refused)
    return [arrived[prompt.prompt_id] for prompt in batch]


def _add_to(progress: Progress, before: int, done: int) -> None:
    progress(before + done)


def _joined(asked: Sequence[Answers], num_groups: int) -> list[Answers]:
    """The answers of a prompt's groups as one."""
    joined = []
    for i in range(0, len(asked), num_groups):
        some = asked[i : i + num_groups]
        readings = tuple(reading for one in some for reading in one.readings)
        is_right = np.concatenate([one.is_right for one in some])
        told = [one.is_consistent for one in some if one.is_consistent is not None]
        is_consistent = np.concatenate(told) if told else None  # told of all groups or of none
        joined.append(Answers(readings, is_right, some[0].truth, is_consistent))
    return joined


def _num_tokens(group: RolloutGroup) -> int:
    """Tokens that were generated for a group, those of its temporal contrast among them."""
    own = sum(len(rollout.token_ids) for rollout in group.rollouts)
    return own if group.contrast is None else own + _num_tokens(group.contrast)


def _accuracy(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Reference], task: Task
) -> dict[str, float]:
    pairs = [(made, labels[group.prompt.clip_id]) for group in groups for made in group.claims]
    return step_accuracy([made for made, _ in pairs], [known for _, known in pairs], task)
