"""Who gets which prompt: waiting prompts go to the worker with the most room. Without Ray."""

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings

OnGroup = Callable[[RolloutGroup], None]
OnRefused = Callable[[Refusal], None]

_log = logging.getLogger(__name__)


def raise_refused(refusal: Refusal) -> NoReturn:
    """What is done about a refusal where every prompt has to be answered."""
    raise RefusedError([refusal])


@dataclass(eq=False)
class PendingPrompt:
    """A prompt on its way, who gets its group, and who is told if it cannot be answered."""

    prompt: Prompt
    settings: SamplingSettings
    on_group: OnGroup
    on_refused: OnRefused = raise_refused


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

    def take(self, member: Member, prompt: Prompt) -> PendingPrompt | None:
        """What a worker was given and has answered; None if that is not this attempt at it."""
        one = member.pending.get(prompt.prompt_id)
        if one is None or one.prompt.attempt != prompt.attempt:
            expected = "none" if one is None else f"attempt {one.prompt.attempt}"
            _log.warning(
                "rollout worker %d: attempt %d at %s is refused, %s is expected of it",
                member.index,
                prompt.attempt,
                prompt.prompt_id,
                expected,
            )
            return None
        return member.pending.pop(prompt.prompt_id)

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
                member.pending[prompt_id].on_refused = lambda refusal: None


class Answers:
    """What has become of some prompts so far.

    Args:
        prompts: In the order in which their groups are given back.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        self._found: dict[str, RolloutGroup | Refusal] = {}

    def keep(self, one: RolloutGroup | Refusal) -> None:
        """Note a prompt's group, or that there is none."""
        self._found[one.prompt.prompt_id] = one

    @property
    def num_missing(self) -> int:
        """Prompts of which nothing is known yet."""
        return len(self._prompts) - len(self._found)

    def describe(self) -> str:
        """What is missing, for messages."""
        return f"{self.num_missing} of {len(self._prompts)} groups"

    def split(self) -> tuple[list[RolloutGroup], list[Refusal]]:
        """The groups, and the prompts without one, both in order; when nothing is missing."""
        ordered = [self._found[prompt.prompt_id] for prompt in self._prompts]
        groups = [one for one in ordered if isinstance(one, RolloutGroup)]
        return groups, [one for one in ordered if isinstance(one, Refusal)]


def describe_work(members: Iterable[Member], num_waiting: int, num_due: int) -> str:
    """Who is at work on how much, for messages.

    Args:
        members: The workers.
        num_waiting: Prompts that no worker has.
        num_due: Workers that are to be started in place of lost ones.
    """
    busy = [
        f"rollout worker {m.index} has {len(m.pending)} groups"
        if m.is_ready
        else f"rollout worker {m.index} is starting"
        for m in members
        if m.pending or not m.is_ready
    ]
    if num_due:
        busy.append(f"{num_due} lost ones are to be replaced")
    return f"{num_waiting} groups wait for a worker; {', '.join(busy) or 'all idle'}"
