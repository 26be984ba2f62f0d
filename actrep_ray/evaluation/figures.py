"""Pictures of a run: training curves, predicted against true counts, and a clip with its cycles.

Every `draw_*` draws into a figure or subfigure that it is given, so that a report can put several
on one page. `figure_style` makes figures and saves them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import linear_sum_assignment

from actrep_ray.evaluation.figure_style import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    RED,
    SMALL,
    TITLE,
    VIOLET,
    draw_cycles,
    style_axis,
    style_lanes,
)
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import Metrics
from data_prep.schema import Clip
from data_prep.video import plan_frames
from data_prep.video.guard import read_guarded
from rewards.cycles import close_pairs
from rewards.grammar.layout import Cycle

_TEAL, _ROSE, _OLIVE = "#1c98a8", "#c2558a", "#8d8a2b"
_EXTRA = (ORANGE, GREEN, VIOLET, _TEAL, _ROSE, _OLIVE)
_MISSED_BY = (BLUE, ORANGE, RED)
_MISSED_TEXTS = ("exact", "one off", "further off")
_MOST_COLUMNS = 4  # panels of curves side by side
_SMOOTH_SHARE = 0.025  # of the curve's length: how far the smoothing looks back

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ClipStrip:
    """One clip to be shown: some of its frames and what is known or claimed about its cycles.

    Attributes:
        title: What the clip is.
        duration_s: Length of the clip.
        times_s: Time of each frame from the start of the clip, N of them.
        frames: uint8 RGB [N, height, width, 3]
        truth: The annotated cycles.
        rows: Name of each predictor, and its prediction.
    """

    title: str
    duration_s: float
    times_s: tuple[float, ...]
    frames: np.ndarray
    truth: tuple[Cycle, ...]
    rows: Mapping[str, Prediction]


def read_strip(
    clip: Clip, rows: Mapping[str, Prediction], *, num_frames: int = 14, max_pixels: int = 160 * 160
) -> ClipStrip:
    """Decode evenly spread frames of a clip, each from the middle of its share of the time.

    Raises:
        VideoError: if the video cannot be read.
    """
    plan = plan_frames(
        clip,
        fps=num_frames / clip.duration_s,
        min_frames=num_frames,
        max_frames=num_frames,
        min_pixels=1,
        max_pixels=max_pixels,
        factor=2,
    )
    times = (np.arange(num_frames) + 0.5) * clip.duration_s / num_frames
    plan = replace(plan, times_s=tuple((clip.start_s + times).tolist()))
    action = clip.action.replace("_", " ")
    return ClipStrip(
        title=f"{clip.id}: {action}, {clip.count} repetitions",
        duration_s=clip.duration_s,
        times_s=tuple(float(t) for t in times),
        frames=read_guarded(plan),
        truth=clip.cycles or (),
        rows=rows,
    )


# --- (a) curves


def columns_of(stages: Mapping[str, Sequence[Row]]) -> int:
    """How many panels of `draw_curves` stand side by side: a run of both stages has four."""
    return min(len(_find_panels(stages)), _MOST_COLUMNS)


def rows_of(stages: Mapping[str, Sequence[Row]]) -> int:
    """How many rows of panels `draw_curves` draws."""
    return -(-len(_find_panels(stages)) // _MOST_COLUMNS)


def count_panels(stages: Mapping[str, Sequence[Row]]) -> int:
    """How many panels `draw_curves` has to draw."""
    return len(_find_panels(stages))


def draw_curves(figure: FigureBase, stages: Mapping[str, Sequence[Row]]) -> None:
    """Draw what the stages of a run logged: loss, reward, accuracy and error in training.

    Args:
        figure: Where to.
        stages: Rows of `metrics.jsonl` of each stage, for example "SFT" and "GRPO".

    Raises:
        ValueError: if nothing that can be drawn was logged.
    """
    panels = _find_panels(stages)
    if not panels:
        raise ValueError(f"the metrics of {', '.join(stages) or 'no stage'} hold no curve")
    axes = figure.subplots(rows_of(stages), columns_of(stages), squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (title, draw, rows) in zip(axes, panels, strict=False):
        draw(axis, title, rows)
        axis.set_xlabel("step", fontsize=SMALL, color=MUTED)
        style_axis(axis)
        axis.margins(x=0.02)
        axis.legend(
            fontsize=SMALL,
            frameon=False,
            labelcolor=INK,
            handlelength=1.4,
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
        )


def _find_panels(
    stages: Mapping[str, Sequence[Row]],
) -> list[tuple[str, Callable[[Axes | None, str, Sequence[Row]], bool], Sequence[Row]]]:
    return [
        (title, draw, rows)
        for title, rows in stages.items()
        for draw in (_loss_panel, _reward_panel, _accuracy_panel, _error_panel)
        if draw(None, title, rows)
    ]


def _loss_panel(axis: Axes | None, title: str, rows: Sequence[Row]) -> bool:
    return _panel(
        axis,
        f"{title}: loss per token",
        rows,
        {"sft/loss": ("train", BLUE)},
        points={"sft/validation_loss": ("validation", ORANGE)},
        is_log=True,
    )


def _reward_panel(axis: Axes | None, title: str, rows: Sequence[Row]) -> bool:
    hidden = ("reward/mean", "reward/std_in_group")
    keys = {key for row in rows for key in row if key.startswith("reward/") and key not in hidden}
    parts = {
        key: (key.removeprefix("reward/"), _EXTRA[i % len(_EXTRA)])
        for i, key in enumerate(sorted(keys))
    }
    lines = {"reward/mean": ("total", BLUE), **parts}
    return _panel(axis, f"{title}: reward and its parts", rows, lines)


def _accuracy_panel(axis: Axes | None, title: str, rows: Sequence[Row]) -> bool:
    shown = {
        "obo": ("within one", BLUE),
        "obz": ("exact", ORANGE),
        "obz_list": ("exact by list", GREEN),
        "consistent": ("consistent", VIOLET),
    }
    lines = {f"train/{key}": (f"{name}, sampled", color) for key, (name, color) in shown.items()}
    points = {f"eval/{key}": (f"{name}, held out", color) for key, (name, color) in shown.items()}
    return _panel(axis, f"{title}: accuracy of counts", rows, lines, points=points)


def _error_panel(axis: Axes | None, title: str, rows: Sequence[Row]) -> bool:
    lines = {"train/mae": ("sampled", BLUE)}
    points = {"eval/mae": ("held out, greedy", ORANGE)}
    return _panel(axis, f"{title}: MAE (lower is better)", rows, lines, points=points)


def _panel(
    axis: Axes | None,
    title: str,
    rows: Sequence[Row],
    lines: Mapping[str, tuple[str, str]],
    *,
    points: Mapping[str, tuple[str, str]] | None = None,
    is_log: bool = False,
) -> bool:
    """Draw curves (raw and smoothed) and points; without an axis, say whether there are any."""
    known = {key for row in rows for key, value in row.items() if value is not None}
    if not known & set(lines):
        return False
    if axis is None:
        return True
    axis.set_title(title, fontsize=TITLE, color=INK, loc="left", parse_math=False)
    for key, (label, color) in lines.items():
        steps, values = _series(rows, key)
        if not len(steps):
            continue
        smooth = _smooth(values)
        axis.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
        axis.plot(steps, smooth, color=color, linewidth=1.7, label=label)
    for key, (label, color) in (points or {}).items():
        steps, values = _series(rows, key)
        if not len(steps):
            continue
        low, high = (_series(rows, f"{key}_{end}")[1] for end in ("low", "high"))
        if len(low) == len(high) == len(values):
            errors = np.stack([values - low, high - values]).clip(min=0)
            axis.errorbar(
                steps, values, errors, fmt="none", ecolor=color, elinewidth=0.9, alpha=0.5
            )
        style = {"markerfacecolor": "white", "markersize": 4.5, "linewidth": 0.9}
        axis.plot(steps, values, "o--", color=color, label=label, **style)
    if is_log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    return True


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, np.float64), np.array(values, np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running mean with weights that fall off exponentially, without a bias at the start."""
    keep = math.exp(-1.0 / max(1.0, _SMOOTH_SHARE * len(values)))
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight)
    return np.array(out)


