"""Confidence against the share that is right, as a picture."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import FigureBase

from actrep_ray.evaluation.confidence import Reliability
from actrep_ray.evaluation.figure_style import BLUE, INK, MUTED, ORANGE, SMALL, TITLE, style_axis

HEIGHT = 3.6  # inches


def draw_confidence(figure: FigureBase, found: Mapping[str, Reliability]) -> None:
    """Draw a panel a predictor: its bins, and the calibration that was fitted on all clips."""
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        x = np.array([bin_.confidence for bin_ in one.bins])
        y = np.array([bin_.right.value for bin_ in one.bins])
        ends = np.array([[b.right.value - b.right.low, b.right.high - b.right.value]
                         for b in one.bins]).T.clip(min=0)  # fmt: skip
        number = np.array([bin_.num_clips for bin_ in one.bins])
        axis.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        points = np.array(one.calibration.points)
        axis.plot(*points.T, color=ORANGE, linewidth=1.2, label="calibration")
        axis.errorbar(x, y, ends, fmt="none", ecolor=BLUE, elinewidth=1.0, alpha=0.6)
        axis.scatter(x, y, s=14 + 180 * number / number.max(), color=BLUE, alpha=0.8)
        title = f"{name}, {one.num_answers} answers\nexpected calibration error {one.error:.3f}"
        axis.set_title(title, fontsize=TITLE, color=INK, loc="left", parse_math=False)
        axis.set_xlabel("confidence", fontsize=SMALL, color=MUTED)
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(-0.03, 1.03)
        style_axis(axis)
    axes[0].set_ylabel("share that is right", fontsize=SMALL, color=MUTED)
    axes[0].legend(fontsize=SMALL, frameon=False, labelcolor=INK, loc="upper left")
