"""The pictures of a report: which there are, how large, and one sheet with all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.evaluation.confidence import Reliability
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.evaluation.scores import Metrics
from data_prep.rows import Row, clips_among
from data_prep.schema import Clip

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import FigureBase

_MIN_SHOWN_CYCLES = 3  # of the clip that is shown
_MOST_SETS = 3  # the last ones, of those that were compared


@dataclass(frozen=True)
class _Picture:
    """One picture.

    Attributes:
        name: Of its file.
        height: Inches.
        draw: Draws it into a figure or subfigure.
    """

    name: str
    height: float
    draw: "Callable[[FigureBase], None]"


def choose_clip(clips: Sequence[Row]) -> Clip | None:
    """The clip to show: the first with at least three annotated cycles, whatever was answered."""
    for clip in clips:
        if isinstance(clip, Clip) and clip.cycles and len(clip.cycles) >= _MIN_SHOWN_CYCLES:
            return clip
    return None


def write_pictures(
    given: ReportInput,
    metrics: Mapping[str, Metrics],
    folder: Path,
    frames: "Mapping[str, pd.DataFrame]",
    confidence: Mapping[str, Reliability],
) -> dict[str, Path]:
    """Draw what there is to draw; returns the PNG files by name.

    Args:
        given: What the report is made of.
        metrics: Figures by predictor.
        folder: Gets the files.
        frames: Of them, `matrix` and `conditions` are drawn if they are there.
        confidence: Of predictors that were sampled.
    """
    # matplotlib takes a second to import, and the tables do without it.
    from actrep_ray.evaluation import figures as plots
    from actrep_ray.evaluation.figure_style import make_figure, save

    pictures = _pictures(given, metrics)
    if "conditions" in frames and given.sets:
        pictures.append(_errors_picture(frames["conditions"], given))
    if confidence:
        pictures.append(_confidence_picture(confidence))
    if "matrix" in frames:
        pictures.append(_matrix_picture(frames["matrix"], given))
    if not pictures:
        return {}
    width = max(11.0, 2.9 * plots.columns_of(given.stages))
    paths = {picture.name: folder / f"{picture.name}.png" for picture in pictures}
    for picture in pictures:
        figure = make_figure(width, picture.height)
        picture.draw(figure)
        save(figure, paths[picture.name])
    heights = [picture.height for picture in pictures]
    sheet = make_figure(width, sum(heights))
    rows = sheet.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights)
    for row, picture in zip(rows[:, 0], pictures, strict=True):
        picture.draw(row)
    paths["summary"] = folder / "summary.png"
    save(sheet, paths["summary"])
    return paths


def _errors_picture(conditions: "pd.DataFrame", given: ReportInput) -> _Picture:
    from actrep_ray.evaluation.error_figure import HEIGHT, draw_errors
    from actrep_ray.evaluation.frames import clean

    names = [clean(name) for name in list(given.sets)[-_MOST_SETS:]]
    return _Picture("errors", HEIGHT, lambda figure: draw_errors(figure, conditions, names))


def _confidence_picture(confidence: Mapping[str, Reliability]) -> _Picture:
    from actrep_ray.evaluation.confidence_figure import HEIGHT, draw_confidence

    shown = dict(list(confidence.items())[-_MOST_SETS:])
    return _Picture("confidence", HEIGHT, lambda figure: draw_confidence(figure, shown))


def _matrix_picture(matrix: "pd.DataFrame", given: ReportInput) -> _Picture:
    from actrep_ray.evaluation.matrix_figure import draw_matrix, height_of

    height = height_of(matrix)
    return _Picture("matrix", height, lambda figure: draw_matrix(figure, matrix, given.task))


def _pictures(given: ReportInput, metrics: Mapping[str, Metrics]) -> list[_Picture]:
    from actrep_ray.evaluation import figures as plots
    from actrep_ray.evaluation import image_figures as image_plots

    pictures = []
    if plots.count_panels(given.stages):
        pictures.append(
            _Picture(
                "curves",
                3.1 * plots.rows_of(given.stages),
                lambda figure: plots.draw_curves(figure, given.stages),
            )
        )
    if not given.sets:
        return pictures
    shown = dict(list(given.sets.items())[-_MOST_SETS:])
    if given.task.is_counting:
        truth = {clip.id: clip.count for clip in clips_among(given.clips)}
        pictures.append(
            _Picture("counts", 3.9, lambda figure: plots.draw_counts(figure, shown, truth, metrics))
        )
    if (clip := choose_clip(given.clips)) is not None:
        answers = {
            name: next(p for p in predictions if p.clip_id == clip.id)
            for name, predictions in shown.items()
        }
        strip = plots.read_strip(clip, answers)
        height = 1.5 + 0.33 * (1 + len(answers))
        pictures.append(_Picture("clip", height, lambda figure: plots.draw_clip(figure, strip)))
    if images := image_plots.choose_images(given.clips):
        last = {p.clip_id: p for p in list(shown.values())[-1]}
        pictures.append(
            _Picture(
                "images",
                image_plots.height_of(images),
                lambda figure: image_plots.draw_images(figure, images, last, given.task),
            )
        )
    return pictures
