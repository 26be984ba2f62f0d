"""Pictures of a data set: how counts, lengths, cycles and visual tokens are distributed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from actrep_ray.evaluation.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    SMALL,
    VIOLET,
    four_panels,
    style_axis,
)
from data_prep.validation.clip_checks import SAMPLES_PER_CYCLE
from data_prep.validation.report import Report

_SPLIT_COLORS = {"train": BLUE, "validation": GREEN, "test": ORANGE}
_MOST_BINS = 40


def draw_report(report: Report) -> Figure:
    """Draw the distributions of a validated file: one panel each for counts, durations, cycles
    and visual tokens, with the limits that the recipe sets."""
    figure, axes = four_panels(10.0, 6.4, _headline(report))
    _draw_counts(axes[0, 0], report)
    _draw_durations(axes[0, 1], report)
    _draw_cycles(axes[1, 0], report)
    _draw_tokens(axes[1, 1], report)
    for axis in axes.flat:
        style_axis(axis)
        if axis.get_legend_handles_labels()[0] and (axis is axes[0, 0] or axis.lines):
            _add_legend(axis)
    return figure


def _headline(report: Report) -> str:
    return (
        f"{report.path}\n{report.num_rows:,} rows: {report.num_ok:,} ok, "
        f"{report.num_warnings:,} with warnings, {report.num_errors:,} with errors"
        + (f", {report.num_other_rows:,} of other splits" if report.num_other_rows else "")
    )


def _draw_counts(axis: Axes, report: Report) -> None:
    counts = [estimate.count for estimate in report.estimates]
    top = max(counts)
    width = max(1, -(-(top + 1) // _MOST_BINS))
    edges = np.arange(0, top + width + 1, width) - 0.5
    _stack(axis, report, counts, edges)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    _label(axis, "repetitions of a clip", "clips")


def _draw_durations(axis: Axes, report: Report) -> None:
    durations = [estimate.duration_s for estimate in report.estimates]
    _stack(axis, report, durations, _edges(durations))
    longest = report.view.max_frames / report.view.fps
    if longest <= 1.5 * max(durations):
        text = f"{report.view.max_frames} frames at {report.view.fps:g} fps"
        _mark(axis, longest, text)
    _label(axis, "length of a clip, seconds", "clips")


def _draw_cycles(axis: Axes, report: Report) -> None:
    """Lengths of all marks; left of a line they have fewer than two samples."""
    lengths = np.asarray(report.cycle_lengths_s)
    _label(axis, "length of a cycle, seconds", "cycles")
    if not len(lengths):
        axis.text(0.5, 0.5, "no cycle marks", transform=axis.transAxes, ha="center", color=MUTED)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    shown = lengths[lengths <= np.quantile(lengths, 0.995)]
    axis.hist(shown, _edges(shown), color=_SPLIT_COLORS["train"], alpha=0.8)
    view = report.view
    limit_s = SAMPLES_PER_CYCLE / view.fps
    merged = limit_s * view.frames_per_patch
    for x, what, color in ((limit_s, "frames", RED), (merged, "temporal patches", VIOLET)):
        shorter = f"{100 * (lengths < x).mean():.0f}% of cycles shorter"
        _mark(axis, x, f"2 {what} at {view.fps:g} fps: {shorter}", color=color)
    axis.set_xlim(left=0)
    if len(shown) < len(lengths):
        more = f"{len(lengths) - len(shown):,} longer ones, up to {lengths.max():.3g} s"
        axis.text(
            0.99, 0.02, more, transform=axis.transAxes, ha="right", fontsize=SMALL, color=MUTED
        )


def _draw_tokens(axis: Axes, report: Report) -> None:
    tokens = [estimate.visual_tokens for estimate in report.estimates]
    _stack(axis, report, tokens, _edges(tokens))
    room = report.view.max_visual_tokens
    if room is not None and room <= 1.5 * max(tokens):
        _mark(axis, room, "room in the context")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _label(axis, "visual tokens of a clip", "clips")


def _stack(axis: Axes, report: Report, values: Sequence[float], edges: np.ndarray) -> None:
    """A histogram, its bars stacked by split."""
    splits = np.array([estimate.split for estimate in report.estimates])
    names = [name for name in _SPLIT_COLORS if (splits == name).any()]
    columns = [np.asarray(values)[splits == name] for name in names]
    labels = [f"{name} ({len(column):,})" for name, column in zip(names, columns, strict=True)]
    colors = [_SPLIT_COLORS[name] for name in names]
    axis.hist(columns, edges, stacked=True, color=colors, label=labels, alpha=0.8)


def _edges(values: Sequence[float] | np.ndarray) -> np.ndarray:
    low, high = float(np.min(values)), float(np.max(values))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, min(_MOST_BINS, max(8, len(values) // 4)) + 1)


def _mark(axis: Axes, x: float, text: str, *, color: str = RED) -> None:
    """A limit as a dashed line, named in the legend."""
    axis.axvline(x, color=color, linewidth=1.2, linestyle=(0, (4, 3)), label=text)


def _add_legend(axis: Axes) -> None:
    """Name the limits, if there are any, else the splits; above the panel, not over its bars."""
    limits = list(axis.lines)
    axis.legend(
        handles=limits or axis.get_legend_handles_labels()[0],
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        ncols=1 if limits else 3,
        handlelength=1.6,
        borderpad=0.1,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
    )


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=SMALL, color=MUTED)
    axis.set_ylabel(y, fontsize=SMALL, color=MUTED)
