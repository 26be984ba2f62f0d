"""Credit of each listed repetition: its tokens are paid for its place, all others for the answer.

With `algorithm.credit=repetition`, in a group whose clip has cycle marks, the tokens that write a
repetition have an advantage of their own: its temporal IoU with the mark that it is matched with,
less the mean over all repetitions that the group lists, divided by their standard deviation (as
GRPO compares answers). All other tokens, the labels' line breaks, total and answer among them, keep
the advantage of the answer, and so does all of a group without marks or whose lists fit equally.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from actrep_ray.config import Recipe
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import RolloutGroup
from rewards.cycles import matched_tiou
from rewards.grammar.read import parse
from rewards.reference import Reference


def with_credit(
    groups: Sequence[RolloutGroup],
    labels: Mapping[str, Reference],
    recipe: Recipe,
    inputs: QwenVLInputs,
) -> list[RolloutGroup]:
    """The groups with `credit`, where the recipe asks for it and their clip has marks.

    Args:
        groups: Without failures.
        labels: Of their clips, by id.
        recipe: `algorithm.credit`, and the dialect that answers are read in.
        inputs: Says which characters a token writes.
    """
    if recipe.algorithm.credit != "repetition":
        return list(groups)
    dialect = recipe.data.dialect
    return [
        replace(group, credit=_credit(group, labels[group.prompt.clip_id], dialect, inputs))
        for group in groups
    ]


def _credit(
    group: RolloutGroup, reference: Reference, dialect: str, inputs: QwenVLInputs
) -> tuple[np.ndarray, ...]:
    """Of each token, NaN where it writes no repetition: float32 [R_i]; empty: none at all."""
    answers = [parse(rollout.text, dialect=dialect) for rollout in group.rollouts]
    fits = [fit for answer in answers if (fit := matched_tiou(answer, reference)) is not None]
    listed = np.concatenate([*fits, np.zeros(0)])
    if not len(listed) or np.ptp(listed) == 0:
        return ()
    mean, spread = listed.mean(), listed.std(ddof=1) + 1e-6
    credit = []
    for rollout, answer, fit in zip(group.rollouts, answers, fits, strict=True):
        values = np.full(len(rollout.token_ids), np.nan, np.float32)
        bounds = inputs.token_bounds(rollout.token_ids)
        for (first, end), value in zip(answer.cycle_spans, fit, strict=True):
            writes = (bounds[:, 0] >= first) & (bounds[:, 0] < end)
            values[writes] = (value - mean) / spread
        credit.append(values)
    return tuple(credit)
