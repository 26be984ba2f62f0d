"""The books of an asynchronous run: which slots a step trains on, what adds up, what is saved."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.config import ConfigError, load_recipe
from actrep_ray.driver.asynchronous import groups_of
from actrep_ray.driver.dealing import SampledClip
from actrep_ray.driver.in_flight import InFlight, Slot, check_in_flight, refused_of
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.run.checkpoint import Checkpoint
from data_prep.schema import Clip
from data_prep.video import FramePlan

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
CLIP = Clip(
    id="c0",
    dataset="test",
    split="train",
    video="/videos/c0.mp4",
    start_s=0.0,
    end_s=4.0,
    video_fps=30.0,
    num_frames=120,
    width=64,
    height=64,
    action="squat",
    count=3,
    cycles=None,
)
SAMPLED = SampledClip(CLIP, "1-5", "c0")


def prompt(name: str) -> Prompt:
    return Prompt(f"{name}-c0", "c0", "How many?", PLAN, "1-5")


def group(name: str, num_refills: int = 0) -> RolloutGroup:
    asked = replace(prompt(name), num_refills=num_refills)
    return RolloutGroup(asked, (), 3, np.zeros(0, np.float32))


def issue(books: InFlight, policy_version: int) -> list[Slot]:
    """The next step's slots, as the driver issues them."""
    slots = books.open_step([SAMPLED] * books.prompts_per_step)
    for slot in slots:
        books.note_issue(slot, prompt(f"slot{slot.number}"), policy_version)
    return slots


def answer(books: InFlight, *slots: Slot) -> None:
    for slot in slots:
        slot.groups.append(group(f"slot{slot.number}"))
        books.complete(slot)


def test_a_step_trains_the_first_slots_that_are_complete() -> None:
    books = InFlight(2, groups_per_prompt=1)
    (a, b), (c, d) = issue(books, 0), issue(books, 0)
    answer(books, d)
    assert books.batch(oldest=-1) is None  # one is not enough
    answer(books, b)
    assert books.batch(oldest=-1) == [b, d]  # in the order of issue
    assert books.batch(oldest=0) is None  # a and c would get too old
    answer(books, c, a)
    assert books.batch(oldest=0) == [a, b]


def test_old_slots_go_before_younger_ones_that_were_issued_earlier() -> None:
    books = InFlight(2, groups_per_prompt=1)
    (a, b), (c, d) = issue(books, 0), issue(books, 0)
    books.note_issue(a, prompt("again"), policy_version=2)  # it was refilled later
    answer(books, a, b, c, d)
    assert books.batch(oldest=1) == [b, c]


@pytest.mark.parametrize("groups_per_prompt", [1, 2])
def test_every_group_is_trained_dropped_or_in_flight(groups_per_prompt: int) -> None:
    books = InFlight(2, groups_per_prompt)
    a, b = issue(books, 0)
    issue(books, 0)
    a.groups.append(group("first"))  # dropped; another one is asked for
    books.note_issue(a, prompt("again"), 0)
    answer(books, a, b)
    assert books.num_groups == 5 * groups_per_prompt
    books.settle([a, b], num_trained=1, dropped=Counter(all_wrong=2))
    assert books.num_groups == 2 * groups_per_prompt
    ledger = books.ledger
    assert (ledger.issued, ledger.trained) == (5 * groups_per_prompt, 1)
    assert ledger.dropped == Counter(all_wrong=2) + Counter(shuffled=3 * (groups_per_prompt - 1))
    with pytest.raises(AssertionError, match="5 groups were issued, but 1 trained on"):
        replace(ledger, issued=5, dropped=Counter()).check(2)


def test_groups_come_round_by_round() -> None:
    first, second = Slot(0, SAMPLED, num_refills=1), Slot(1, SAMPLED)
    resumed = Slot(2, SAMPLED, num_refills=1)  # its first group was dropped before the checkpoint
    first.groups = [group("0"), group("2", num_refills=1)]
    second.groups, resumed.groups = [group("1")], [group("3", num_refills=1)]
    assert [g.prompt.prompt_id for g in groups_of([resumed, second, first])] == [
        "0-c0",
        "1-c0",
        "2-c0",
        "3-c0",
    ]


