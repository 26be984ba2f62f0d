"""Tables of how a run went: rewards by their parts, prompts that were dropped, settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actrep_ray.evaluation.tables import TableData

Rows = Sequence[Mapping[str, Any]]

_TOTAL, _SPREAD = "reward/mean", "reward/std_in_group"
_GROUPS = ("headroom/useful_groups", "dropped/groups")
_ENDS = 10  # steps at each end of a run that are compared


def rewards_table(stage: str, rows: Rows) -> TableData | None:
    """What answers earned by each part of the reward, early and late; None of a run without any.

    Args:
        stage: Its name.
        rows: Of `metrics.jsonl`.
    """
    told = [row for row in rows if row.get(_TOTAL) is not None]
    if not told:
        return None
    num = min(_ENDS, -(-len(told) // 2))
    keys = sorted({k for row in told for k in row if k.startswith("reward/")} - {_TOTAL, _SPREAD})
    cells = []
    for key, name in [(_TOTAL, "reward"), *((k, k.removeprefix("reward/")) for k in keys)]:
        first, last = (_mean(some, key) for some in (told[:num], told[-num:]))
        cells.append((name, _told(first), _told(last), _told(last - first, sign="+")))
    note = (
        f"Means over the answers of the first and last {num} of {len(told)} steps. The parts are "
        "as they are before their weights."
    )
    columns = ("", "first", "last", "change")
    return TableData(f"Rewards in {stage}", columns, tuple(cells), note)


def prompts_table(stage: str, rows: Rows) -> TableData | None:
    """What became of the groups that were asked for; None of a run that asked for none.

    Args:
        stage: Its name.
        rows: Of `metrics.jsonl`.
    """
    told = [row for row in rows if row.get(_GROUPS[1]) is not None]
    if not told:
        return None
    sums: dict[str, float] = {}
    for row in told:
        for key, value in row.items():
            if value is not None and (key.startswith("dropped/") or key == _GROUPS[0]):
                sums[key] = sums.get(key, 0.0) + value
    trained, dropped = (sums.get(key, 0.0) for key in _GROUPS)
    total = trained + dropped
    kinds = [("trained on", trained), ("dropped", dropped)]
    kinds += [
        (f"– {key.removeprefix('dropped/').replace('_', ' ')}", sums[key])
        for key in sorted(sums)
        if key.startswith("dropped/") and key != _GROUPS[1] and sums[key]
    ]
    cells = tuple(
        (name, f"{number:.0f}", f"{number / total:.1%}" if total else "–") for name, number in kinds
    )
    note = f"Steps: {len(told)}. A group is all answers to one prompt."
    return TableData(f"Prompts in {stage}", ("", "groups", "share"), cells, note)


def settings_table(
    runs: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]
) -> TableData | None:
    """The settings of each run that is not at its default; those that differ among runs first.

    Args:
        runs: Settings by their dotted names, of each run by its name.
        defaults: Likewise.
    """
    shown = [key for key in sorted(defaults) if any(s[key] != defaults[key] for s in runs.values())]
    if not shown:
        return None
    differing = {key for key in shown if len({repr(s[key]) for s in runs.values()}) > 1}
    shown.sort(key=lambda key: key not in differing)
    cells = tuple(
        (key, repr(defaults[key]), *(repr(settings[key]) for settings in runs.values()))
        for key in shown
    )
    note = ""
    if len(runs) > 1:
        note = f"The first {len(differing)} differ among the runs." if differing else "All equal."
    title = f"Settings: {len(shown)} of {len(defaults)} are not at their defaults"
    return TableData(title, ("", "default", *runs), cells, note)


def _mean(rows: Rows, key: str) -> float:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else float("nan")


def _told(value: float, *, sign: str = "") -> str:
    return "–" if np.isnan(value) else f"{value:{sign}.3f}"
