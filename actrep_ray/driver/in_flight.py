"""What an asynchronous run has issued and not settled: its books, and their form in a checkpoint.

A slot is one of the `prompts_per_step` of a step, from its issue until a step has been taken on it;
it holds a group, and another one if that is dropped and refilled. A group is trained on, dropped
for a reason, or in flight.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.driver.dealing import SampledClip
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.run.checkpoint import Checkpoint
from data_prep.rows import Row, parse_row

STATE_KEY = "pipeline"  # in a checkpoint's driver.json


@dataclass
class Ledger:
    """What became of every group that was issued.

    Attributes:
        issued: Groups that were asked for, refills included.
        trained: Groups that a learner step was taken on.
        dropped: Groups that none was taken on, by reason.
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
class Slot:
    """One of the prompts of a step, in flight.

    Attributes:
        number: Position in the order of issue, from 0 on over the whole run.
        sampled: The clip that is asked about, the latest one if it was refilled.
        num_refills: How often it was refilled.
        policy_version: Version in the engines when it was last issued.
        prompt: What was asked last; None until it was.
        groups: Scored groups, all but the last of them dropped.
        refused: Prompts that could not be answered, by reason; of a slot from a checkpoint, also
            the groups that were dropped before it was written.
        num_issued: Groups that were asked for and are not in the ledger as trained or dropped.
        is_complete: Whether the last group is there and will not be replaced.
    """

    number: int
    sampled: SampledClip[Row]
    num_refills: int = 0
    policy_version: int = 0
    prompt: Prompt | None = None
    groups: list[RolloutGroup] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    num_issued: int = 0
    is_complete: bool = False


class InFlight:
    """The slots in flight and the ledger of what is not any more.

    Args:
        prompts_per_step: Slots of a step.
        groups_per_prompt: Groups that are asked for with each prompt; all but one are a temporal
            contrast, on which nothing is trained.
    """

    def __init__(self, prompts_per_step: int, groups_per_prompt: int) -> None:
        self.prompts_per_step = prompts_per_step
        self.groups_per_prompt = groups_per_prompt
        self.ledger = Ledger()
        self.slots: list[Slot] = []  # in the order of issue
        self.num_complete = 0
        self.num_steps_issued = 0
        self.num_refilled = Counter[int]()  # by the step that the slots were issued for
        self.num_replaced = Counter[int]()  # likewise, refills whose clip could not be used

    @property
    def num_groups(self) -> int:
        """Groups that were issued and are neither trained on nor dropped."""
        return sum(slot.num_issued for slot in self.slots)

    def step_of(self, slot: Slot) -> int:
        """The step that a slot was issued for."""
        return slot.number // self.prompts_per_step + 1

    def open_step(self, drawn: Sequence[SampledClip[Row]]) -> list[Slot]:
        """Slots for the clips of the next step that has none."""
        first = self.num_steps_issued * self.prompts_per_step
        self.num_steps_issued += 1
        slots = [Slot(first + i, sampled) for i, sampled in enumerate(drawn)]
        self.slots += slots
        return slots

    def note_issue(self, slot: Slot, prompt: Prompt, policy_version: int) -> None:
        """Enter that a slot's prompt was given to the engines."""
        slot.prompt, slot.policy_version = prompt, policy_version
        slot.num_issued += self.groups_per_prompt
        self.ledger.issued += self.groups_per_prompt

    def complete(self, slot: Slot) -> None:
        """Enter that a slot's last group is there and stays."""
        slot.is_complete = True
        self.num_complete += 1

    def reopen(self, slot: Slot) -> None:
        """Enter that a slot's last group, which was to stay, is replaced after all."""
        slot.is_complete = False
        self.num_complete -= 1

    def batch(self, oldest: int) -> list[Slot] | None:
        """The slots that a step trains on, in the order of issue; None while any is waited for.

        Args:
            oldest: Every slot that was issued at this policy version or before must be among them.
        """
        if self.num_complete < self.prompts_per_step:
            return None
        if any(not slot.is_complete and slot.policy_version <= oldest for slot in self.slots):
            return None
        complete = [slot for slot in self.slots if slot.is_complete]
        due = sorted(complete, key=lambda slot: (slot.policy_version > oldest, slot.number))
        return sorted(due[: self.prompts_per_step], key=lambda slot: slot.number)

    def settle(self, slots: Sequence[Slot], num_trained: int, dropped: Counter[str]) -> None:
        """Enter what became of complete slots into the ledger and forget them."""
        self.ledger.trained += num_trained
        refused = refused_of(slots)
        num_groups = sum(len(slot.groups) for slot in slots)
        self.ledger.dropped += dropped + refused
        self.ledger.dropped += self._contrasts(num_groups + refused.total())
        gone = set(slots)
        self.slots = [slot for slot in self.slots if slot not in gone]
        self.num_complete -= len(gone)
        self.ledger.check(self.num_groups)

    def state(self, early: Callable[[Slot], Counter[str]]) -> dict[str, Any]:
        """What `load_state` needs to ask the slots in flight again, as JSON-able values.

        Args:
            early: What of a slot was refused, or dropped and replaced, by reason: it will not be
                asked again, and is told in the step that the slot is trained in.
        """
        steps = {self.step_of(slot) for slot in self.slots}
        return {
            "prompts_per_step": self.prompts_per_step,
            "num_batches": self.num_steps_issued,
            "groups_per_place": self.groups_per_prompt,
            "issued": self.ledger.issued,
            "trained": self.ledger.trained,
            "dropped": dict(self.ledger.dropped),
            "num_refilled": {str(step): self.num_refilled[step] for step in steps},
            "num_replaced": {str(step): n for step in steps if (n := self.num_replaced[step])},
            "places": [_slot_to_json(slot, early(slot)) for slot in self.slots],
        }

    def load_state(self, state: dict[str, Any]) -> list[tuple[Slot, str]]:
        """Go on where `state` was given; returns the slots to ask again, with their names."""
        rows = state["places"]
        self.slots = [_slot_of_json(row) for row in rows]
        self.num_steps_issued = state["num_batches"]
        self.num_refilled = Counter({int(n): count for n, count in state["num_refilled"].items()})
        replaced = state.get("num_replaced", {})
        self.num_replaced = Counter({int(n): count for n, count in replaced.items()})
        num_groups = state.get("groups_per_place", 1)
        for slot in self.slots:
            slot.num_issued = num_groups * slot.refused.total()
        num_asked_again = len(self.slots) * num_groups
        self.ledger = Ledger(
            state["issued"] - num_asked_again, state["trained"], Counter(state["dropped"])
        )
        return [(slot, row["prompt_id"]) for slot, row in zip(self.slots, rows, strict=True)]

    def _contrasts(self, num_groups: int) -> Counter[str]:
        """Groups of the temporal contrast beside so many others."""
        return Counter(shuffled=(self.groups_per_prompt - 1) * num_groups)


