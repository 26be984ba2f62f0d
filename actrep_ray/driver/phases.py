"""The phases of a GRPO step, as both loops take them; each can be called alone.

The driver decides order and ids and holds no pixels and no weights. The first step is 1; policy
version s is what step s left behind, so the answers of step s + 1 carry version s.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from actrep_ray.cluster.stopping import StopError, StopRequest
from actrep_ray.cluster.supervision import WorkerLostError
from actrep_ray.config import Recipe
from actrep_ray.driver.alarms import Decline, UntrainedSteps
from actrep_ray.driver.checkpoints import RunCheckpoints
from actrep_ray.driver.contrast import ContrastSource
from actrep_ray.driver.credit import with_credit
from actrep_ray.driver.dealing import SampledClip
from actrep_ray.driver.groups import row_of, split_trainable
from actrep_ray.driver.metrics import log_histograms
from actrep_ray.driver.pools import Pools
from actrep_ray.driver.quarantine import STATE_KEY, Quarantine, QuarantinedRow
from actrep_ray.driver.sources import GroupSource, training_settings
from actrep_ray.driver.strata import describe_strata, make_sampler
from actrep_ray.evaluation.predictors import evaluate
from actrep_ray.learner.loss.algorithms import compute_advantages
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.best import BestStep
from actrep_ray.run.checkpoint import Checkpoint, is_due
from actrep_ray.run.console import as_text, console
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.looks import some_of
from data_prep.rows import Row
from data_prep.video import FileState, FramePlan
from rewards.reference import Reference


class LogProbGapError(RuntimeError):
    """Rollout and learner do not compute the same policy."""


@dataclass(frozen=True)
class GrpoData:
    """Clips to train on and to evaluate on.

    Attributes:
        train: To train on.
        evaluation: To evaluate on.
        files: What each video was when the run began, or went on.
    """

    train: list[Row]
    evaluation: list[Row]
    files: dict[str, FileState] = field(default_factory=dict)

    @classmethod
    def load(cls, recipe: Recipe, *, is_resumed: bool = False) -> "GrpoData":
        """Read and check the clips of a recipe.

        Args:
            recipe: Settings.
            is_resumed: Videos may have broken since the run began: as many as it bears are left for
                it to find.
        """
        share = recipe.data.max_quarantined_share if is_resumed else 0.0
        train = load_clips(
            recipe, "train", limit=recipe.data.max_train_clips, max_unreadable_share=share
        )
        evaluation = []
        if recipe.eval.every:
            evaluation = load_clips(
                recipe, recipe.eval.split, limit=recipe.eval.num_clips, max_unreadable_share=share
            )
        files = {clip.file: FileState.of(clip.file) for clip in (*train, *evaluation)}
        return cls(train, evaluation, files)


class Phases:
    """What is done in a step, over started pools.

    Args:
        recipe: Settings.
        pools: Workers.
        data: Clips.
        inputs: How the model that is trained sees a clip.
        start: Checkpoint to go on from; the learners hold its weights already.
    """

    def __init__(
        self,
        recipe: Recipe,
        pools: Pools,
        data: GrpoData,
        inputs: QwenVLInputs,
        start: Checkpoint | None = None,
    ) -> None:
        self.recipe = recipe
        self.pools = pools
        self.data = data
        self.inputs = inputs
        self.prompts_per_step = recipe.train.prompts_per_step
        self.num_steps = recipe.train.num_steps
        self.timeline = pools.rollouts.timeline
        self.sampler = make_sampler(data.train, recipe)
        self.alarm = UntrainedSteps(recipe)
        self.best = BestStep(recipe)
        self.task = load_task(recipe.task)
        self.decline = Decline(recipe, self.task)
        self.source = source_for(recipe, pools.rollouts, pools.rewards)
        self.quarantine = Quarantine(recipe, len(data.train))
        shown = some_of(data.train) if self.task.is_counting else []
        self.checkpoints = RunCheckpoints(
            recipe, pools.learners, self.num_steps, start, lambda: map(self.plan, shown)
        )
        notice, within_s = recipe.run.preemption_notice or "", recipe.run.stop_s
        self.stop = StopRequest(notice, within_s, (WorkerLostError,), self._hurry)

    # ---------------------------------------------------------------- the ends of a run

    def restore(self) -> int:
        """Load what the checkpoint holds beside the weights; returns its step."""
        step, start = self.checkpoints.restore(), self.checkpoints.start
        state = {} if start is None else start.driver_state()
        if start is not None:
            self.sampler.load_state_dict(state["sampler"])
            if "alarm" in state:  # not in checkpoints of before
                self.alarm.load_state_dict(state["alarm"])
            if "decline" in state:
                self.decline.load_state_dict(state["decline"])
        self.best.restore(step)
        self.checkpoints.keep_best(self.best.step)
        self.quarantine.load_state(state.get(STATE_KEY, ()))
        for row in self.quarantine.rows:
            self.sampler.exclude(row)
        return step

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, as JSON-able values."""
        return {
            "sampler": self.sampler.state_dict(),
            "alarm": self.alarm.state_dict(),
            "decline": self.decline.state_dict(),
            STATE_KEY: self.quarantine.state(),
        }

    @property
    def is_over(self) -> bool:
        """Whether the run ends before its last step: it learns nothing, or gets no better."""
        return self.alarm.has_rung or self.best.is_over

    def is_save_due(self, step: int, *, is_best: bool) -> bool:
        """Whether a step ends with a checkpoint."""
        return is_best or self.is_over or self.checkpoints.is_due(step)

    def abandoning(self) -> AbstractContextManager[None]:
        """Do what a run that is asked to stop gives up: waiting for answers and for scores."""
        return self.stop.abandoning(self.pools.rollouts.mailbox, self.pools.rewards.mailbox)

    def open_log(self, step: int) -> MetricLogger:
        """The files of the run's metrics, without what was written after a step."""
        return MetricLogger(
            self.recipe.run_dir,
            purge_after_step=step or -1,
            num_steps=self.num_steps,
            trackers=self.recipe.run.trackers,
        )

    def log_start(self, logger: MetricLogger) -> None:
        """Write what the set is like before sampling, and how well the model does untrained."""
        references = (self.task.reference(clip) for clip in self.data.train)
        log_histograms(logger, 0, "sampling/before", references, self.task)
        num_clips = self.sampler.num_clips
        strata = describe_strata(num_clips, self.sampler.weights, self.task.reading_name)
        console().print(as_text(strata))
        metrics: dict[str, float] = {}
        if self.recipe.eval.every:
            metrics = self.evaluate(0)
            self.best.look(0, metrics)
        logger.log(0, metrics, {f"data/{name}": number for name, number in num_clips.items()})

    def tell_end(self) -> None:
        """Say at the end of a run what was left out, what was lost, and which step was the best."""
        lost = self.pools.faults.sums.describe()
        for told in (self.quarantine.describe(), lost, self.best.describe()):
            if told:
                console().print(as_text(told), soft_wrap=True)

    def losses(self) -> dict[str, float]:
        """Rows in quarantine and workers that were lost, since the run began."""
        return self.quarantine.metrics() | self.pools.faults.sums.metrics()

    def _hurry(self) -> None:
        self.pools.learners.hurry()

    # ---------------------------------------------------------------- prompts

    def issue(self, step: int) -> tuple[list[Prompt], dict[str, Reference]]:
        """The prompts of a step, drawn as the task has it, and the labels of their clips.

        Labels are of the clips as issued: a crop has labels of its own.
        """
        drawn = self.sampler.take(self.prompts_per_step)
        prompts = [self.prompt(prompt_name(step, i), sampled) for i, sampled in enumerate(drawn)]
        return prompts, labels_of([sampled.clip for sampled in drawn], self.task)

    def refill(
        self, step: int, first: int, failed: Sequence[Prompt]
    ) -> tuple[list[Prompt], dict[str, Reference]]:
        """A prompt of the same stratum for each of those that failed, and their clips' labels.

        Args:
            step: Step of the loop.
            first: Number of the first new prompt within the step.
            failed: Prompts whose groups are dropped.
        """
        drawn = [self.sampler.take_from(old.stratum, 1)[0] for old in failed]
        prompts = [
            self.prompt(prompt_name(step, number), sampled, num_refills=old.num_refills + 1)
            for number, (old, sampled) in enumerate(zip(failed, drawn, strict=True), start=first)
        ]
        return prompts, labels_of([sampled.clip for sampled in drawn], self.task)

    def prompt(self, name: str, sampled: SampledClip[Row], num_refills: int = 0) -> Prompt:
        """What is asked about a drawn clip; the clip's id is added to the prompt's name."""
        plan = self.plan(sampled.clip)
        return make_prompt(name, sampled, self.recipe, plan, num_refills)

    def prefetch(self) -> None:
        """Have the clips of the next step decoded meanwhile."""
        drawn = self.sampler.peek(self.prompts_per_step)
        self.pools.rollouts.prefetch([self.plan(sampled.clip) for sampled in drawn])

    def plan(self, clip: Row) -> FramePlan:
        """The frames to show of a clip, of its video as it was when the run began."""
        state = self.data.files.get(clip.file) or FileState.of(clip.file)
        return self.inputs.plan(clip, self.recipe.video, state)

    def put_aside(self, refused: Sequence[Refusal], step: int) -> "Counter[str]":
        """Quarantine the rows of prompts that cannot be used; how many there are, by reason.

        Raises:
            QuarantineFullError: if there are more than the run bears.
        """
        for one in refused:
            prompt = one.prompt
            row = QuarantinedRow(prompt.row_id, prompt.plan.video, step, one.reason, one.message)
            self.sampler.exclude(row.row)
            self.quarantine.add([row])
        return Counter(one.reason for one in refused)

    # ---------------------------------------------------------------- groups

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        """The groups with their rewards."""
        with self.timeline.span("reward", "workers", "score"):
            return self.source.score(groups, labels)

    def split_trainable(
        self, groups: Sequence[RolloutGroup]
    ) -> tuple[list[RolloutGroup], Counter[str]]:
        """Groups that are trained on, and how many are not, by reason."""
        return split_trainable(groups, self.recipe)

    def assign_advantages(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        """The groups with their advantages; estimators that whiten do so over exactly these."""
        cfg = self.recipe
        compared = compute_advantages(groups, cfg.algorithm, cfg.reward.part_weights)
        return with_credit(compared, labels, cfg, self.inputs)

    def unreadable(self, groups: Sequence[RolloutGroup]) -> list[Refusal]:
        """Those that would be trained on, but whose frames a rank cannot get."""
        trainable, _ = self.split_trainable(groups)
        if not trainable:
            return []
        prompts = {group.prompt.prompt_id: group.prompt for group in trainable}
        found = self.pools.learners.unreadable([row_of(group) for group in trainable])
        return [Refusal(prompts[name], *why) for name, why in found.items()]

    # ---------------------------------------------------------------- weights

    def update(self, groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
        """Take one learner step, or none if there is nothing to learn from.

        Raises:
            LogProbGapError: if rollout and learner do not compute the same policy.
        """
        if not groups:
            return {}
        turn = self.pools.rollouts.asleep()  # where engines and ranks share a GPU
        with turn, self.timeline.span("learner", "ranks", "update"), self.stop.giving_way():
            metrics = self.pools.learners.update([row_of(group) for group in groups], step)
        if all(r.policy_version == step - 1 for group in groups for r in group.rollouts):
            check_log_prob_gap(metrics["log_prob_gap_mean"], self.recipe)  # same weights
        return {f"learner/{name}": value for name, value in metrics.items()}

    def push(self, step: int) -> dict[str, float]:
        """Give the engines the learners' weights."""
        return self.pools.weight_sync.push(step)

    # ---------------------------------------------------------------- evaluation

    def is_evaluation_due(self, step: int) -> bool:
        """Whether a step ends with an evaluation; none of a run that is to stop does."""
        return not self.stop.is_asked and is_due(self.recipe.eval.every, step, self.num_steps)

    def evaluate(self, step: int) -> dict[str, float]:
        """Answer the evaluation clips greedily and score the answers.

        {} if that was given up, or if every clip of the evaluation is in quarantine.
        """
        path = self.recipe.run_dir / f"predictions-{step:06d}.jsonl"
        while True:
            clips = [clip for clip in self.data.evaluation if clip.id not in self.quarantine]
            if not clips:
                return {}
            try:
                with self.abandoning():
                    metrics = evaluate(
                        clips, self.pools.rollouts, self.inputs, self.recipe, path, self.data.files
                    )
            except StopError:  # raised again by what the loop does next
                return {}
            except RefusedError as error:
                self.put_aside(error.refused, step)
                continue
            return metrics.as_dict("eval")


def make_prompt(
    name: str, sampled: SampledClip[Row], recipe: Recipe, plan: FramePlan, num_refills: int = 0
) -> Prompt:
    """What a recipe asks about a drawn clip; the clip's id is added to the prompt's name."""
    clip = sampled.clip
    return Prompt(
        prompt_id=f"{name}-{clip.id}",
        clip_id=clip.id,
        question=load_task(recipe.task).question(clip, recipe.data),
        plan=plan,
        row_id=sampled.source_id,
        stratum=sampled.stratum,
        num_refills=num_refills,
    )


def source_for(recipe: Recipe, rollouts: RolloutPool, rewards: RewardPool) -> GroupSource:
    """Where a recipe's groups come from: with the temporal contrast, or without."""
    settings, contrast = training_settings(recipe), recipe.algorithm.temporal_contrast
    if contrast.weight > 0:
        task = load_task(recipe.task)
        return ContrastSource(rollouts, rewards, settings, contrast, task)
    return GroupSource(rollouts, rewards, settings)


def prompt_name(step: int, number: int) -> str:
    """Start of a prompt's id: the step that it is issued for, and its number within that step."""
    return f"{step:06d}-{number:04d}"


def check_log_prob_gap(gap: float, recipe: Recipe) -> None:
    """Stop a run whose learner computes other log-probabilities than its engine sampled with."""
    limit = recipe.log_prob_gap_limit
    if gap <= limit or recipe.train.on_log_prob_gap == "log":
        return
    raise LogProbGapError(  # of a NaN too
        f"rollout and learner disagree: the mean |log-prob difference| of sampled tokens is "
        f"{gap:.3g}, above train.max_log_prob_gap={limit:g} (model.dtype={recipe.model.dtype}). "
        "The update would follow a policy that did not sample these answers. Usual causes: weights "
        "that did not reach the engine, frames or positions that differ, top_p below 1 or another "
        "temperature. If it is only that kernels differ, raise train.max_log_prob_gap, or set "
        "train.on_log_prob_gap=log to go on all the same."
    )
