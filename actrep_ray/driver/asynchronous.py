"""The asynchronous GRPO loop: rollout, reward and learning go on at the same time.

    main thread     sampler ─ issue ─► RolloutPool ─ groups ──┐   ┌► places ─ batch_of ─► settle
                      ▲                                       ▼   │             │
    thread (score)    │                                     RewardPool          ▼
    thread (update)   │                                                    LearnerPool
    main thread       └── policy_version = step ◄── WeightSync ◄── weights ─────┘

    issue waits for a version in the engines that is new enough (below); batch_of for enough
    complete places, and for all that would get too old.

The main thread owns all state. Whenever it waits, it handles what arrives meanwhile: groups go to
scoring, scored ones are kept or replaced. The two threads only sit out a call to a pool. Every wait
has the deadline of the pool that it is for.

A place is one of the `prompts_per_step` of a step; it holds a group, and another one if that is
dropped and refilled. With max_staleness = s:

- Places are issued in order, those of step t not before version t - 1 - s is in the engines. This
  is the only brake: nothing that was generated is thrown away because it is late.
- Step t trains the first complete places, but every place that was issued at version t - 1 - s or
  before must be among them, and is waited for. As at most t * prompts_per_step places can have been
  issued at such a version, they always fit. So no group lags more than s versions.
- With s = 0 step t is made of exactly the places issued for it: the synchronous loop.

A group is trained on, dropped for a reason, or in flight: `Ledger` holds the law, and a checkpoint
the places in flight, so that a resumed run asks them again and no others twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from actrep_ray.cluster.background import in_background
from actrep_ray.driver.contrast import submit_pairs
from actrep_ray.driver.sampling import SampledClip
from actrep_ray.driver.synchronous import (
    GrpoDriver,
    drop_reason,
    log_details,
    rollout_metrics,
    split_trainable,
)
from actrep_ray.learner.loss.algorithms import compute_advantages
from actrep_ray.records import Labels, Prompt, RolloutGroup
from actrep_ray.run.checkpoint import Checkpoint, is_due
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.tasks.clips import labels_of
from data_prep.schema import parse_clip

T = TypeVar("T")
_MARGIN_S = 60.0  # of a wait for a call that has a deadline of its own


@dataclass
class Ledger:
    """What became of every group that was issued.

    Attributes:
        issued: Groups that were asked for, refills included.
        trained: That a learner step was taken on.
        dropped: That were not, by reason.
    """

    issued: int = 0
    trained: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def check(self, num_in_flight: int) -> None:
        """issued = trained + dropped + in flight; anything else is a bug."""
        assert self.issued == self.trained + self.dropped.total() + num_in_flight, (
            f"{self.issued} groups were issued, but {self.trained} trained on, "
            f"{dict(self.dropped)} dropped and {num_in_flight} in flight"
        )


@dataclass(eq=False)
class Place:
    """One of the prompts of a step, from its issue until a step has been taken on it.

    Attributes:
        number: In the order of issue, from 0 on over the whole run.
        sampled: The clip that is asked about, the latest one if it was refilled.
        round: How often it was refilled.
        policy_version: Version in the engines when it was last issued.
        prompt: What was asked last.
        groups: Scored groups, all but the last of them dropped.
        num_issued: Groups that were asked for and are not in the ledger as trained or dropped.
        is_complete: Whether the last group is there and will not be replaced.
    """

    number: int
    sampled: SampledClip
    round: int = 0
    policy_version: int = 0
    prompt: Prompt | None = None
    groups: list[RolloutGroup] = field(default_factory=list)
    num_issued: int = 0
    is_complete: bool = False


class AsyncGrpoDriver(GrpoDriver):
    """The loop that does not take turns; what it is given is what `GrpoDriver` is given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self.recipe.train.max_staleness is not None, "train.max_staleness is not set"
        self.max_staleness = self.recipe.train.max_staleness
        self.mailbox = self.pools.rollouts.mailbox
        self.groups_per_place = 2 if self.contrast.weight else 1
        self.ledger = Ledger()
        self.version = 0  # in the engines
        self.num_batches = 0  # issued
        self.places: list[Place] = []  # in flight, in the order of issue
        self.labels: dict[str, Labels] = {}
        self.num_refilled = Counter[int]()  # by the step that the places were issued for
        self._asked: dict[str, Place] = {}  # by prompt_id, not scored yet
        self._answered: list[RolloutGroup] = []  # wait to be scored
        self._failed: list[Place] = []  # may be refilled
        self._is_scoring = False
        self._num_complete = 0
        self._is_pushing = False
        self._delivered: dict[str, float] = {}
        self._in_checkpoint: list[tuple[Place, str]] = []  # to ask again, with their ids

    def run(self) -> Checkpoint:
        """All steps that are left; returns the last checkpoint."""
        cfg, last = self.recipe, self.start
        step, end = self.restore(), self.recipe.train.num_steps
        with MetricLogger(cfg.run_dir, purge_after_step=step or -1, num_steps=end) as logger:
            self.push(step)
            self.finish_push()
            if step == 0:
                self.log_start(logger)
            while step < end:
                step += 1
                with logger.timer("wait"):
                    places = self.batch_of(step)
                groups = self.groups_of(places)
                trainable, dropped = split_trainable(groups, cfg.train.pass_rate_window)
                metrics = self.staleness_metrics(trainable, step)
                with logger.timer("learn"):
                    metrics |= self.while_working(self.update, trainable, step)
                self.settle(places, trainable, dropped)
                with logger.timer("sync"):
                    metrics |= self.push(step)
                metrics |= rollout_metrics(groups, trainable, dropped, self.labels, step)
                if is_due(cfg.eval.every, step, end):
                    with logger.timer("evaluate"):
                        self.finish_push()
                        metrics |= self.evaluate(step)
                if is_due(cfg.checkpoint.every or end, step, end):
                    with logger.timer("checkpoint"):
                        last = self.save(step)
                log_details(logger, step, groups, trainable, self.labels)
                logger.log(step, metrics)
        self.finish_push()
        self.ledger.check(self.num_in_flight)
        assert last is not None, "no step was left to do and no checkpoint exists"
        return last

    @property
    def num_in_flight(self) -> int:
        """Groups that were issued and are neither trained on nor dropped."""
        return sum(place.num_issued for place in self.places)

    # ---------------------------------------------------------------- the steps of the loop

    def push(self, step: int) -> dict[str, float]:
        """Give the engines the learners' weights, and with them leave to work ahead.

        Returns when they are there if the engines are idle until then; else at once, with the
        figures of the last delivery.
        """
        self.finish_push()
        with self.timeline.span("learner", "ranks", "export weights"):
            refs = self.while_working(self.pools.learners.export_weights_refs)
        if self.max_staleness == 0:
            metrics = self.pools.weight_sync.deliver(refs, step)
            self.version = step
            return metrics
        delivered, self._delivered = self._delivered, {}
        self._is_pushing = True
        self.pools.weight_sync.start_delivery(refs, step, partial(self._on_delivered, step))
        return delivered

    def finish_push(self) -> None:
        """Wait until every engine has the weights that were pushed last."""
        self.pools.rollouts.wait(
            lambda: not self._is_pushing, lambda: "the engines to load new weights"
        )

    def _on_delivered(self, step: int, metrics: dict[str, float]) -> None:
        self.version, self._delivered, self._is_pushing = step, metrics, False
        self.pools.rollouts.grow()
        self.issue_allowed()

    def issue_allowed(self) -> None:
        """Issue the places of every step that the version in the engines is new enough for."""
        if self._in_checkpoint:
            again, self._in_checkpoint = self._in_checkpoint, []
            self.ask([place for place, _ in again], [prompt_id for _, prompt_id in again])
        allowed = min(self.version + 1 + self.max_staleness, self.recipe.train.num_steps)
        while self.num_batches < allowed:
            drawn = self.sampler.take(self.size)
            first = self.num_batches * self.size
            self.num_batches += 1
            places = [Place(first + i, sampled) for i, sampled in enumerate(drawn)]
            self.places += places
            self.ask(places, [f"{self.num_batches:06d}-{i:04d}" for i in range(len(places))])
            if self.num_batches < self.recipe.train.num_steps:
                self.prefetch()

    def ask(self, places: Sequence[Place], ids: Sequence[str]) -> None:
        """Issue places under the given starts of prompt ids."""
        prompts = []
        for place, prompt_id in zip(places, ids, strict=True):
            place.prompt = self.prompt(prompt_id, place.sampled, place.round)
            place.policy_version = self.version
            place.num_issued += self.groups_per_place
            self._asked[place.prompt.prompt_id] = place
            self.labels |= labels_of([place.sampled.clip])
            prompts.append(place.prompt)
        self.ledger.issued += len(places) * self.groups_per_place
        if self.contrast.weight == 0:
            self.pools.rollouts.submit(prompts, self.settings, self.on_group)
        else:
            submit_pairs(self.pools.rollouts, prompts, self.settings, self.on_group)

    def batch_of(self, step: int) -> list[Place]:
        """The places that a step trains on, once they are complete; they stay in flight."""
        if not self._is_pushing:
            self.issue_allowed()
        oldest = step - 1 - self.max_staleness

        def find() -> list[Place] | None:
            if self._num_complete < self.size:
                return None
            if any(not p.is_complete and p.policy_version <= oldest for p in self.places):
                return None
            complete = [place for place in self.places if place.is_complete]
            due = sorted(complete, key=lambda p: (p.policy_version > oldest, p.number))
            return sorted(due[: self.size], key=lambda p: p.number)

        self.pools.rollouts.wait(
            lambda: find() is not None,
            lambda: f"the batch of step {step}: {self.describe_places()}",
        )
        found = find()
        assert found is not None
        assert all(p.policy_version >= oldest for p in found), f"step {step}: a place is too old"
        return found

    def groups_of(self, places: Sequence[Place]) -> list[RolloutGroup]:
        """All groups of some places with their advantages; those asked first come first."""
        pairs = [
            (number, place, group)
            for place in places
            for number, group in enumerate(place.groups, place.round + 1 - len(place.groups))
        ]
        groups = [group for _, _, group in sorted(pairs, key=lambda p: (p[0], p[1].number))]
        cfg = self.recipe
        return compute_advantages(groups, cfg.algorithm, cfg.reward.part_weights)

    def settle(
        self, places: Sequence[Place], trained: Sequence[RolloutGroup], dropped: Counter[str]
    ) -> None:
        """Enter what became of some places into the ledger and forget them."""
        self.ledger.trained += len(trained)
        self.ledger.dropped += dropped
        self.ledger.dropped += self._num_shuffled(len(place.groups) for place in places)
        gone = set(places)
        self.places = [place for place in self.places if place not in gone]
        self._num_complete -= len(gone)
        self.ledger.check(self.num_in_flight)

    def while_working(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in a thread; what arrives from the other pools is handled until it returns."""
        future = in_background(partial(function, *arguments))
        self.mailbox.post_when_done(future, lambda _: None)  # ends the wait
        limit = self.recipe.learner.timeout_s + _MARGIN_S
        what = getattr(function, "__name__", str(function))
        self.mailbox.wait(future.done, limit, lambda: f"waited {limit:g} s for `{what}`")
        return future.result()

    # ---------------------------------------------------------------- what arrives

    def on_group(self, group: RolloutGroup) -> None:
        """A group has its answers: on to scoring."""
        self._answered.append(group)
        self._score_next()

    def _score_next(self) -> None:
        """Score all that wait, in one call; the next ones gather meanwhile."""
        if self._is_scoring or not self._answered:
            return
        groups, self._answered = self._answered, []
        self._is_scoring = True
        future = in_background(partial(self._score, groups))
        self.mailbox.post_when_done(future, self._on_scored)

    def _score(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        labels = {g.prompt.clip_id: self.labels[g.prompt.clip_id] for g in groups}
        return self.score(groups, labels)

    def _on_scored(self, future: "Future[list[RolloutGroup]]") -> None:
        self._is_scoring = False
        for group in future.result():
            place = self._asked.pop(group.prompt.prompt_id)
            place.groups.append(group)
            if drop_reason(group, self.recipe.train.pass_rate_window) is None:
                self._complete(place)
            else:
                self._failed.append(place)
        # In step with the synchronous loop, which refills when all groups of a round are there.
        if self.max_staleness > 0 or not self._asked:
            self._refill()
        self._score_next()

    def _refill(self) -> None:
        """Ask another clip of its stratum for each failed place, as long as that is allowed."""
        failed = sorted(self._failed, key=lambda place: place.number)
        self._failed = []
        limit = int(self.recipe.train.max_refill_factor * self.size)
        again, ids = [], []
        for place in failed:
            batch = place.number // self.size + 1
            if self.num_refilled[batch] == limit:
                self._complete(place)
                continue
            ids.append(f"{batch:06d}-{self.size + self.num_refilled[batch]:04d}")
            self.num_refilled[batch] += 1
            [place.sampled] = self.sampler.take_from(place.sampled.stratum, 1)
            place.round += 1
            again.append(place)
        if again:
            self.ask(again, ids)

    def _complete(self, place: Place) -> None:
        place.is_complete = True
        self._num_complete += 1

    def _num_shuffled(self, num_groups: Iterable[int]) -> Counter[str]:
        """Groups of the temporal contrast beside so many others, none of which is trained on."""
        return Counter(shuffled=sum(num_groups)) if self.contrast.weight else Counter()

    # ---------------------------------------------------------------- figures

    def staleness_metrics(self, groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
        """How old the answers are that a step trains on, and how full the pipeline is."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lags = [step - 1 - rollout.policy_version for rollout in rollouts] or [0]
        assert max(lags) <= self.max_staleness, f"step {step}: a group lags {max(lags)} versions"
        return {
            "pipeline/staleness_max": float(max(lags)),
            "pipeline/stale_share": float(np.mean([lag > 0 for lag in lags])),
            "pipeline/mixed_version_share": float(
                np.mean(
                    [rollout.last_policy_version is not None for rollout in rollouts] or [False]
                )
            ),
            "pipeline/groups_in_flight": float(self.num_in_flight),
            "pipeline/places_ahead": float(self._num_complete - self.size),
            "pipeline/engines": float(self.pools.rollouts.num_workers),
        }

    def describe_places(self) -> str:
        """For the message of a wait that took too long."""
        return (
            f"{self._num_complete} of {len(self.places)} places are complete, "
            f"{len(self._asked)} wait for answers or scores, {len(self._answered)} for a reward "
            "worker"
        )

    # ---------------------------------------------------------------- saving

    def save(self, step: int) -> Checkpoint:
        """Write a checkpoint of this step, with the places in flight."""
        early = Counter(
            reason
            for place in self.places
            for group in place.groups
            if (reason := drop_reason(group, self.recipe.train.pass_rate_window))
            and place.prompt is not None
            and group.prompt.prompt_id != place.prompt.prompt_id
        )
        early += self._num_shuffled([early.total()])
        steps = {place.number // self.size + 1 for place in self.places}
        pipeline = {
            "prompts_per_step": self.size,
            "num_batches": self.num_batches,
            "groups_per_place": self.groups_per_place,
            "issued": self.ledger.issued,
            "trained": self.ledger.trained,
            "dropped": dict(self.ledger.dropped + early),
            "num_refilled": {str(n): self.num_refilled[n] for n in steps},
            "places": [_place_to_json(place) for place in self.places],
        }
        state = {"sampler": self.sampler.state_dict(), "pipeline": pipeline}
        return self.while_working(self.store.write, step, self.recipe, state, self.pools.learners)

    def restore(self) -> int:
        """Load what the checkpoint holds beside the weights; returns its step."""
        step = super().restore()
        self.version = self.num_batches = step
        saved = self.start.driver_state().get("pipeline") if self.start else None
        if saved is None:
            return step
        places = [_place_of_json(row) for row in saved["places"]]
        self.num_batches = saved["num_batches"]
        self.num_refilled = Counter({int(n): count for n, count in saved["num_refilled"].items()})
        self.ledger = Ledger(
            saved["issued"] - len(places) * saved.get("groups_per_place", 1),
            saved["trained"],
            Counter(saved["dropped"]),
        )
        self.places = places
        ids = [row["prompt_id"] for row in saved["places"]]
        self._in_checkpoint = list(zip(places, ids, strict=True))
        return step


def _place_to_json(place: Place) -> dict[str, Any]:
    assert place.prompt is not None
    clip = place.sampled.clip
    return {
        "number": place.number,
        "round": place.round,
        "prompt_id": place.prompt.prompt_id.removesuffix(f"-{clip.id}"),
        "clip": vars(clip),
        "stratum": place.sampled.stratum,
        "source_id": place.sampled.source_id,
    }


def _place_of_json(row: dict[str, Any]) -> Place:
    clip = parse_clip(row["clip"], "place in flight of the checkpoint")
    sampled = SampledClip(clip, row["stratum"], row["source_id"])
    return Place(row["number"], sampled, round=row["round"])
