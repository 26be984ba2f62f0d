"""Predictors by data sets as a picture: a panel a figure, the darker the better."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import FigureBase

from actrep_ray.evaluation.figure_style import BLUE, INK, NORMAL, SMALL, TITLE
from actrep_ray.evaluation.frames import ENDS, matrix_figures
from actrep_ray.evaluation.tables import datasets_of
from actrep_ray.tasks.base import FigureSpec, Task

_HEAD, _ROW = 1.1, 0.42  # inches
_DARK = 0.55  # of the scale: from here on texts are white


def height_of(matrix: pd.DataFrame) -> float:
    """Inches of the picture."""
    return _HEAD + _ROW * len(matrix)


def draw_matrix(figure: FigureBase, matrix: pd.DataFrame, task: Task) -> None:
    """Draw each figure of `matrix_frame`: a row a predictor, a column a data set."""
    shown = matrix_figures(task)
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axis, spec in zip(axes, shown, strict=True):
        datasets = datasets_of(matrix, spec)
        values, low, high = (
            matrix[[f"{name} {spec.name}{end}" for name in datasets]].to_numpy(np.float64)
            for end in ("", *ENDS)
        )
        shades = goodness(values, spec)
        axis.imshow(shades, cmap=_COLORS, vmin=0.0, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            interval = f"\n{low[row, column]:.2f}–{high[row, column]:.2f}"
            axis.text(
                column,
                row,
                f"{value:.2f}" + ("" if np.isnan(low[row, column]) else interval),
                color="white" if shades[row, column] > _DARK else INK,
                fontsize=SMALL,
                ha="center",
                va="center",
            )
        axis.set_title(spec.header, fontsize=TITLE, color=INK, loc="left", parse_math=False)
        axis.set_xticks(range(len(datasets)), datasets, fontsize=NORMAL, parse_math=False)
        axis.set_yticks(range(len(matrix)), matrix["predictor"], fontsize=NORMAL, parse_math=False)
        axis.tick_params(length=0, labelcolor=INK)
        for spine in axis.spines.values():
            spine.set_visible(False)


def goodness(values: np.ndarray, figure: FigureSpec) -> np.ndarray:
    """How dark each cell is, 0 to 1: a share as it is, an error against the largest one."""
    most = 1.0 if figure.is_share else float(values.max()) or 1.0
    shares: np.ndarray = values / most
    return 1.0 - shares if figure.is_lower_better else shares


_COLORS = LinearSegmentedColormap.from_list("white to blue", ["white", BLUE])
