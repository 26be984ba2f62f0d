"""The synchronous GRPO loop: prompts, answers, rewards, update, new weights; one after the other.

sampler ─ prompts ─► RolloutPool ─ groups ─► RewardPool ─ scored ─► advantages ─ rows ─┐
   ▲                     ▲                                                             ▼
   └── next step ────────┴────────── WeightSync, policy_version = step ◄──────── LearnerPool
"""

import time

from actrep_ray.driver.groups import drop_reason
from actrep_ray.driver.metrics import log_details, rollout_metrics
from actrep_ray.driver.phases import Phases
from actrep_ray.records import RolloutGroup
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.metrics import MetricLogger
from rewards.reference import Reference


class SynchronousDriver:
    """Takes one phase after the other.

    Args:
        phases: What is done in a step.
    """

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    def run(self) -> Checkpoint:
        """Take all steps that are left; returns the last checkpoint."""
        phases = self.phases
        step = phases.restore()
        phases.push(step)
        with phases.stop, phases.open_log(step) as logger, phases.checkpoints:
            if step == 0:
                phases.log_start(logger)
            while step < phases.num_steps and not phases.alarm.has_rung:
                step += 1
                with phases.abandoning():
                    groups, labels, metrics = self.collect(step, logger)
                trainable, dropped = phases.split_trainable(groups)
                phases.alarm.look(step, groups, len(trainable), dropped)
                trainable = phases.assign_advantages(trainable)
                phases.prefetch()
                with logger.timer("learn"):
                    metrics |= phases.update(trainable, step)
                with logger.timer("sync"):
                    metrics |= phases.push(step)
                phases.pools.rollouts.grow()
                metrics |= rollout_metrics(groups, trainable, dropped, labels, step, phases.task)
                if phases.is_evaluation_due(step):
                    with logger.timer("evaluate"):
                        metrics |= phases.evaluate(step)
                if phases.checkpoints.is_due(step) or phases.alarm.has_rung:
                    with logger.timer("checkpoint"):
                        phases.save(step)
                metrics |= phases.checkpoints.look()
                log_details(logger, step, groups, trainable, labels, phases.task)
                logger.log(step, metrics)
                phases.checkpoints.reached(step, phases.state())
        phases.alarm.end_run()
        return phases.checkpoints.last

    def collect(
        self, step: int, logger: MetricLogger
    ) -> tuple[list[RolloutGroup], dict[str, Reference], dict[str, float]]:
        """The scored groups of a step, the labels of their clips, and how fast they came.

        Dynamic sampling: a group that will be dropped is followed by another of its stratum, until
        none is left to replace or `train.max_refill_factor` is used up.
        """
        phases, cfg = self.phases, self.phases.recipe.train
        groups: list[RolloutGroup] = []
        prompts, labels = phases.issue(step)
        num_left = int(cfg.max_refill_factor * len(prompts))
        seconds = 0.0
        while prompts:
            with logger.timer("rollout"):
                began = time.perf_counter()
                answered = phases.source.generate(prompts)
                seconds += time.perf_counter() - began
            with logger.timer("reward"):
                answered = phases.score(answered, labels)
            groups += answered
            failed = [g for g in answered if drop_reason(g, phases.recipe)][:num_left]
            num_left -= len(failed)
            prompts, added = phases.refill(step, len(groups), [group.prompt for group in failed])
            labels |= added
        num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        return groups, labels, {"rollout/tokens_per_s": num_tokens / seconds}
