"""An engine whose computing is replaced by waiting; it keeps to what `Engine` promises."""

import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from simulated_learner import Latency

from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import Engine, SamplingSettings, make_rollout
from actrep_ray.weights.buckets import Weights, magnitude, verify_magnitudes
from data_prep.video import FramePlan
from rewards.grammar.write import Response, render

END_ID = 0
"""The token that ends an answer."""

_LONGEST_WAIT_S = 0.25  # of one step, as of one forward pass
_MAX_MODEL_LEN = 32768
_PROMPT_TOKENS = 200


@dataclass(frozen=True)
class _Task:
    """A prompt, how it is to be answered, and the version of the weights when it came."""

    prompt: Prompt
    settings: SamplingSettings
    policy_version: int


class SimulatedEngine(Engine):
    """Finishes groups after a while; their answers are right or one off, in real text.

    Of the weights it keeps the names and the sum of magnitudes of one norm, which it verifies.

    Args:
        latency: How long it takes.
        seed: Of the times.
    """

    def __init__(self, latency: Latency, seed: int) -> None:
        super().__init__(_MAX_MODEL_LEN)
        self._latency = latency
        self._random = np.random.default_rng(seed)
        self._waiting: deque[_Task] = deque()
        self._running: list[tuple[float, int, _Task]] = []
        self._number = 0
        self._names: frozenset[str] = frozenset()
        self._magnitudes: dict[str, float] = {}

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        for prompt in prompts:
            with self.refusing(prompt):
                self.check_length(prompt, _PROMPT_TOKENS, settings.max_tokens)
                self._waiting.append(_Task(prompt, settings, self.policy_version))

    def step(self) -> list[RolloutGroup]:
        while self._waiting and len(self._running) < self._latency.width:
            seconds = self._latency.group_s * self._random.uniform(0.67, 1.33)
            self._number += 1
            item = (time.monotonic() + seconds, self._number, self._waiting.popleft())
            heapq.heappush(self._running, item)
        if not self._running:
            return []
        wait_s = self._running[0][0] - time.monotonic()
        if wait_s > _LONGEST_WAIT_S:
            time.sleep(_LONGEST_WAIT_S)
            return []
        time.sleep(max(wait_s, 0.0))
        return [self._answer(heapq.heappop(self._running)[2])]

    def clear(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def prefetch(self, plan: FramePlan) -> None:
        """It shows no frames."""

    def replace_weights(self, weights: Weights) -> None:
        if missing := self._names - weights.keys():
            raise ValueError(f"{len(missing)} weights were not given, among them {min(missing)}")
        self._names = frozenset(weights)
        norms = sorted(name for name in weights if name.endswith("norm.weight"))
        self._magnitudes = {name: magnitude(weights[name]) for name in norms[:1]}

    def verify_weights(self, weights: Weights) -> None:
        loaded = {name: found for name, found in self._magnitudes.items() if name in weights}
        verify_magnitudes(loaded, weights, torch.float32)

    def sleep(self) -> None:
        """It holds no GPU."""

    def wake(self) -> None:
        """It gave none away."""

    def shutdown(self) -> None:
        self.clear()

    def _answer(self, task: _Task) -> RolloutGroup:
        rollouts = []
        for i in range(task.settings.group_size):
            count = 2 + i % 3
            cycles = tuple((float(c), c + 0.9) for c in range(count))
            text = render(Response("A ball moves.", "there and back", cycles, "even", count, count))
            num_tokens = task.settings.max_tokens
            rollouts.append(
                make_rollout(
                    task.prompt,
                    i,
                    token_ids=np.arange(END_ID, END_ID + num_tokens)[::-1].tolist(),
                    log_probs=np.full(num_tokens, -1.0).tolist(),
                    text=text,
                    is_stopped=True,
                    policy_version=task.policy_version,
                    last_policy_version=self.policy_version,
                )
            )
        return RolloutGroup(task.prompt, tuple(rollouts), num_prompt_tokens=_PROMPT_TOKENS)
