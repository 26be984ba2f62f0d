"""How the pictures of runs, clips and data look: colours, sizes of text, axes, lanes of cycles.

No global state of matplotlib is touched.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from data_prep.printable import printable
from rewards.grammar.layout import Cycle

INK, MUTED, GRID = "#1d2433", "#6b7385", "#e3e6ec"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2a6fb8", "#e07b28", "#2f9468", "#c9423a", "#7a5bb5"
SMALL, NORMAL, TITLE = 8, 9, 10
_DPI = 150
_MOST_NUMBERED = 40  # cycles that get their number written on them


def make_figure(width: float, height: float) -> Figure:
    """A white figure, inches."""
    engine = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.05)
    return Figure(figsize=(width, height), layout=engine, facecolor="white")


def four_panels(width: float, height: float, headline: str) -> tuple[Figure, np.ndarray]:
    """A figure of 2 x 2 axes, [2, 2], under a line of text; inches."""
    figure = make_figure(width, height)
    figure.suptitle(headline, fontsize=TITLE, color=INK, x=0.01, ha="left", parse_math=False)
    return figure, figure.subplots(2, 2)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; names in it are text, whatever they hold."""
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text(), keeps_lines=True))
    for legend in figure.findobj(Legend):  # a `$` is no mathematics
        for text in legend.get_texts():
            text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def style_axis(axis: Axes) -> None:
    """Two spines and a light grid below what is drawn."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#b9bfca")
    axis.tick_params(which="both", labelsize=SMALL, colors=MUTED, length=3)
    axis.grid(visible=True, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)


def draw_cycles(axis: Axes, lane: int, cycles: Sequence[Cycle], colors: Sequence[str]) -> None:
    """Draw cycles as numbered boxes into a lane; times are seconds."""
    for i, ((start, end), color) in enumerate(zip(cycles, colors, strict=True)):
        alpha = 0.85 if i % 2 == 0 else 0.55  # touching cycles stay apart
        box = Rectangle(
            (start, lane - 0.3), end - start, 0.6, color=color, alpha=alpha, linewidth=0, zorder=2
        )
        axis.add_patch(box)
        if len(cycles) <= _MOST_NUMBERED:
            axis.text(
                (start + end) / 2,
                lane,
                str(i + 1),
                color="white",
                fontsize=SMALL,
                ha="center",
                va="center",
                clip_on=True,
                zorder=3,
            )


def style_lanes(axis: Axes, names: Sequence[str], end_s: float) -> None:
    """Name the lanes, the first on top, over a time axis from 0 to `end_s`."""
    axis.set_xlim(0.0, end_s)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), names, fontsize=NORMAL, parse_math=False)
    axis.set_xlabel("seconds", fontsize=SMALL, color=MUTED)
    style_axis(axis)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0, labelsize=NORMAL, labelcolor=INK)