# --- (b) predicted against true counts


def draw_counts(
    figure: FigureBase,
    sets: Mapping[str, Sequence[Prediction]],
    truth: Mapping[str, int],
    metrics: Mapping[str, Metrics],
) -> None:
    """Draw predicted against true counts, a panel for each predictor with its figures above.

    The area of a circle is the number of clips at that pair of counts; the band is within one.
    Answers without a count that can be read are crosses below.
    """
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    top = max(truth.values())
    for axis, (name, predictions) in zip(axes, sets.items(), strict=True):
        scored = metrics[name]
        axis.set_title(
            _counts_title(name, scored),
            fontsize=TITLE,
            color=INK,
            loc="left",
            parse_math=False,
        )
        _counts_panel(axis, predictions, truth, top)
        style_axis(axis)
        axis.grid(visible=False)
    axes[0].set_ylabel("predicted count", fontsize=SMALL, color=MUTED)
    kinds = [("o", color, text) for color, text in zip(_MISSED_BY, _MISSED_TEXTS, strict=True)]
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=color, alpha=0.75, label=text)
        for marker, color, text in (*kinds, ("X", MUTED, "no count"))
    ]
    figure.legend(
        handles=handles,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handletextpad=0.2,
        ncols=len(handles),
        loc="outside lower center",
    )


