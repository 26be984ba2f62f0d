"""A picture of what the periodicity detector saw: self-similarity, signal and repetitions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from actrep_ray.evaluation.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    TITLE,
    draw_cycles,
    make_figure,
    save,
    style_axis,
    style_lanes,
)
from data_prep.periodicity.detector import Detection
from data_prep.periodicity.verdict import COUNT
from rewards.grammar.layout import Cycle


def plot_detection(
    found: Detection,
    path: Path,
    *,
    title: str,
    others: Mapping[str, tuple[Cycle, ...]] | None = None,
) -> None:
    """Write a PNG with the self-similarity matrix, the signal and the repetitions.

    Args:
        found: What was detected.
        path: The PNG file.
        title: What the clip is.
        others: Cycles of others by name, for example a model's, shown below the detector's.
    """
    shown = found.cycles or found.rejected
    name = "detector" if found.cycles or not found.rejected else "not believed"
    lanes = {f"{name}: {len(shown)}": shown}
    lanes |= {f"{name}: {len(cycles)}": cycles for name, cycles in (others or {}).items()}
    figure = make_figure(11.0, 4.1 + 0.35 * len(lanes))
    grid = figure.add_gridspec(
        2, 2, width_ratios=[1.0, 1.75], height_ratios=[2.2, 0.55 + 0.45 * len(lanes)]
    )
    _draw_matrix(figure.add_subplot(grid[:, 0]), found)
    signal = figure.add_subplot(grid[0, 1])
    _draw_signal(signal, found, title)
    lower = figure.add_subplot(grid[1, 1], sharex=signal)
    own = BLUE if shown == found.cycles else MUTED
    for lane, (color, cycles) in enumerate(zip((own, ORANGE), lanes.values(), strict=False)):
        draw_cycles(lower, lane, cycles, [color] * len(cycles))
    style_lanes(lower, list(lanes), _end_of(found))
    save(figure, path)


def _end_of(found: Detection) -> float:
    return max(float(found.times_s[-1]), 1e-3)


def _draw_matrix(axis: Axes, found: Detection) -> None:
    end = _end_of(found)
    image = axis.imshow(
        1.0 - np.minimum(found.distances, 1.0),
        cmap="magma",
        vmin=0.0,
        vmax=1.0,
        extent=(0.0, end, end, 0.0),
        interpolation="nearest",
    )
    for start, stop in found.cycles:
        size = stop - start
        axis.add_patch(
            Rectangle((start, start), size, size, fill=False, edgecolor="white", linewidth=0.9)
        )
    axis.set_title("Self-similarity (squares: repetitions)", fontsize=TITLE, color=INK, loc="left")
    axis.set_xlabel("seconds", fontsize=SMALL, color=MUTED)
    axis.set_ylabel("seconds", fontsize=SMALL, color=MUTED)
    axis.tick_params(labelsize=SMALL, colors=MUTED, length=3)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_ticks([0.0, 0.5, 1.0], labels=["unlike", "0.5", "same"])
    bar.ax.tick_params(labelsize=SMALL, colors=MUTED, length=2)


def _draw_signal(axis: Axes, found: Detection, title: str) -> None:
    period = found.period.period_s
    length = "no period" if period is None else f"period {period:.2f} s"
    number = f"{found.count} repetition{'' if found.count == 1 else 's'}"
    answer = number if found.verdict == COUNT else f"{found.verdict} ({found.reason})"
    axis.set_title(
        f"{title}: {answer}, periodicity {found.score:.2f}, {length}",
        fontsize=TITLE,
        color=INK,
        loc="left",
        parse_math=False,
    )
    for i, (start, stop) in enumerate(found.cycles):
        axis.axvspan(start, stop, color=BLUE, alpha=(0.16, 0.07)[i % 2], linewidth=0)
    for start, stop in found.rejected:
        axis.axvspan(start, stop, facecolor="none", edgecolor=MUTED, hatch="//", linewidth=0.6)
    for shot in found.shots[1:]:
        axis.axvline(shot.start_s, color=INK, linewidth=0.8, linestyle=":")
    axis.plot(found.times_s, found.signal, color=BLUE, linewidth=1.4)
    borders = sorted({border for cycle in found.cycles for border in cycle})
    heights = np.interp(borders, found.times_s, found.signal)
    axis.plot(borders, heights, "o", color=ORANGE, markersize=4.0)
    axis.set_xlim(0.0, _end_of(found))
    axis.set_ylabel("first principal component", fontsize=SMALL, color=MUTED)
    style_axis(axis)
