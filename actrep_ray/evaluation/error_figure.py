"""How the error grows with the count and with the length of a repetition, as a picture."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import FigureBase

from actrep_ray.evaluation.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    SMALL,
    TITLE,
    VIOLET,
    style_axis,
)

HEIGHT = 3.3  # inches
PANELS = {"true count": "by true count", "length of a repetition": "by length of a repetition"}
"""Conditions of `conditions_frame` that are drawn, with their titles."""

_COLOURS = (BLUE, ORANGE, GREEN, VIOLET, RED, MUTED)
_WIDTH = 0.6  # of a cell, over which its predictors are spread


def draw_errors(figure: FigureBase, conditions: pd.DataFrame, predictors: Sequence[str]) -> None:
    """Draw MAE with 95% intervals, a panel a condition, a colour a predictor.

    Args:
        figure: Where to.
        conditions: Of `conditions_frame`.
        predictors: Those of its rows that are drawn, at most six.
    """
    axes = figure.subplots(1, len(PANELS), squeeze=False, sharey=True)[0]
    for axis, (condition, title) in zip(axes, PANELS.items(), strict=True):
        rows = conditions[conditions["by"] == condition]
        cells = list(rows["cell"].unique())
        for i, name in enumerate(predictors):
            found = rows[rows["predictor"] == name].set_index("cell").reindex(cells)
            mae = found["mae"].to_numpy(np.float64)
            ends = [
                np.nan_to_num(np.abs(found[f"mae_{end}"].to_numpy(np.float64) - mae))
                for end in ("low", "high")
            ]
            x = np.arange(len(cells)) + _WIDTH * ((i + 0.5) / len(predictors) - 0.5)
            axis.errorbar(
                x, mae, np.stack(ends), fmt="o", markersize=4.5, color=_COLOURS[i],
                elinewidth=1.1, capsize=2, label=name,
            )  # fmt: skip
        first = rows[rows["predictor"] == predictors[0]].set_index("cell")["clips"]
        names = [f"{cell}\nn = {first[cell]}" for cell in cells]
        axis.set_xticks(range(len(cells)), names, parse_math=False)
        axis.set_title(f"MAE {title}", fontsize=TITLE, color=INK, loc="left", parse_math=False)
        style_axis(axis)
        axis.grid(visible=False, axis="x")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("MAE (lower is better)", fontsize=SMALL, color=MUTED)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=SMALL, frameon=False, labelcolor=INK, ncols=len(labels),
        loc="outside lower center",
    )  # fmt: skip
