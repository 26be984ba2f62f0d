"""What reinforcement could win, as a picture."""

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actrep_ray.evaluation.figure_style import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    NORMAL,
    ORANGE,
    RED,
    SMALL,
    VIOLET,
    four_panels,
    style_axis,
)
from actrep_ray.evaluation.headroom import Headroom
from actrep_ray.evaluation.step_forecast import FORECAST_STEPS
from actrep_ray.tasks.base import Task

_WRAPPED_AT = 110  # characters of a line of the headline


def draw_headroom(found: Headroom, task: Task) -> Figure:
    """Four panels: pass@k, right answers of a prompt, counts answered, what a step comes to."""
    figure, axes = four_panels(10.0, 7.0, _headline(found))
    _draw_pass(axes[0, 0], found)
    _draw_right(axes[0, 1], found)
    _draw_readings(axes[1, 0], found, task)
    _draw_step(axes[1, 1], found)
    for axis in axes.flat:
        style_axis(axis)
    for axis in (axes[0, 0], axes[1, 0]):
        axis.legend(fontsize=SMALL, frameon=False, labelcolor=INK)
    axes[1, 1].grid(visible=False, axis="y")
    return figure


def _headline(found: Headroom) -> str:
    words, lines = f"{found.start.model}: {found.advice}".split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > _WRAPPED_AT:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)


def _draw_pass(axis: Axes, found: Headroom) -> None:
    ks = list(found.pass_curve)
    axis.plot(ks, list(found.pass_curve.values()), color=BLUE, marker="o", ms=4, label="pass@k")
    k = found.num_answers
    for name, label, color in (
        ("majority", f"majority of {k}", GREEN),
        ("blind", "on other clips", MUTED),
    ):
        value = found.figures[name].value
        axis.axhline(value, color=color, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    for name, at in (("pass_at_1", 1), ("pass_at_k", k)):
        interval = found.figures[name]
        axis.plot([at, at], [interval.low, interval.high], color=BLUE, linewidth=1.0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_ylim(0, 1.02)
    _label(axis, "answers (k)", "share of prompts")


def _draw_right(axis: Axes, found: Headroom) -> None:
    """How many of a prompt's answers are right: at the ends there is nothing to compare."""
    most, numbers = found.num_answers, Counter(found.num_right)
    heights = [numbers[i] for i in range(most + 1)]
    colors = [RED, *[BLUE] * (most - 1), GREEN]
    axis.bar(range(most + 1), heights, color=colors, alpha=0.85, width=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axis, f"right answers of {most}", "prompts")


def _draw_readings(axis: Axes, found: Headroom, task: Task) -> None:
    """How often each count is right and how often it is answered; a cross: never."""
    rows, at = found.readings, np.arange(len(found.readings))
    num_answers = found.num_prompts * found.num_answers
    true = [row.num_prompts / found.num_prompts for row in rows]
    given = [row.num_answers / num_answers for row in rows]
    axis.bar(at - 0.2, true, 0.4, color=GRID, edgecolor=MUTED, linewidth=0.6, label="true")
    axis.bar(at + 0.2, given, 0.4, color=ORANGE, label="answered")
    never = [i for i, row in enumerate(rows) if row.is_never_answered]
    if never:
        axis.plot(never, [0.0] * len(never), "x", color=RED, clip_on=False, label="never answered")
    names = [str(row.reading) for row in rows]
    axis.set_xticks(at, names, parse_math=False)
    if any(len(name) > 3 for name in names):
        axis.tick_params(axis="x", rotation=90)
    _label(axis, task.reading_name, "share")


def _draw_step(axis: Axes, found: Headroom) -> None:
    """Groups of a step: sampled, trained on, and why the others are not."""
    step = found.step
    lost = step.issued_groups - step.useful_groups.value
    num_dropped = sum(found.dropped.values())
    names = ["sampled", "trained on", *(f"dropped: {r}" for r in found.dropped)]
    widths = [step.issued_groups, step.useful_groups.value]
    widths += [lost * share / num_dropped for share in found.dropped.values()]
    colors = [MUTED, GREEN, *[VIOLET] * len(found.dropped)]
    axis.barh(range(len(names)), widths, color=colors, alpha=0.85, height=0.6)
    useful = step.useful_groups
    axis.plot([useful.low, useful.high], [1, 1], color=INK, linewidth=1.4)
    axis.set_yticks(
        range(len(names)), [n.replace("_", " ") for n in names], fontsize=NORMAL, parse_math=False
    )
    axis.invert_yaxis()
    _label(axis, f"groups a step (line: 95% of means of {FORECAST_STEPS} steps)", "")


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=SMALL, color=MUTED)
    axis.set_ylabel(y, fontsize=SMALL, color=MUTED)
