"""What training steps will come to, played through with groups that were really sampled.

    slot ─ a group of the probe ─ useful? ─ yes ─► trained on
                                     └─ no ─► refilled from its own stratum, while the step may

A slot of a step draws one of the probed groups; where that would have been dropped, its refill
draws another of its stratum, round by round and at most `max_refills` times a step, as the driver
does (`train.max_refill_factor`). The groups were drawn by the recipe's own sampler, so strata come
in its proportions. What the forecast cannot know is how the model changes on the way.
"""

from dataclasses import dataclass

import numpy as np

from actrep_ray.evaluation.intervals import Interval

FORECAST_STEPS = 10
"""Steps whose mean the interval is of: long enough to smooth a step, short of much learning."""

_NUM_PLAYED = 500  # steps whose mean is the forecast: its noise is below a group
_NUM_RESAMPLES = 400  # probes, drawn from the one that was made, of the interval
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class ProbedGroups:
    """What was sampled, R groups for each of N prompts.

    Attributes:
        strata: Stratum of each prompt, as a number. int [N]
        is_useful: Which groups would be trained on. bool [N, R]
        response_tokens: Tokens of all answers of a group. int [N, R]
        prompt_tokens: Tokens of the prompt, once a group. int [N, R]
    """

    strata: np.ndarray
    is_useful: np.ndarray
    response_tokens: np.ndarray
    prompt_tokens: np.ndarray


@dataclass(frozen=True)
class StepForecast:
    """What a training step is expected to come to.

    Attributes:
        useful_groups: Groups that are trained on; the interval holds 95% of the means of
            `FORECAST_STEPS` steps.
        issued_groups: Groups that are sampled for them, refills among them.
        response_tokens: Tokens that are generated.
        prompt_tokens: Tokens of the prompts, each computed once a group.
    """

    useful_groups: Interval
    issued_groups: float
    response_tokens: float
    prompt_tokens: float


def forecast_step(
    probed: ProbedGroups, *, prompts_per_step: int, max_refills: int, seed: int
) -> StepForecast:
    """Play steps through with the probed groups.

    Args:
        probed: At least one group.
        prompts_per_step: Slots of a step.
        max_refills: Groups that may be issued in a step in place of dropped ones.
        seed: Of what is drawn.
    """
    rng = np.random.default_rng(seed)
    num_prompts, num_groups = probed.is_useful.shape
    columns = (np.ones_like(probed.is_useful), probed.response_tokens, probed.prompt_tokens)
    values = np.stack([probed.is_useful, *columns], axis=-1).astype(np.float64)  # [N, R, 4]

    def mean_of(prompts: np.ndarray, num_steps: int) -> np.ndarray:
        strata = np.repeat(probed.strata[prompts], num_groups)
        deck = _Deck(strata, values[prompts].reshape(-1, values.shape[-1]))
        played = [deck.play(prompts_per_step, max_refills, rng) for _ in range(num_steps)]
        mean: np.ndarray = np.mean(played, axis=0)
        return mean

    useful, issued, response_tokens, prompt_tokens = mean_of(np.arange(num_prompts), _NUM_PLAYED)
    resamples = rng.integers(0, num_prompts, (_NUM_RESAMPLES, num_prompts))
    resampled = [mean_of(prompts, FORECAST_STEPS)[0] for prompts in resamples]
    low, high = np.percentile(resampled, _TAILS)
    interval = Interval(float(useful), float(low), float(high))
    return StepForecast(interval, float(issued), float(response_tokens), float(prompt_tokens))


class _Deck:
    """Groups that are drawn with replacement, by stratum.

    Args:
        strata: int [M]
        values: What each adds to a step; the first is whether it is useful. float64 [M, F]
    """

    def __init__(self, strata: np.ndarray, values: np.ndarray) -> None:
        order = np.argsort(strata, kind="stable")
        self._values = values[order]
        sorted_strata = strata[order]
        self._first = np.searchsorted(sorted_strata, sorted_strata, side="left")
        self._end = np.searchsorted(sorted_strata, sorted_strata, side="right")

    def play(self, num_slots: int, max_refills: int, rng: np.random.Generator) -> np.ndarray:
        """The sums over all groups of one step. float64 [F]"""
        drawn = rng.integers(0, len(self._values), num_slots)
        total: np.ndarray = np.zeros(self._values.shape[1])
        while len(drawn):
            values = self._values[drawn]
            total += values.sum(axis=0)
            failed = drawn[values[:, 0] == 0][:max_refills]
            max_refills -= len(failed)
            first, end = self._first[failed], self._end[failed]
            drawn = rng.integers(first, end) if len(failed) else failed
        return total
