"""What reinforcement could win from a start: what was sampled of it, put together and told.

`actrep headroom` samples with a recipe's own engine, sampler, reward and filter
(`actrep_ray.driver.headroom`); here it becomes figures, a forecast of a step, and advice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from actrep_ray.evaluation.answer_figures import (
    Answers,
    ReadingRow,
    blind_by_prompt,
    figures_by_prompt,
    pass_curve,
    reading_rows,
)
from actrep_ray.evaluation.headroom_advice import Advice, advise
from actrep_ray.evaluation.intervals import Interval, mean_intervals
from actrep_ray.evaluation.step_forecast import ProbedGroups, StepForecast, forecast_step


@dataclass(frozen=True)
class Start:
    """What was asked of whom.

    Attributes:
        recipe: Name of the recipe.
        model: Folder of the weights.
        group_size: Answers of a group (G).
        prompts_per_step: Slots of a step.
        max_refills: Groups that may be issued in a step in place of dropped ones.
        temperature: Of sampling.
        seed: Of what is drawn.
    """

    recipe: str
    model: str
    group_size: int
    prompts_per_step: int
    max_refills: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Probe:
    """What a start answered to N prompts.

    Attributes:
        start: What was asked of whom.
        asked: The K answers to each prompt. [N]
        drop_reasons: Of each prompt's groups, K / G of them; None where a group would be trained
            on. [N][K / G]
        flat: The reasons that stand for answers which cannot be told apart.
        groups: Their strata and sizes.
        accuracy: Figures of all answers, as a training step logs them (`train/...`).
        generate_s: Seconds that the engines took for a group, beside each other.
        score_s: Seconds that the reward workers took for one.
    """

    start: Start
    asked: Sequence[Answers]
    drop_reasons: Sequence[Sequence[str | None]]
    flat: Sequence[str]
    groups: ProbedGroups
    accuracy: Mapping[str, float]
    generate_s: float
    score_s: float


@dataclass(frozen=True)
class Headroom:
    """What reinforcement could win from a start.

    Attributes:
        start: What was asked of whom.
        num_prompts: N.
        num_answers: K, to each prompt.
        figures: Shares with their intervals over prompts: `pass_at_1`, `pass_at_k`, `majority`,
            `blind`, `flat` and `useful` (of groups), `parse_rate`, and `consistent` if it can be
            told.
        pass_curve: pass@k by k.
        accuracy: Figures of all answers, as a training step logs them.
        dropped: Share of groups by the reason to drop them.
        readings: Each count that is right or given, and how often.
        num_right: Right answers to each prompt. [N]
        step: What a step will come to.
        generate_s: Seconds of a step in which engines generate.
        score_s: Seconds of a step in which reward workers score.
        advice: What to do.
    """

    start: Start
    num_prompts: int
    num_answers: int
    figures: Mapping[str, Interval]
    pass_curve: Mapping[int, float]
    accuracy: Mapping[str, float]
    dropped: Mapping[str, float]
    readings: Sequence[ReadingRow]
    num_right: Sequence[int]
    step: StepForecast
    generate_s: float
    score_s: float
    advice: Advice

    @property
    def never_answered(self) -> list[Any]:
        """Readings that are right for some prompt and that no answer gives."""
        return [row.reading for row in self.readings if row.is_never_answered]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            **asdict(self.start),
            "num_prompts": self.num_prompts,
            "num_answers": self.num_answers,
            "advice": asdict(self.advice),
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "pass_at": {str(k): share for k, share in self.pass_curve.items()},
            "accuracy": dict(self.accuracy),
            "dropped": dict(self.dropped),
            "step": {**asdict(self.step), "generate_s": self.generate_s, "score_s": self.score_s},
            "never_answered": self.never_answered,
            "readings": [asdict(row) for row in self.readings],
            "num_right": list(self.num_right),
        }


def headroom_of(probe: Probe, *, num_bootstrap: int) -> Headroom:
    """Put together what was sampled.

    Args:
        probe: At least one prompt.
        num_bootstrap: Resamples of the intervals.
    """
    start, num_answers = probe.start, len(probe.asked[0].readings)
    columns = _columns(probe, num_answers)
    figures = mean_intervals(columns, num_bootstrap=num_bootstrap, seed=start.seed)
    reasons = Counter(reason for groups in probe.drop_reasons for reason in groups)
    dropped = {r: n / reasons.total() for r, n in reasons.most_common() if r is not None}
    step = forecast_step(
        probe.groups,
        prompts_per_step=start.prompts_per_step,
        max_refills=start.max_refills,
        seed=start.seed,
    )
    return Headroom(
        start=start,
        num_prompts=len(probe.asked),
        num_answers=num_answers,
        figures=figures,
        pass_curve=pass_curve(probe.asked),
        accuracy=probe.accuracy,
        dropped=dropped,
        readings=reading_rows(probe.asked),
        num_right=[one.num_right for one in probe.asked],
        step=step,
        generate_s=probe.generate_s * step.issued_groups,
        score_s=probe.score_s * step.issued_groups,
        advice=advise(
            {name: figure.value for name, figure in figures.items()},
            {reason: share for reason, share in dropped.items() if reason in probe.flat},
            num_answers,
        ),
    )


def _columns(probe: Probe, k: int) -> dict[str, np.ndarray]:
    """Each figure of each prompt, in the order to show. float64 [N] each"""
    reasons = probe.drop_reasons
    columns = figures_by_prompt(probe.asked, k)
    columns["blind"] = blind_by_prompt(probe.asked)
    columns["flat"] = np.array([np.mean([r in probe.flat for r in row]) for row in reasons])
    columns["useful"] = np.array([np.mean([r is None for r in row]) for row in reasons])
    return columns
