"""A picture of one video's count."""

from pathlib import Path

from actrep_ray.counting.record import VideoCount
from actrep_ray.evaluation.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    TITLE,
    draw_cycles,
    make_figure,
    save,
    style_lanes,
)
from actrep_ray.evaluation.periodicity_figure import plot_detection

_LANE = 0.45  # inches


def plot_count(counted: VideoCount, path: Path) -> None:
    """Write a PNG: what the detector saw where it looked, else the repetitions over time.

    Args:
        counted: What was counted.
        path: The PNG file.
    """
    if counted.detection is not None and len(counted.detection.times_s):
        others = {"model": counted.cycles} if counted.votes else {}
        plot_detection(counted.detection, path, title=counted.video.name, others=others)
        return
    lanes = {f"{'model' if counted.votes else 'detector'}: {len(counted.cycles)}": counted.cycles}
    if counted.votes and counted.detection is not None:
        lanes[f"detector: {counted.detection.count}"] = counted.detection.cycles
    figure = make_figure(11.0, 1.2 + _LANE * len(lanes))
    axis = figure.subplots()
    colours = (BLUE, ORANGE)
    for lane, cycles in enumerate(lanes.values()):
        draw_cycles(axis, lane, cycles, [colours[lane % 2]] * len(cycles))
    style_lanes(axis, list(lanes), max(counted.duration_s, 1e-3))
    doubt = f" ({counted.reason})" if counted.reason else ""
    axis.set_title(
        f"{counted.video.name}: count {counted.count}{doubt}",
        fontsize=TITLE,
        color=INK if counted.is_sure else MUTED,
        loc="left",
        parse_math=False,
    )
    save(figure, path)
