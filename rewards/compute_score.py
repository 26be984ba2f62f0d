"""The default reward behind verl's signature, for training with verl and without this project.

In verl's configuration::

    reward.custom_reward_function.path: <site-packages>/rewards/compute_score.py
    reward.custom_reward_function.name: compute_score
"""

import json
from collections.abc import Mapping
from typing import Any

from rewards.claims import model_count, num_listed
from rewards.compose import DEFAULT_SPEC, RewardSpec, score_response
from rewards.cycles import is_consistent
from rewards.grammar.read import parse
from rewards.reference import Reference


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    weights: Mapping[str, float | Mapping[str, Any]] | None = None,
    opened: str | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one answer in verl's signature.

    Args:
        data_source: Name of the data set; only named in errors.
        solution_str: What the model wrote, as verl decodes it: without what the chat template
            opened before, and without special tokens, which verl takes out.
        ground_truth: The count, or a mapping (or its JSON) with `count` and optionally `cycles`,
            [[start_s, end_s], ...] in seconds from the start of the clip.
        extra_info: May hold `duration_s`, the length of the clip in seconds, and `opened`, as rows
            of `actrep prepare verl` do where it is not empty; the rest is verl's.
        weights: Another composition than the default, as `RewardSpec.from_mapping` takes it.
        opened: What the model's chat template writes of an answer, for example "<think>\\n" with
            Qwen3-VL-Thinking; None takes that of `extra_info`.
        **kwargs: What verl hands to every reward (address of a reward model and the like): unused.

    Returns:
        `score` in [0, 1]; each part by its name, NaN where it does not apply to the clip; `acc`, 1
        where the model's count is exact, which verl validates by; `acc_list`, 1 where as many
        repetitions are listed; and `consistent`, 1 where list, total and answer are one number.

    Raises:
        ValueError: naming the data source and the value of `ground_truth`, `extra_info` or
            `opened`.
    """
    spec = DEFAULT_SPEC if weights is None else RewardSpec.from_mapping(weights)
    known = extra_info or {}
    reference = _reference(data_source, ground_truth, known)
    before = known.get("opened", "") if opened is None else opened
    if not isinstance(before, str):
        raise ValueError(f"{data_source}: opened={before!r}, expected text")
    response = parse(before + solution_str, dialect=spec.dialect)
    result = score_response(response, reference, spec)
    parts = {name: float("nan") if v is None else v for name, v in result.parts.items()}
    judged = {
        "acc": model_count(response) == reference.count,
        "acc_list": num_listed(response) == reference.count,
        "consistent": is_consistent(response),
    }
    return {"score": result.total, **parts, **{name: float(v) for name, v in judged.items()}}


def _reference(data_source: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Reference:
    labels = _labels(data_source, ground_truth)
    duration = extra_info.get("duration_s")
    cycles = labels.get("cycles")
    try:
        return Reference(
            count=int(labels["count"]),
            cycles=None if cycles is None else tuple((float(a), float(b)) for a, b in cycles),
            duration_s=None if duration is None else float(duration),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{data_source}: ground_truth={ground_truth!r}, duration_s={duration!r}: {error}"
        ) from error


def _labels(data_source: str, ground_truth: Any) -> Mapping[str, Any]:
    value = ground_truth
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise _unexpected(data_source, ground_truth) from error
    labels: Mapping[str, Any] = value if isinstance(value, Mapping) else {"count": value}
    if set(labels) - {"count", "cycles"} or "count" not in labels:
        raise _unexpected(data_source, ground_truth)
    # Integers of numpy and of data frames are as good; 3.5 and true are not.
    count = labels["count"]
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise _unexpected(data_source, ground_truth)
    return labels


def _unexpected(data_source: str, ground_truth: Any) -> ValueError:
    return ValueError(
        f"{data_source}: ground_truth={ground_truth!r}, expected an integer or a mapping (or its "
        "JSON) with 'count' and optionally 'cycles' [[start_s, end_s], ...]"
    )
