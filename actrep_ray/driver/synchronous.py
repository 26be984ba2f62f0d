"""The synchronous GRPO loop: prompts, answers, rewards, update, new weights; one after the other.

    sampler ─ prompts ─► RolloutPool ─ groups ─► RewardPool ─ scored ─► advantages ─ rows ─┐
       ▲                     ▲                                                             ▼
       └── next step ────────┴────────── WeightSync, policy_version = step ◄──────── LearnerPool

The driver decides order and ids and holds no pixels and no weights. Every phase is a method that a
test can call alone. The first step is 1; policy version s is what step s left behind, so the
answers of step s + 1 carry version s.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import get_console

from actrep_ray.cluster.placement import shares_bundles
from actrep_ray.config import ConfigError, Recipe
from actrep_ray.driver.contrast import contrast_metrics, generate_pairs, score_pairs
from actrep_ray.driver.sampling import CountSampler, SampledClip
from actrep_ray.evaluation.predictors import evaluate, training_settings
from actrep_ray.learner.loss.algorithms import compute_advantages
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.planning.learner import check_plan
from actrep_ray.records import Labels, LearnerRow, Prompt, RolloutGroup, RolloutStatus
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore, is_due, resolve_model
from actrep_ray.run.folder import open_run
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.run.profile import profiled
from actrep_ray.scoring.pool import RewardPool, make_spec
from actrep_ray.tasks.clips import labels_of, load_clips, question_for
from data_prep.schema import Clip

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from actrep_ray.learner.pool import LearnerPool
    from actrep_ray.rollout.pool import RolloutPool
    from actrep_ray.weights.sync import WeightSync

_NUM_LOGGED_ROLLOUTS = 3


class LogProbGapError(RuntimeError):
    """Rollout and learner do not compute the same policy."""


@dataclass(frozen=True)
class Pools:
    """The workers of a run, started."""

    rollouts: "RolloutPool"
    rewards: "RewardPool"
    learners: "LearnerPool"
    weight_sync: "WeightSync"

    def shutdown(self) -> None:
        """End all of them."""
        self.rollouts.shutdown()
        self.rewards.shutdown()
        self.learners.shutdown()


@dataclass(frozen=True)
class GrpoData:
    """Clips to train on and to evaluate on."""

    train: list[Clip]
    evaluation: list[Clip]

    @classmethod
    def load(cls, recipe: Recipe) -> "GrpoData":
        """Read and check the clips of a recipe."""
        train = load_clips(recipe, "train", limit=recipe.data.max_train_clips)
        evaluation = []
        if recipe.eval.every:
            evaluation = load_clips(recipe, recipe.eval.split, limit=recipe.eval.num_clips)
        return cls(train, evaluation)


@dataclass(frozen=True)
class GrpoJob:
    """A run whose settings, data and model were checked; nothing has been started."""

    recipe: Recipe
    data: GrpoData
    inputs: QwenVLInputs
    start: Checkpoint | None

    def run(self, pools: Pools | None = None, *, profile: bool = False) -> Checkpoint:
        """Train; returns the last checkpoint. See `run_grpo`."""
        if pools is not None:
            driver = self.driver(pools)
            if not profile:
                return driver.run()
            with profiled(driver.timeline, self.recipe):
                return driver.run()
        from actrep_ray.cluster.session import cluster
        from actrep_ray.driver.restarts import RANK_LOSSES, outlive_losses

        def attempt(start: Checkpoint | None) -> Checkpoint:
            model = start.folder if start else resolve_model(self.recipe.model.path)
            pools = start_pools(self.recipe, model)
            try:
                return replace(self, start=start).run(pools, profile=profile)
            except RANK_LOSSES:
                pools.shutdown()
                raise

        with cluster(self.recipe):
            return outlive_losses(self.recipe, attempt, self.start)

    def driver(self, pools: Pools) -> "GrpoDriver":
        """The synchronous driver, or with `train.max_staleness` the asynchronous one."""
        if self.recipe.train.max_staleness is None:
            return GrpoDriver(self.recipe, pools, self.data, self.inputs, self.start)
        from actrep_ray.driver.asynchronous import AsyncGrpoDriver

        return AsyncGrpoDriver(self.recipe, pools, self.data, self.inputs, self.start)


def prepare_grpo(recipe: Recipe, *, resume: bool = False) -> GrpoJob:
    """Check everything that can be checked before a worker starts.

    Raises:
        ValueError: for settings, data or a model that cannot be used.
    """
    make_spec(recipe)
    check_plan(recipe)
    data = GrpoData.load(recipe)
    CountSampler(data.train, recipe.sampling, seed=recipe.seed)
    inputs = QwenVLInputs(resolve_model(recipe.model.path))
    start = open_run(recipe, resume=resume)
    if start is not None:
        check_places(recipe, start)
    return GrpoJob(recipe, data, inputs, start)


def check_places(recipe: Recipe, start: Checkpoint) -> None:
    """Refuse to lose the prompts that an asynchronous run had in flight.

    Raises:
        ConfigError: if these settings could not have issued them.
    """
    pipeline = start.driver_state().get("pipeline", {})
    num_places, size = len(pipeline.get("places", ())), pipeline.get("prompts_per_step", 1)
    if not num_places:
        return
    staleness = recipe.train.max_staleness
    num_allowed = 0 if staleness is None else (1 + staleness) * size
    if recipe.train.prompts_per_step != size or num_places > num_allowed:
        raise ConfigError(
            f"{start.folder}: {num_places} prompts are in flight, issued with "
            f"train.prompts_per_step={size}: go on with that value and with train.max_staleness "
            f"of at least {-(-num_places // size) - 1}"
        )


def run_grpo(recipe: Recipe, *, pools: Pools | None = None, resume: bool = False) -> Checkpoint:
    """Train `model.path` by GRPO; returns the last checkpoint.

    Args:
        recipe: Settings; `stage` is "grpo".
        pools: Workers that were started for this recipe and model; they are left running. None
            starts them in a cluster of their own and ends it.
        resume: Go on from the run's last checkpoint, if it has one.

    Raises:
        ValueError: for settings, data or a model that cannot be used, before any worker starts.
        LogProbGapError: if rollout and learner disagree by more than `train.max_log_prob_gap`.
    """
    return prepare_grpo(recipe, resume=resume).run(pools)


def start_pools(recipe: Recipe, model: Path) -> Pools:
    """Start engines, reward workers and learners at the same time, in the current cluster."""
    from actrep_ray.cluster.background import in_background
    from actrep_ray.cluster.bundles import reserve
    from actrep_ray.cluster.nodes import with_device
    from actrep_ray.learner.pool import LearnerPool
    from actrep_ray.rollout.pool import RolloutPool
    from actrep_ray.weights.sync import WeightSync

    base = resolve_model(recipe.model.path) if recipe.sends_adapters else model
    bundles = reserve(with_device(recipe))  # all or none, before engines take the room
    if shares_bundles(recipe):
        return start_turns(recipe, model, base, bundles)
    rollouts = RolloutPool.launch(recipe, base)  # before reward workers, which fit in anywhere
    engines = in_background(rollouts.finish_launch)
    steps = recipe.train.num_steps
    learners = in_background(partial(LearnerPool.start, recipe, model, steps, bundles))
    rewards = RewardPool.start(recipe)
    engines.result()
    sync = WeightSync(learners.result(), rollouts)
    return Pools(rollouts, rewards, learners.result(), sync)


def start_turns(recipe: Recipe, model: Path, base: Path, bundles: "PlacementGroup") -> Pools:
    """As `start_pools`, one after the other: an engine measures the memory that it finds free."""
    from actrep_ray.learner.pool import LearnerPool
    from actrep_ray.rollout.pool import RolloutPool
    from actrep_ray.weights.sync import WeightSync

    rewards = RewardPool.start(recipe)
    rollouts = RolloutPool.start(recipe, base, bundles=bundles)
    with rollouts.asleep():
        learners = LearnerPool.start(recipe, model, recipe.train.num_steps, bundles)
    return Pools(rollouts, rewards, learners, WeightSync(learners, rollouts))


class GrpoDriver:
    """One run over started pools.

    Args:
        recipe: Settings.
        pools: Workers.
        data: Clips.
        inputs: Of the model that is trained.
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
        self.size = recipe.train.prompts_per_step
        self.pools = pools
        self.data = data
        self.inputs = inputs
        self.start = start
        self.timeline = pools.rollouts.timeline
        self.sampler = CountSampler(data.train, recipe.sampling, seed=recipe.seed)
        self.settings = training_settings(recipe)
        self.contrast = recipe.algorithm.temporal_contrast
        self.store = CheckpointStore(recipe.run_dir, keep=recipe.checkpoint.keep)

    def run(self) -> Checkpoint:
        """All steps that are left; returns the last checkpoint."""
        cfg, last = self.recipe, self.start
        step, end = self.restore(), self.recipe.train.num_steps
        self.pools.weight_sync.push(step)
        with MetricLogger(cfg.run_dir, purge_after_step=step or -1, num_steps=end) as logger:
            if step == 0:
                self.log_start(logger)
            while step < end:
                step += 1
                groups, labels, metrics = self.collect(step, logger)
                groups = compute_advantages(groups, cfg.algorithm, cfg.reward.part_weights)
                trainable, dropped = split_trainable(groups, cfg.train.pass_rate_window)
                self.prefetch()
                with logger.timer("learn"):
                    metrics |= self.update(trainable, step)
                with logger.timer("sync"):
                    metrics |= self.pools.weight_sync.push(step)
                self.pools.rollouts.grow()
                metrics |= rollout_metrics(groups, trainable, dropped, labels, step)
                if is_due(cfg.eval.every, step, end):
                    with logger.timer("evaluate"):
                        metrics |= self.evaluate(step)
                if is_due(cfg.checkpoint.every or end, step, end):
                    with logger.timer("checkpoint"):
                        last = self.save(step)
                log_details(logger, step, groups, trainable, labels)
                logger.log(step, metrics)
        assert last is not None, "no step was left to do and no checkpoint exists"
        return last

    def restore(self) -> int:
        """Load what the checkpoint holds beside the weights; returns its step."""
        if self.start is None:
            return 0
        self.pools.learners.load_state(self.start.learner_folder)
        self.sampler.load_state_dict(self.start.driver_state()["sampler"])
        return self.start.step

    def log_start(self, logger: MetricLogger) -> None:
        """What the set is like before sampling, and how well the start counts."""
        logger.histogram(0, "data/counts", [clip.count for clip in self.data.train])
        shares = ", ".join(
            f"{name}: {number} ({self.sampler.weights.get(name, 0.0):.0%})"
            for name, number in self.sampler.num_clips.items()
        )
        get_console().print(f"clips by count (share of the draws): {shares}", highlight=False)
        metrics = {f"data/{name}": float(n) for name, n in self.sampler.num_clips.items()}
        if self.recipe.eval.every:
            metrics |= self.evaluate(0)
        logger.log(0, metrics)

    def collect(
        self, step: int, logger: MetricLogger
    ) -> tuple[list[RolloutGroup], dict[str, Labels], dict[str, float]]:
        """The scored groups of a step, the labels of their clips, and how fast they came.

        Dynamic sampling: a group that will be dropped is followed by another of its stratum, until
        none is left to replace or `train.max_refill_factor` is used up.
        """
        cfg = self.recipe.train
        groups: list[RolloutGroup] = []
        prompts, labels = self.issue(step)
        num_left = int(cfg.max_refill_factor * len(prompts))
        seconds = 0.0
        while prompts:
            with logger.timer("rollout"):
                began = time.perf_counter()
                answered = self.generate(prompts)
                seconds += time.perf_counter() - began
            with logger.timer("reward"):
                answered = self.score(answered, labels)
            groups += answered
            failed = [g for g in answered if drop_reason(g, cfg.pass_rate_window)][:num_left]
            num_left -= len(failed)
            prompts = self.refill(step, len(groups), [g.prompt for g in failed], labels)
        num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        return groups, labels, {"rollout/tokens_per_s": num_tokens / seconds}

    def generate(self, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """The groups of some prompts, with answers about shuffled frames if the recipe says so."""
        if self.contrast.weight == 0:
            return self.pools.rollouts.generate(prompts, self.settings)
        return generate_pairs(self.pools.rollouts, prompts, self.settings)

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]
    ) -> list[RolloutGroup]:
        """The groups with their rewards."""
        with self.timeline.span("reward", "workers", "score"):
            if self.contrast.weight == 0:
                return self.pools.rewards.score(groups, labels)
            return score_pairs(self.pools.rewards, groups, labels, self.contrast)

    def issue(self, step: int) -> tuple[list[Prompt], dict[str, Labels]]:
        """The prompts of a step, drawn by Random Count Sampling, and the labels of their clips.

        Labels are of the clips as issued: a crop has a count of its own.
        """
        drawn = self.sampler.take(self.size)
        prompts = [self.prompt(f"{step:06d}-{i:04d}", sampled) for i, sampled in enumerate(drawn)]
        return prompts, labels_of([sampled.clip for sampled in drawn])

    def refill(
        self, step: int, first: int, failed: Sequence[Prompt], labels: dict[str, Labels]
    ) -> list[Prompt]:
        """A prompt of the same stratum for each of those that failed; their labels are added.

        Args:
            step: Of the loop.
            first: Number of the first new prompt within the step.
            failed: Whose groups are dropped.
            labels: By clip id; those of the new clips are added.
        """
        prompts = []
        for i, old in enumerate(failed, start=first):
            [sampled] = self.sampler.take_from(old.stratum, 1)
            labels |= labels_of([sampled.clip])
            prompts.append(self.prompt(f"{step:06d}-{i:04d}", sampled, attempt=old.attempt + 1))
        return prompts

    def prefetch(self) -> None:
        """Have the clips of the next step decoded meanwhile."""
        drawn = self.sampler.peek(self.size)
        plans = [self.inputs.plan(sampled.clip, self.recipe.video) for sampled in drawn]
        self.pools.rollouts.prefetch(plans)

    def update(self, groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
        """One learner step, or none if there is nothing to learn from.

        Raises:
            LogProbGapError: if rollout and learner do not compute the same policy.
        """
        if not groups:
            return {}
        turn = self.pools.rollouts.asleep()  # where engines and ranks share a GPU
        with turn, self.timeline.span("learner", "ranks", "update"):
            metrics = self.pools.learners.update([row_of(group) for group in groups], step)
        if all(r.policy_version == step - 1 for group in groups for r in group.rollouts):
            check_log_prob_gap(metrics["log_prob_gap_mean"], self.recipe)  # same weights
        return {f"learner/{name}": value for name, value in metrics.items()}

    def evaluate(self, step: int) -> dict[str, float]:
        """Count the evaluation clips greedily and score the answers."""
        path = self.recipe.run_dir / f"predictions-{step:06d}.jsonl"
        metrics = evaluate(
            self.data.evaluation, self.pools.rollouts, self.inputs, self.recipe, path
        )
        return metrics.as_dict("eval")

    def save(self, step: int) -> Checkpoint:
        """Write a checkpoint of this step."""
        state = {"sampler": self.sampler.state_dict()}
        return self.store.write(step, self.recipe, state, self.pools.learners)

    def prompt(self, prompt_id: str, sampled: SampledClip, attempt: int = 0) -> Prompt:
        """What is asked about a drawn clip; the clip's id is added to the prompt's."""
        clip = sampled.clip
        return Prompt(
            prompt_id=f"{prompt_id}-{clip.id}",
            clip_id=clip.id,
            question=question_for(clip, self.recipe),
            plan=self.inputs.plan(clip, self.recipe.video),
            stratum=sampled.stratum,
            attempt=attempt,
        )


def drop_reason(group: RolloutGroup, window: tuple[float, float] | None = None) -> str | None:
    """Why a scored group is not trained on; None if it is.

    A group whose answers all earned the same has advantages of zero: it says nothing about which
    answer is better and would only cost time. `all_wrong` and `all_right` tell a task that is too
    hard from one that is too easy. `too_hard` and `too_easy` are outside of the window.

    Args:
        group: With rewards.
        window: Lowest and highest mean reward that is trained on (`train.pass_rate_window`).
    """
    if group.failure:  # the reward pool counts these against reward.max_failures
        return group.failure
    low, high = group.rewards.min(), group.rewards.max()
    if not high - low > 1e-6:
        if low <= 1e-6:
            return "all_wrong"
        return "all_right" if low >= 1.0 - 1e-6 else "all_equal"
    if window is not None:
        mean = float(group.rewards.mean())
        if mean < window[0]:
            return "too_hard"
        if mean > window[1]:
            return "too_easy"
    return None


def split_trainable(
    groups: Sequence[RolloutGroup], window: tuple[float, float] | None = None
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Groups that are trained on, and how many are not, by `drop_reason`."""
    reasons = [drop_reason(group, window) for group in groups]
    trainable = [group for group, reason in zip(groups, reasons, strict=True) if reason is None]
    return trainable, Counter(reason for reason in reasons if reason is not None)


def row_of(group: RolloutGroup) -> LearnerRow:
    """A group as the learner trains on it."""
    return LearnerRow(
        row_id=group.prompt.prompt_id,
        question=group.prompt.question,
        plan=group.prompt.plan,
        num_prompt_tokens=group.num_prompt_tokens,
        responses=tuple(rollout.token_ids for rollout in group.rollouts),
        advantages=group.advantages,
        rollout_log_probs=tuple(rollout.rollout_log_probs for rollout in group.rollouts),
        rewards=group.rewards,
        is_truncated=np.array([r.status is RolloutStatus.TRUNCATED for r in group.rollouts]),
    )


def check_log_prob_gap(gap: float, recipe: Recipe) -> None:
    """Stop a run whose learner computes other log-probabilities than its engine sampled with."""
    limit = recipe.train.max_log_prob_gap
    is_bad = not gap <= limit  # a NaN is bad too
    if recipe.train.on_log_prob_gap == "log" or recipe.model.dtype != "float32" or not is_bad:
        return
    raise LogProbGapError(
        f"rollout and learner disagree: the mean |log-prob difference| of sampled tokens is "
        f"{gap:.3g}, above train.max_log_prob_gap={limit:g}. The update would follow a policy that "
        "did not sample these answers. Usual causes: weights that did not reach the engine, frames "
        "or positions that differ, top_p below 1 or another temperature. Set "
        "train.on_log_prob_gap=log to go on all the same."
    )


def rollout_metrics(
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    dropped: Counter[str],
    labels: Mapping[str, Labels],
    step: int,
) -> dict[str, float]:
    """What a step's answers were like: rewards, counting accuracy, lengths, ages.

    `sampling/<stratum>` is how many groups were issued, `trained/<stratum>` how many were trained
    on: dynamic sampling keeps the second in the proportions of the first draw.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = np.concatenate([group.rewards for group in groups])
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    ages = [step - 1 - rollout.policy_version for rollout in rollouts]
    metrics = {
        "reward/mean": np.nanmean(rewards),  # NaN where scoring failed
        "reward/std_in_group": np.nanmean([group.rewards.std() for group in groups]),
        **_accuracy(groups, labels),
        "rollout/response_tokens": lengths.mean(),
        "rollout/response_tokens_max": lengths.max(),
        "rollout/truncated": np.mean([r.status is RolloutStatus.TRUNCATED for r in rollouts]),
        "rollout/policy_version_lag": np.mean(ages),
        "dropped/groups": dropped.total(),
    }
    for name in groups[0].reward_parts:
        values = np.concatenate([group.reward_parts[name] for group in groups])
        if not np.isnan(values).all():
            metrics[f"reward/{name}"] = np.nanmean(values)
    metrics |= {f"dropped/{reason}": number for reason, number in dropped.items()}
    metrics |= contrast_metrics(groups, labels)
    metrics["sampling/refilled"] = sum(group.prompt.attempt > 0 for group in groups)
    issued = Counter(group.prompt.stratum for group in groups)
    trained = Counter(group.prompt.stratum for group in trainable)
    metrics |= {f"sampling/{stratum}": number for stratum, number in issued.items()}
    metrics |= {f"trained/{stratum}": trained[stratum] for stratum in issued}
    return {name: float(value) for name, value in metrics.items()}


def _accuracy(groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]) -> dict[str, float]:
    """How right the answers were that could be scored."""
    pairs = [(c, labels[group.prompt.clip_id].count) for group in groups for c in group.counts]
    if not pairs:
        return {}
    errors = np.array([abs((count or 0) - truth) for count, truth in pairs])
    is_parsed = np.array([count is not None for count, _ in pairs])
    return {
        "train/mae": float(np.mean(errors / (np.array([truth for _, truth in pairs]) + 0.1))),
        "train/obo": float(np.mean(is_parsed & (errors <= 1))),
        "train/obz": float(np.mean(is_parsed & (errors == 0))),
        "train/parse_rate": float(is_parsed.mean()),
    }


def log_details(
    logger: MetricLogger,
    step: int,
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    labels: Mapping[str, Labels],
) -> None:
    """The counts that were issued and those that were trained on; the first answers as text."""
    for key, some in (("sampling/counts", groups), ("trained/counts", trainable)):
        if some:
            logger.histogram(step, key, [labels[group.prompt.clip_id].count for group in some])
    for i, group in enumerate(groups[:_NUM_LOGGED_ROLLOUTS]):
        rollout, label = group.rollouts[0], labels[group.prompt.clip_id]
        head = f"{rollout.rollout_id}: true count {label.count}, reward {group.rewards[0]:.3f}"
        logger.text(step, f"rollout/{i}", f"{head}\n\n{rollout.text}")
