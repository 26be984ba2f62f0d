"""The plot of a protocol: the figure against the number of shots, a panel for each exam.

colour   the way to train: zero-shot, SFT, GRPO
sign     what it was trained on and which setting was changed, where there are several
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from actrep_ray.protocols.plan import METHODS
from actrep_ray.tasks.base import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_SIGNS = "os^Dvph*"
_SPREAD = 0.6  # of the distance of two numbers of shots, over which their points are laid
_Way = tuple[str, str, str]
"""Method, what it was trained on, what was changed."""

_NAMES = {"zero-shot": "zero-shot", "sft": "SFT", "grpo": "GRPO"}


def draw_shots(means: pd.DataFrame, task: Task, path: Path) -> Path:
    """Draw the means over seeds with their intervals.

    Args:
        means: Of `means_frame`.
        task: Says the figure.
        path: The PNG file.
    """
    from actrep_ray.evaluation.figure_style import SMALL, make_figure, save

    asked = list(dict.fromkeys(means["asked"]))
    ways = _ways(means)
    figure = make_figure(max(5.2, 1.2 + 3.2 * len(asked)), 3.4 + 0.1 * len(ways))
    axes = figure.subplots(1, len(asked), sharey=True, squeeze=False)[0]
    for axis, exam in zip(axes, asked, strict=True):
        _draw_exam(axis, means[means["asked"] == exam], ways, task)
        axis.set_title(f"asked about {exam}", fontsize=SMALL + 1, parse_math=False)
    axes[0].set_ylabel(f"{task.figures[0].label}, mean over seeds", fontsize=SMALL)
    figure.legend(
        handles=_legend(ways), loc="outside lower center", ncols=2 if len(asked) > 1 else 1,
        fontsize=SMALL, frameon=False,
    )  # fmt: skip
    save(figure, path)
    return path


def _legend(ways: Sequence[_Way]) -> "list[Line2D]":
    """A line for each colour, then a grey sign for each of several kinds."""
    from matplotlib.lines import Line2D

    from actrep_ray.evaluation.figure_style import INK

    methods = dict.fromkeys(way[0] for way in ways)
    found = [Line2D([], [], color=_colours()[one], label=_NAMES[one]) for one in methods]
    signs = {kind_of(way, ways): sign for way, sign in signs_of(ways).items()}
    signs.pop("", None)
    return found + [
        Line2D([], [], color=INK, marker=sign, linestyle="none", markersize=4.5, label=kind)
        for kind, sign in signs.items()
    ]


def _colours() -> dict[str, str]:
    from actrep_ray.evaluation.figure_style import BLUE, MUTED, ORANGE

    return dict(zip(METHODS, (MUTED, ORANGE, BLUE), strict=True))


def _ways(means: pd.DataFrame) -> list[_Way]:
    """In the order of the table."""
    columns = (means[key] for key in ("method", "trained_on", "change"))
    return list(dict.fromkeys(zip(*columns, strict=True)))


def _draw_exam(axis: "Axes", means: pd.DataFrame, ways: Sequence[_Way], task: Task) -> None:
    from actrep_ray.evaluation.figure_style import MUTED, SMALL, style_axis

    colours = _colours()
    column = f"mean_{task.figures[0].name}"
    shots = [0, *sorted(set(means["shots"]) - {0})]
    signs = signs_of(ways)
    trained = [way for way in ways if way[0] != METHODS[0]]
    beside = (trained, [way for way in ways if way[0] == METHODS[0]])
    for way in ways:
        method, source, change = way
        line = means[
            (means["method"] == method)
            & (means["trained_on"] == source)
            & (means["change"] == change)
        ].sort_values("shots")
        value, low, high = (line[f"{column}{end}"].to_numpy() for end in ("", "_low", "_high"))
        others = beside[way not in trained]
        shift = _SPREAD * ((others.index(way) + 0.5) / len(others) - 0.5)
        if way not in trained and change == "none":
            axis.axhline(value[0], color=MUTED, linestyle="--", linewidth=0.9)
        axis.errorbar(
            np.array([shots.index(number) for number in line["shots"]]) + shift, value,
            np.stack([value - low, high - value]), color=colours[method], marker=signs[way],
            markersize=4.5, linewidth=1.1, capsize=2.5,
        )  # fmt: skip
    axis.set_xticks(range(len(shots)), ["zero-shot", *(str(number) for number in shots[1:])])
    axis.set_xlim(-0.6, len(shots) - 0.4)
    axis.set_xlabel("shots of each class", fontsize=SMALL)
    axis.set_ylim(-0.02, 1.02)
    style_axis(axis)
    axis.grid(visible=False, axis="x")


def signs_of(ways: Sequence[_Way]) -> dict[_Way, str]:
    """A sign for each way, the same for what differs by its method alone."""
    kinds = list(dict.fromkeys(way[1:] for way in ways if way[0] != METHODS[0]))
    changes = list(dict.fromkeys(way[2] for way in ways))
    return {
        way: _SIGNS[
            (changes.index(way[2]) if way[0] == METHODS[0] else kinds.index(way[1:])) % len(_SIGNS)
        ]
        for way in ways
    }


def kind_of(way: _Way, ways: Sequence[_Way]) -> str:
    """What tells a way from others of its method, in words; empty where nothing has to."""
    method, source, change = way
    changes = {one[2] for one in ways}
    sources = {one[1] for one in ways if one[0] != METHODS[0]}
    words = []
    if len(sources) > 1 and method != METHODS[0]:
        words.append(f"trained on {source}")
    if len(changes) > 1:
        words.append("as the recipes are" if change == "none" else change)
    return ", ".join(words)
