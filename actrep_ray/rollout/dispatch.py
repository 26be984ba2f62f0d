"""Who gets which prompt: waiting prompts go to the worker with the most room. Without Ray."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings

OnGroup = Callable[[RolloutGroup], None]


@dataclass(eq=False)
class PendingPrompt:
    """A prompt on its way, and who gets its group."""

    prompt: Prompt
    settings: SamplingSettings
    on_group: OnGroup


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights that engines are to use.

    Attributes:
        refs: `WeightBucket`s in the object store.
        policy_version: What the engines stamp on their answers.
    """

    refs: Sequence[Any]
    policy_version: int


@dataclass(eq=False)
class Member:
    """A worker as its pool knows it.

    Attributes:
        index: Its number.
        handle: Of the actor.
        pending: What it was given, by prompt_id.
        num_calls: Calls of `advance` that are under way.
        policy_version: Of its engine; None until that has started.
        held: What it has loaded; None: it has what it started from, or is to load others. A version
            does not tell: what was pushed as 0 may be other weights than those of the start, or an
            adapter that engines start without.
        is_ready: Whether it holds the weights in use, and takes prompts.
    """

    index: int
    handle: Any
    pending: dict[str, PendingPrompt] = field(default_factory=dict)
    num_calls: int = 0
    policy_version: int | None = None
    held: Weights | None = None
    is_ready: bool = False

    @property
    def num_answers(self) -> int:
        """Answers that it was asked for."""
        return sum(one.settings.group_size for one in self.pending.values())


class Backlog:
    """Prompts that wait for a worker.

    Args:
        max_in_flight: Answers that a worker may be asked for at a time; one group always may.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.waiting: deque[PendingPrompt] = deque()

    def add(self, prompts: Iterable[PendingPrompt]) -> None:
        """Put prompts at the end."""
        self.waiting.extend(prompts)

    def give_back(self, member: Member) -> None:
        """Put what a lost worker had before all others, each one attempt further."""
        lost = [
            replace(one, prompt=replace(one.prompt, attempt=one.prompt.attempt + 1))
            for one in member.pending.values()
        ]
        self.waiting.extendleft(reversed(lost))

    def assign(self, members: Iterable[Member]) -> dict[Member, list[PendingPrompt]]:
        """Give prompts to those that have the most room; what each of them got."""
        given: dict[Member, list[PendingPrompt]] = {}
        if not self.waiting:
            return given
        room = [(m.num_answers, m.index, m) for m in members if m.is_ready]
        heapq.heapify(room)
        while self.waiting and room:
            load, index, member = room[0]
            size = self.waiting[0].settings.group_size
            if load and load + size > self.max_in_flight:
                heapq.heappop(room)
                continue
            one = self.waiting.popleft()
            assert one.prompt.prompt_id not in member.pending, f"{one.prompt.prompt_id} twice"
            member.pending[one.prompt.prompt_id] = one
            given.setdefault(member, []).append(one)
            heapq.heapreplace(room, (load + size, index, member))
        return given

    def forget(self, prompt_ids: AbstractSet[str], members: Sequence[Member]) -> None:
        """Nobody waits for these any more; what is at work on them is thrown away."""
        self.waiting = deque(t for t in self.waiting if t.prompt.prompt_id not in prompt_ids)
        for member in members:
            for prompt_id in prompt_ids & member.pending.keys():
                member.pending[prompt_id].on_group = lambda group: None
