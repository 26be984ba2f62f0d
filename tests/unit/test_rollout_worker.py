"""The rollout worker without Ray: what it does with clips that it cannot have."""

import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from actrep_ray.records import Prompt, RefusedError, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.worker import RolloutWorker, Turn
from data_prep.locks import BusyError
from data_prep.video import FramePlan, VideoError
from tests.bare_engine import BareEngine


class Decoder:
    """Decodes "good" clips; others fail as their name says."""

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def prefetch(self, plan: str) -> None:
        if plan == "busy":
            raise BusyError("held by another process")
        if plan == "broken":
            raise VideoError("a.mp4: cut short")
        self.decoded.append(plan)


def test_a_prefetch_goes_on_after_clips_that_are_broken_or_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    engine: Any = Decoder()
    plans: Any = ["good", "broken", "busy", "last"]
    RolloutWorker(lambda: engine).prefetch(plans)
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()
    assert engine.decoded == ["good", "last"]
    assert failed == []


class OneByOne(BareEngine):
    """Answers one prompt a step, in order; "broken" clips are found when they are added, "long"
    ones when they are due."""

    def __init__(self) -> None:
        super().__init__(max_model_len=100)
        self.waiting: list[Prompt] = []

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        for prompt in prompts:
            with self.refusing(prompt):
                if prompt.clip_id == "broken":
                    raise VideoError("a.mp4: cut short")
                self.waiting.append(prompt)

    def step(self) -> list[RolloutGroup]:
        prompt = self.waiting.pop(0)
        with self.refusing(prompt):
            self.check_length(prompt, 90 if prompt.clip_id == "long" else 10, 20)
            return [RolloutGroup(prompt, (), 10)]
        return []

    def clear(self) -> None:
        self.waiting.clear()


def prompts_of(*clips: str) -> list[Prompt]:
    plan = FramePlan("a.mp4", 1, (0.0,), 4.0, 32, 32)
    return [Prompt(f"p{i}", clip, "How many?", plan) for i, clip in enumerate(clips)]


def test_a_clip_at_fault_is_refused_and_the_others_of_its_call_are_answered() -> None:
    worker, settings = RolloutWorker(OneByOne), SamplingSettings(max_tokens=20)
    turn = worker.advance([(prompts_of("good", "broken", "long", "good"), settings)])
    answered = [group.prompt.prompt_id for group in turn.groups]
    refused = [(one.prompt.prompt_id, one.reason) for one in turn.refused]
    assert (answered, refused) == ([], [("p1", "unreadable_video")])  # at once
    while worker.engine.num_unfinished:
        turn = worker.advance([])
        answered += [group.prompt.prompt_id for group in turn.groups]
        refused += [(one.prompt.prompt_id, one.reason) for one in turn.refused]
    assert answered == ["p0", "p3"]
    assert refused == [("p1", "unreadable_video"), ("p2", "prompt_too_long")]


class Clock:
    """Seconds that only decoding takes."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


class SlowDecoder(OneByOne):
    """Takes half a second for each clip, as an engine does whose clips are not decoded."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        self.clock.now += 0.5 * len(prompts)
        super().add(prompts, settings)


def test_clips_that_take_long_are_taken_turn_by_turn_and_all_before_the_first_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of them in one turn would look like a worker that hangs."""
    clock = Clock()
    monkeypatch.setattr("actrep_ray.rollout.worker.time", clock)
    worker, settings = RolloutWorker(lambda: SlowDecoder(clock)), SamplingSettings(max_tokens=20)
    turns: list[Turn] = []
    added: list[int] = []
    requests = [(prompts_of(*["good"] * 8), settings)]
    while worker.engine.num_unfinished or not turns:
        turns.append(worker.advance(requests if not turns else []))
        added.append(worker.engine.num_unfinished)
    assert [turn.ended_s - turn.began_s for turn in turns] == [1.0] * 4 + [0.0] * 8  # not 4 s once
    assert added == [2, 4, 6, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    answered = [group.prompt.prompt_id for turn in turns for group in turn.groups]
    assert answered == [f"p{i}" for i in range(8)]


def test_where_all_prompts_have_to_be_answered_a_refusal_is_an_error_that_names_them() -> None:
    engine, settings = OneByOne(), SamplingSettings(max_tokens=20)
    told = r"a\.mp4: cut short \(and 1 more\)"
    with pytest.raises(RefusedError, match=told) as caught:
        engine.generate(prompts_of("good", "broken", "long"), settings)
    assert [one.prompt.prompt_id for one in caught.value.refused] == ["p1", "p2"]
    assert "clip 'long': 90 prompt tokens" in caught.value.refused[1].message
    arrived = pickle.loads(pickle.dumps(caught.value))  # as from a worker
    assert (str(arrived), arrived.refused) == (str(caught.value), caught.value.refused)
    assert len(engine.generate(prompts_of("good"), settings)) == 1  # it goes on
