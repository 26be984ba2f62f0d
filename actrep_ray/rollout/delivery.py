"""The weights in use, and new ones on their way to the engines, so many at a time. Without Ray."""

from collections import deque
from collections.abc import Callable, Sequence

from actrep_ray.rollout.dispatch import Member, Weights


class Delivery:
    """Who has to load new weights yet; one delivery after the other.

    Args:
        load: Has a worker load the weights in use; it says so by what it has `held`.
    """

    def __init__(self, load: Callable[[Member, Weights], None]) -> None:
        self.weights: Weights | None = None  # in use; None until any were pushed
        self._load = load
        self._waiting: deque[Member] = deque()
        self._loading: set[Member] = set()
        self._at_once = 0
        self._is_awaited = False  # the old weights were let go of, new ones are to come
        self._late: list[Member] = []  # started meanwhile
        self._then: Callable[[], None] | None = None  # there is a delivery

    def let_go(self, members: Sequence[Member]) -> None:
        """Have nobody hold the weights in use, so that new ones find room in the object store.

        Who works goes on with what its engine has; who starts waits for the next delivery.
        """
        assert self._then is None, "the engines are still loading these weights"
        self.weights, self._is_awaited = None, True
        for member in members:
            member.held = None

    def start(
        self, weights: Weights, members: Sequence[Member], at_once: int, then: Callable[[], None]
    ) -> None:
        """Begin a delivery.

        Args:
            weights: The new ones.
            members: Who has to load them; workers that come later do so at their start.
            at_once: How many may at the same time.
            then: Called when all that live have them, and one of them can work.
        """
        assert self._then is None, "the engines are still loading other weights"
        self.weights, self._at_once, self._then = weights, at_once, then
        self._waiting, self._loading = deque(members), set()
        self._is_awaited = False
        for member in members:
            member.held = None

    def bring_up_to_date(self, member: Member) -> bool:
        """Whether a worker that has started holds the weights in use; if not, it loads them.

        If they are still to come, it does so then.
        """
        if self._is_awaited:
            self._late.append(member)
            return False
        if self.weights is None or self.weights is member.held:
            return True
        self._load(member, self.weights)
        return False

    def go_on(self, living: Sequence[Member]) -> None:
        """Let the next ones load; whoever changes or loses a worker calls this."""
        weights, then = self.weights, self._then
        if weights is None or then is None:
            return
        for member in self._late:
            if member in living:
                self._load(member, weights)
        self._late = []
        self._loading = {m for m in self._loading if m in living and m.held is not weights}
        while self._waiting and len(self._loading) < self._at_once:
            member = self._waiting.popleft()
            if member in living:
                self._loading.add(member)
                self._load(member, weights)
        if not self._loading and any(member.is_ready for member in living):
            self._then = None
            then()