def _counts_title(name: str, scored: Metrics) -> str:
    told = [f"exact {scored['obz'].value:.2f}", f"within one {scored['obo'].value:.2f}"]
    if "obz_list" in scored.values:
        told.insert(1, f"by list {scored['obz_list'].value:.2f}")
    return f"{name}, n = {scored.num_clips}\n{', '.join(told)}"


def _counts_panel(
    axis: Axes,
    predictions: Sequence[Prediction],
    truth: Mapping[str, int],
    top: int,
) -> None:
    ceiling = math.ceil(top * 1.25) + 1  # predictions above it are drawn on it
    missing = -0.09 * ceiling - 0.5
    counts = {p.clip_id: None if p.reading is None else int(p.reading) for p in predictions}
    cells = Counter((truth[clip_id], count) for clip_id, count in counts.items())
    ends = np.array([-0.5, top + 0.5])
    axis.fill_between(ends, ends - 1, ends + 1, color=BLUE, alpha=0.08, linewidth=0)
    axis.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    largest = max(cells.values())
    for (true, count), number in sorted(cells.items(), key=lambda cell: -cell[1]):
        if count is None:
            y, color, marker = missing, MUTED, "X"
        else:
            y, marker = float(min(count, ceiling)), "^" if count > ceiling else "o"
            color = _MISSED_BY[min(abs(true - count), 2)]
        size = 14 + 250 * number / max(largest, 12)
        axis.scatter(
            true,
            y,
            s=size,
            color=color,
            marker=marker,
            alpha=0.75,
            linewidth=0.6,
            edgecolor="white",
        )
    axis.axhline(missing / 2, color=GRID, linewidth=0.8)
    axis.set_xlim(-0.03 * top - 0.8, top + 0.03 * top + 0.8)
    axis.set_ylim(missing * 1.7, ceiling * 1.05)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ticks = MaxNLocator(integer=True, nbins=8).tick_values(0, ceiling)
    ticks = [tick for tick in ticks if 0 <= tick <= ceiling]
    axis.set_yticks([missing, *ticks], ["none", *(f"{tick:.0f}" for tick in ticks)])
    axis.set_xlabel("true count", fontsize=SMALL, color=MUTED)


# --- (c) a clip with its cycles


def draw_clip(figure: FigureBase, strip: ClipStrip) -> None:
    """Draw a strip of frames above the true and the predicted cycles on one time axis.

    Each frame is centred on its own time. A predicted cycle is green where it matches a true one
    (one to one), red where it matches none.
    """
    lanes = 1 + len(strip.rows)
    height, width = strip.frames.shape[1:3]
    share = strip.duration_s / len(strip.frames)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=[1.35, 0.42 * lanes])
    for time_s, frame in zip(strip.times_s, strip.frames, strict=True):
        half = 0.49 * share
        axes[0].imshow(frame, extent=(time_s - half, time_s + half, 0, 1), aspect="auto", zorder=2)
    axes[0].set_title(strip.title, fontsize=TITLE, color=INK, loc="left", parse_math=False)
    # The axis box gets the shape that leaves the frames' pixels square.
    axes[0].set_box_aspect(height / (width * len(strip.frames)) * 0.98)
    axes[0].axis("off")
    axes[0].set_ylim(0, 1)
    lower = axes[1]
    draw_cycles(lower, 0, strip.truth, [BLUE] * len(strip.truth))
    texts = [f"true: {len(strip.truth)}"]
    for lane, (name, prediction) in enumerate(strip.rows.items(), start=1):
        cycles = tuple(c for c in prediction.cycles if 0 <= c[0] < c[1] <= strip.duration_s * 1.2)
        hits = match_cycles(cycles, strip.truth)
        draw_cycles(lower, lane, cycles, [GREEN if hit else RED for hit in hits])
        texts.append(f"{name}: {_told(prediction)}")
    style_lanes(lower, texts, strip.duration_s)
    legend = "seconds; green: matches a true cycle, red: matches none"
    lower.set_xlabel(legend if strip.rows else "seconds", fontsize=SMALL, color=MUTED)


def _told(prediction: Prediction) -> str:
    """What was answered, and the number that was listed where it is another."""
    reading, num_listed = prediction.reading, len(prediction.cycles)
    told = "none" if reading is None else str(reading)
    if isinstance(reading, str) or num_listed in (0, reading):
        return told
    return f"{told}, lists {num_listed}"


def match_cycles(cycles: tuple[Cycle, ...], truth: tuple[Cycle, ...]) -> np.ndarray:
    """Which predicted cycles have a true one of their own. bool [P]"""
    hits = np.zeros(len(cycles), bool)
    if not cycles or not truth:
        return hits
    close = close_pairs(cycles, truth)
    annotated, listed = linear_sum_assignment(close, maximize=True)
    hits[listed] = close[annotated, listed]
    return hits