def state_of_earlier_run() -> dict[str, Any]:
    """What driver.json of the first version holds: three prompts of steps 3 and 4 in flight."""
    clip = {**json.loads(CLIP.to_json()), "cycles": None}  # without images before it, as then
    return {
        "prompts_per_step": 2,
        "num_batches": 4,
        "issued": 9,
        "trained": 4,
        "dropped": {"all_wrong": 2},
        "num_refilled": {"3": 1, "4": 0},
        "places": [
            {
                "number": number,
                "round": round_,
                "prompt_id": name,
                "clip": clip,
                "stratum": "1-5",
                "source_id": "c0",
            }
            for number, round_, name in (
                (5, 1, "000003-0002"),
                (6, 0, "000004-0000"),
                (7, 0, "000004-0001"),
            )
        ],
    }


def test_the_saved_state_of_earlier_runs_is_read_and_written_again() -> None:
    saved = json.loads(json.dumps(state_of_earlier_run()))
    books = InFlight(2, groups_per_prompt=1)
    again = books.load_state(saved)
    assert [name for _, name in again] == ["000003-0002", "000004-0000", "000004-0001"]
    assert [books.step_of(slot) for slot, _ in again] == [3, 4, 4]
    assert [slot.num_refills for slot, _ in again] == [1, 0, 0]
    assert books.slots[0].sampled == SAMPLED
    assert books.num_steps_issued == 4
    assert books.num_refilled == Counter({3: 1})
    assert books.ledger.issued == 6  # those in flight are counted when they are asked again
    for slot, name in again:
        books.note_issue(slot, prompt(name), policy_version=2)
    books.ledger.check(books.num_groups)
    written = json.loads(json.dumps(books.state(lambda _: Counter())))
    assert written == saved | {"groups_per_place": 1, "num_replaced": {}}


@pytest.mark.parametrize(
    ("settings", "is_allowed"),
    [
        (["train.max_staleness=1", "train.prompts_per_step=2"], True),
        (["train.max_staleness=0", "train.prompts_per_step=2"], False),
        (["train.max_staleness=null", "train.prompts_per_step=2"], False),
        (["train.max_staleness=1", "train.prompts_per_step=3"], False),
    ],
)
def test_a_run_that_would_lose_what_is_in_flight_is_refused(
    tmp_path: Path, settings: list[str], is_allowed: bool
) -> None:
    start = Checkpoint(tmp_path, step=2)
    start.learner_folder.mkdir()
    state = {"step": 2, "pipeline": state_of_earlier_run()}
    (start.learner_folder / "driver.json").write_text(json.dumps(state))
    recipe = load_recipe(None, settings)
    if is_allowed:
        check_in_flight(recipe, start)
        return
    with pytest.raises(ConfigError, match=r"3 prompts are in flight.*max_staleness of at least 1"):
        check_in_flight(recipe, start)


def test_prompts_that_cannot_be_answered_are_dropped_by_reason_and_in_nobodys_batch() -> None:
    books = InFlight(2, groups_per_prompt=2)  # with a contrast each
    first, second = issue(books, policy_version=0)
    answer(books, first)
    first.refused["unreadable_video"] += 1  # the clip before this one
    books.note_issue(first, prompt("again"), 0)
    books.complete(first)
    answer(books, second)
    books.complete(second)
    assert books.batch(0) == [first, second]
    books.reopen(second)  # the learner cannot read it
    assert books.batch(0) is None
    second.groups[-1] = replace(second.groups[-1], failure="unreadable_video")
    books.note_issue(second, prompt("other"), 0)
    answer(books, second)
    books.complete(second)
    assert books.batch(0) == [first, second]

    def gone(slot: Slot) -> Counter[str]:
        return slot.refused + Counter(group.failure for group in slot.groups if group.failure)

    saved = json.loads(json.dumps(books.state(gone)))
    assert (saved["issued"], saved["dropped"]) == (8, {})
    assert [place.get("gone") for place in saved["places"]] == [{"unreadable_video": 1}] * 2
    resumed = InFlight(2, groups_per_prompt=2)
    for slot, name in resumed.load_state(saved):
        resumed.note_issue(slot, prompt(name), 0)
    # What was refused before the checkpoint is told where its slot is, once.
    assert refused_of(resumed.slots) == {"unreadable_video": 2}
    resumed.ledger.check(resumed.num_groups)
    assert (resumed.ledger.issued, resumed.num_groups) == (8, 8)
    # Of 8 groups 2 are trained on, 2 dropped for their videos, and each has a contrast.
    books.settle([first, second], 2, Counter(unreadable_video=1))
    assert books.ledger.dropped == {"unreadable_video": 2, "shuffled": 4}
    assert (books.ledger.issued, books.num_groups) == (8, 0)