def refused_of(slots: Iterable[Slot]) -> Counter[str]:
    """Prompts of some slots that could not be answered, by reason."""
    refused = Counter[str]()
    for slot in slots:
        refused += slot.refused
    return refused


def check_in_flight(recipe: Recipe, start: Checkpoint) -> None:
    """Refuse to lose the prompts that a checkpoint of an asynchronous run has in flight.

    Raises:
        ConfigError: if these settings could not have issued them.
    """
    state = start.driver_state().get(STATE_KEY, {})
    num_slots, size = len(state.get("places", ())), state.get("prompts_per_step", 1)
    if not num_slots:
        return
    staleness = recipe.train.max_staleness
    num_allowed = 0 if staleness is None else (1 + staleness) * size
    if recipe.train.prompts_per_step != size or num_slots > num_allowed:
        raise ConfigError(
            f"{start.folder}: {num_slots} prompts are in flight, issued with "
            f"train.prompts_per_step={size}: go on with that value and with train.max_staleness "
            f"of at least {-(-num_slots // size) - 1}"
        )


def _slot_to_json(slot: Slot, gone: Counter[str]) -> dict[str, Any]:
    assert slot.prompt is not None
    clip = slot.sampled.clip
    return {
        "number": slot.number,
        "round": slot.num_refills,
        "prompt_id": slot.prompt.prompt_id.removesuffix(f"-{clip.id}"),
        "clip": json.loads(clip.to_json()),
        "stratum": slot.sampled.stratum,
        "source_id": slot.sampled.source_id,
        **({"gone": dict(gone)} if gone else {}),
    }


def _slot_of_json(row: dict[str, Any]) -> Slot:
    clip = parse_row(row["clip"], "prompt in flight of the checkpoint")
    sampled = SampledClip(clip, row["stratum"], row["source_id"])
    gone = Counter[str](row.get("gone", {}))
    return Slot(row["number"], sampled, num_refills=row["round"], refused=gone)
