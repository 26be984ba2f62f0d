"""The asynchronous GRPO loop: rollout, reward and learning go on at the same time.

    main thread     sampler ─ issue ─► RolloutPool ─ groups ──┐   ┌► slots ─ batch_of ─► settle
                      ▲                                       ▼   │             │
    thread (score)    │                                     RewardPool          ▼
    thread (update)   │                                                    LearnerPool
    main thread       └── policy_version = step ◄── WeightSync ◄── weights ─────┘

    issue waits for a version in the engines that is new enough (below); batch_of for enough
    complete slots, and for all that would get too old.

The main thread owns all state. Whenever it waits, it handles what arrives meanwhile: groups go to
scoring, scored ones are kept or replaced. The two threads only sit out a call to a pool. Every wait
has the deadline of the pool that it is for.

With max_staleness = s:

- Slots (`driver.in_flight`) are issued in order, those of step t not before version t - 1 - s is in
  the engines. This is the only brake: nothing that was generated is thrown away because it is late.
- Step t trains the first complete slots, but every slot that was issued at version t - 1 - s or
  before must be among them, and is waited for. As at most t * prompts_per_step slots can have been
  issued at such a version, they always fit. So no group lags more than s versions.
- With s = 0 step t is made of exactly the slots issued for it: the synchronous loop.

A checkpoint holds the slots in flight, so that a resumed run asks them again and no others twice.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np

from actrep_ray.cluster.background import in_background
from actrep_ray.driver.groups import drop_reason, with_failures
from actrep_ray.driver.in_flight import STATE_KEY, InFlight, Slot, refused_of
from actrep_ray.driver.metrics import log_details, rollout_metrics
from actrep_ray.driver.phases import Phases, prompt_name
from actrep_ray.records import Refusal, RolloutGroup
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.tasks.base import labels_of
from rewards.reference import Reference

T = TypeVar("T")
_MARGIN_S = 60.0  # of a wait for a call that has a deadline of its own


class AsynchronousDriver:
    """Takes no turns: engines work ahead while the learner works.

    Args:
        phases: What is done in a step.
        max_staleness: Most versions that a group may lag.

    Attributes:
        in_flight: Slots that were issued and not settled.
        version: Policy version in the engines.
        labels: What is known of the clips that were issued, by clip id.
    """

    def __init__(self, phases: Phases, max_staleness: int) -> None:
        self.phases = phases
        self.max_staleness = max_staleness
        self.rollouts = phases.pools.rollouts
        self.mailbox = self.rollouts.mailbox
        self.in_flight = InFlight(phases.prompts_per_step, phases.source.groups_per_prompt)
        self.version = 0
        self.labels: dict[str, Reference] = {}
        self._asked: dict[str, Slot] = {}  # by prompt_id, not scored yet
        self._answered: list[RolloutGroup] = []  # wait to be scored
        self._failed: list[Slot] = []  # may be refilled
        self._unusable: list[Slot] = []  # are refilled in any case
        self._is_scoring = False
        self._is_pushing = False
        self._delivered: dict[str, float] = {}  # figures of the last push
        self._to_ask_again: list[tuple[Slot, str]] = []  # in flight at the start, with their names

    def run(self) -> Checkpoint:
        """Take all steps that are left; returns the last checkpoint."""
        phases = self.phases
        step = self.restore()
        with phases.stop, phases.open_log(step) as logger, phases.checkpoints:
            self.push(step)
            self.finish_push()
            if step == 0:
                phases.log_start(logger)
            while step < phases.num_steps and not phases.is_over:
                step += 1
                with logger.timer("wait"):
                    slots = self.batch_of(step)
                groups = groups_of(slots)
                trainable, dropped = phases.split_trainable(groups)
                refused = refused_of(slots)
                phases.alarm.look(step, groups, len(trainable), dropped + refused)
                trainable = phases.assign_advantages(trainable, self.labels)
                metrics = self.staleness_metrics(trainable, step)
                with logger.timer("learn"):
                    metrics |= self.while_working("update", partial(phases.update, trainable, step))
                self.in_flight.settle(slots, len(trainable), dropped)
                with logger.timer("sync"):
                    metrics |= self.push(step)
                metrics |= rollout_metrics(
                    groups, trainable, dropped + refused, self.labels, step, phases.task
                )
                metrics |= phases.decline.look(step, metrics, groups, self.labels)
                if phases.is_evaluation_due(step):
                    with logger.timer("evaluate"):
                        self.finish_push()
                        metrics |= phases.evaluate(step)
                metrics |= phases.checkpoints.look() | phases.losses()
                log_details(logger, step, groups, trainable, self.labels, phases.task)
                # before the checkpoint: a run goes on from one, and its rows must be there
                logger.log(step, metrics)
                is_best = phases.best.look(step, metrics)
                if phases.is_save_due(step, is_best=is_best):
                    with logger.timer("checkpoint"):
                        self.save(step, is_best=is_best)
                phases.checkpoints.reached(step, self.state())
        self.finish_push()
        self.in_flight.ledger.check(self.in_flight.num_groups)
        phases.tell_end()
        phases.alarm.end_run()
        return phases.checkpoints.last

    # ---------------------------------------------------------------- the steps of the loop

    def push(self, step: int) -> dict[str, float]:
        """Give the engines the learners' weights, and with them leave to work ahead.

        Returns when they are there if the engines are idle until then; else at once, with the
        figures of the last delivery.
        """
        self.finish_push()
        sync = self.phases.pools.weight_sync
        self.rollouts.let_go_of_weights()
        refs = self.while_working("export of weights", sync.export)
        if self.max_staleness == 0:
            metrics = sync.deliver(refs, step)
            self.version = step
            return metrics
        delivered, self._delivered = self._delivered, {}
        self._is_pushing = True
        sync.start_delivery(refs, step, partial(self._on_delivered, step))
        return delivered

    def finish_push(self) -> None:
        """Wait until every engine has the weights that were pushed last."""
        self.rollouts.wait(lambda: not self._is_pushing, lambda: "the engines to load new weights")

    def _on_delivered(self, step: int, metrics: dict[str, float]) -> None:
        self.version, self._delivered, self._is_pushing = step, metrics, False
        self.rollouts.grow()
        self.issue_allowed()

    def issue_allowed(self) -> None:
        """Issue the slots of every step that the version in the engines is new enough for."""
        phases = self.phases
        if self._to_ask_again:
            again, self._to_ask_again = self._to_ask_again, []
            self.ask(again)
        allowed = min(self.version + 1 + self.max_staleness, phases.num_steps)
        while self.in_flight.num_steps_issued < allowed:
            slots = self.in_flight.open_step(phases.sampler.take(phases.prompts_per_step))
            step = self.in_flight.num_steps_issued
            self.ask([(slot, prompt_name(step, i)) for i, slot in enumerate(slots)])
            if step < phases.num_steps:
                phases.prefetch()

    def ask(self, named: Sequence[tuple[Slot, str]]) -> None:
        """Issue slots under the given names, the starts of their prompts' ids."""
        prompts = []
        for slot, name in named:
            prompt = self.phases.prompt(name, slot.sampled, slot.num_refills)
            self.in_flight.note_issue(slot, prompt, self.version)
            self._asked[prompt.prompt_id] = slot
            self.labels |= labels_of([slot.sampled.clip], self.phases.task)
            prompts.append(prompt)
        self.phases.source.submit(prompts, self.on_group, self.on_refused)

    def batch_of(self, step: int) -> list[Slot]:
        """The slots that a step trains on, once they are complete; they stay in flight.

        One that the ranks cannot read is asked again, about another clip. Of a run that is to stop,
        the wait for slots is given up; the ranks' look is not, for they are to save next.
        """
        while True:
            with self.phases.abandoning():
                slots = self._complete_slots(step)
            look = partial(self.phases.unreadable, groups_of(slots))
            unread = self.while_working("look for frames", look)
            if not unread:
                self.phases.stop.check()
                return slots
            self.phases.put_aside(unread, step)
            names = {one.prompt.prompt_id for one in unread}
            for slot in slots:
                slot.groups = with_failures(slot.groups, unread)
                if slot.groups and slot.groups[-1].prompt.prompt_id in names:
                    self.in_flight.reopen(slot)
                    self._unusable.append(slot)
            self._refill()

    def _complete_slots(self, step: int) -> list[Slot]:
        if not self._is_pushing:
            self.issue_allowed()
        oldest = step - 1 - self.max_staleness
        self.rollouts.wait(
            lambda: self.in_flight.batch(oldest) is not None,
            lambda: f"the batch of step {step}: {self.describe_work()}",
        )
        found = self.in_flight.batch(oldest)
        assert found is not None
        assert all(s.policy_version >= oldest for s in found), f"step {step}: a slot is too old"
        return found

    def while_working(self, what: str, call: Callable[[], T]) -> T:
        """Call in a thread; what arrives from the other pools is handled until it returns."""
        future = in_background(call, what)
        self.mailbox.post_when_done(future, lambda _: None)  # ends the wait
        limit = self.phases.recipe.learner.timeout_s + _MARGIN_S
        self.mailbox.wait(future.done, limit, lambda: f"waited {limit:g} s for `{what}`")
        return future.result()

    # ---------------------------------------------------------------- what arrives

    def on_group(self, group: RolloutGroup) -> None:
        """Pass a group that has its answers on to scoring."""
        self._answered.append(group)
        self._score_next()

    def on_refused(self, refusal: Refusal) -> None:
        """Quarantine the row of a prompt that cannot be answered, and have another one drawn."""
        slot = self._asked.pop(refusal.prompt.prompt_id)
        slot.refused += self.phases.put_aside([refusal], self.in_flight.step_of(slot))
        self._unusable.append(slot)
        if self.max_staleness > 0 or not self._asked:
            self._refill()

    def _score_next(self) -> None:
        """Score all that wait, in one call; the next ones gather meanwhile."""
        if self._is_scoring or not self._answered:
            return
        groups, self._answered = self._answered, []
        labels = {g.prompt.clip_id: self.labels[g.prompt.clip_id] for g in groups}
        self._is_scoring = True
        future = in_background(partial(self.phases.score, groups, labels), "score")
        self.mailbox.post_when_done(future, self._on_scored)

    def _on_scored(self, future: "Future[list[RolloutGroup]]") -> None:
        self._is_scoring = False
        for group in future.result():
            slot = self._asked.pop(group.prompt.prompt_id)
            slot.groups.append(group)
            if drop_reason(group, self.phases.recipe) is None:
                self.in_flight.complete(slot)
            else:
                self._failed.append(slot)
        # In step with the synchronous loop, which refills when all groups of a round are there.
        if self.max_staleness > 0 or not self._asked:
            self._refill()
        self._score_next()

    def _refill(self) -> None:
        """Ask another clip of its stratum for each slot that has none to train on.

        As long as that is allowed, if its group was dropped; always, if its clip cannot be used.
        """
        failed = sorted(self._failed, key=lambda slot: slot.number)
        unusable = sorted(self._unusable, key=lambda slot: slot.number)
        self._failed, self._unusable = [], []
        size, num_refilled = self.phases.prompts_per_step, self.in_flight.num_refilled
        limit = int(self.phases.recipe.train.max_refill_factor * size)
        again = []
        for slot in (*failed, *unusable):
            step = self.in_flight.step_of(slot)
            is_counted = slot not in unusable
            if is_counted and num_refilled[step] == limit:
                self.in_flight.complete(slot)
                continue
            number = size + num_refilled[step] + self.in_flight.num_replaced[step]
            again.append((slot, prompt_name(step, number)))
            counter = num_refilled if is_counted else self.in_flight.num_replaced
            counter[step] += 1
            [slot.sampled] = self.phases.sampler.take_from(slot.sampled.stratum, 1)
            slot.num_refills += 1
        if again:
            self.ask(again)

    # ---------------------------------------------------------------- figures

    def staleness_metrics(self, groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
        """How old the answers are that a step trains on, and how full the pipeline is."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lags = [step - 1 - rollout.policy_version for rollout in rollouts] or [0]
        mixed = [rollout.last_policy_version is not None for rollout in rollouts] or [False]
        num_ahead = self.in_flight.num_complete - self.phases.prompts_per_step
        assert max(lags) <= self.max_staleness, f"step {step}: a group lags {max(lags)} versions"
        return {
            "pipeline/staleness_max": float(max(lags)),
            "pipeline/stale_share": float(np.mean([lag > 0 for lag in lags])),
            "pipeline/mixed_version_share": float(np.mean(mixed)),
            "pipeline/groups_in_flight": float(self.in_flight.num_groups),
            "pipeline/slots_ahead": float(num_ahead),
            "pipeline/engines": float(self.rollouts.num_workers),
        }

    def describe_work(self) -> str:
        """What the slots in flight wait for, for the message of a wait that took too long."""
        return (
            f"{self.in_flight.num_complete} of {len(self.in_flight.slots)} slots are complete, "
            f"{len(self._asked)} wait for answers or scores, {len(self._answered)} for a reward "
            "worker"
        )

    # ---------------------------------------------------------------- saving

    def save(self, step: int, *, is_best: bool) -> None:
        """Begin to write a checkpoint of this step, with the slots in flight."""
        save = self.phases.checkpoints.save
        self.while_working("save", partial(save, step, self.state(), is_best=is_best))

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on, as JSON-able values; between two steps."""
        return self.phases.state() | {STATE_KEY: self.in_flight.state(self._gone_of)}

    def _gone_of(self, slot: Slot) -> Counter[str]:
        """What of a slot was refused, or dropped and replaced, by reason."""
        return slot.refused + Counter(
            reason
            for group in slot.groups
            if (reason := drop_reason(group, self.phases.recipe))
            and slot.prompt is not None
            and group.prompt.prompt_id != slot.prompt.prompt_id
        )

    def restore(self) -> int:
        """Load what the checkpoint holds beside the weights; returns its step."""
        step, start = self.phases.restore(), self.phases.checkpoints.start
        self.version = self.in_flight.num_steps_issued = step
        saved = start.driver_state().get(STATE_KEY) if start else None
        if saved is not None:
            self._to_ask_again = self.in_flight.load_state(saved)
        return step


def groups_of(slots: Sequence[Slot]) -> list[RolloutGroup]:
    """All groups of some slots; those asked first come first."""
    triples = [
        (group.prompt.num_refills, slot.number, group) for slot in slots for group in slot.groups
    ]
    return [group for _, _, group in sorted(triples, key=lambda triple: triple[:2])]
