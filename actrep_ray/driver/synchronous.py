"""The synchronous GRPO loop: prompts, answers, rewards, update, new weights; one after the other.

sampler ─ prompts ─► RolloutPool ─ groups ─► RewardPool ─ scored ─► advantages ─ rows ─┐
   ▲                     ▲                                                             ▼
   └── next step ────────┴────────── WeightSync, policy_version = step ◄──────── LearnerPool
"""

import time
from collections import Counter

from actrep_ray.driver.groups import drop_reason, with_failures
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
            while step < phases.num_steps and not phases.is_over:
                step += 1
                with phases.abandoning():
                    groups, labels, metrics, refused = self.collect(step, logger)
                trainable, dropped = phases.split_trainable(groups)
                dropped += refused
                phases.alarm.look(step, groups, len(trainable), dropped)
                trainable = phases.assign_advantages(trainable, labels)
                phases.prefetch()
                with logger.timer("learn"):
                    metrics |= phases.update(trainable, step)
                with logger.timer("sync"):
                    metrics |= phases.push(step)
                phases.pools.rollouts.grow()
                metrics |= rollout_metrics(groups, trainable, dropped, labels, step, phases.task)
                metrics |= phases.decline.look(step, metrics, groups, labels)
                if phases.is_evaluation_due(step):
                    with logger.timer("evaluate"):
                        metrics |= phases.evaluate(step)
                metrics |= phases.checkpoints.look() | phases.losses()
                log_details(logger, step, groups, trainable, labels, phases.task)
                # before the checkpoint: a run goes on from one, and its rows must be there
                logger.log(step, metrics)
                is_best = phases.best.look(step, metrics)
                if phases.is_save_due(step, is_best=is_best):
                    with logger.timer("checkpoint"):
                        phases.checkpoints.save(step, phases.state(), is_best=is_best)
                phases.checkpoints.reached(step, phases.state())
        phases.tell_end()
        phases.alarm.end_run()
        return phases.checkpoints.last

    def collect(
        self, step: int, logger: MetricLogger
    ) -> tuple[list[RolloutGroup], dict[str, Reference], dict[str, float], Counter[str]]:
        """The scored groups of a step, the labels of their clips, and how fast they came.

        Dynamic sampling: a group that will be dropped is followed by another of its stratum, until
        none is left to replace or `train.max_refill_factor` is used up. Likewise a prompt whose
        clip cannot be used, without a limit but that of the quarantine; the last of what is
        returned says how many there were, by reason.
        """
        phases, cfg = self.phases, self.phases.recipe.train
        groups: list[RolloutGroup] = []
        prompts, labels = phases.issue(step)
        num_left = int(cfg.max_refill_factor * len(prompts))
        num_asked, refused, seconds = 0, Counter[str](), 0.0
        while prompts:
            num_asked += len(prompts)
            with logger.timer("rollout"):
                began = time.perf_counter()
                answered, unanswered = phases.source.generate(prompts)
                seconds += time.perf_counter() - began
            with logger.timer("reward"):
                answered = phases.score(answered, labels)
            groups += answered
            failed = [g for g in answered if drop_reason(g, phases.recipe)][:num_left]
            num_left -= len(failed)
            refused += phases.put_aside(unanswered, step)
            again = [group.prompt for group in failed] + [one.prompt for one in unanswered]
            if not again:  # the batch is there, if the ranks can read it
                unread = phases.unreadable(groups)
                phases.put_aside(unread, step)
                groups = with_failures(groups, unread)
                again = [one.prompt for one in unread]
            prompts, added = phases.refill(step, num_asked, again)
            labels |= added
        num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        return groups, labels, {"rollout/tokens_per_s": num_tokens / seconds}, refused
