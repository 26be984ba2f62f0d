"""The report as one HTML page that needs no other file and no network.

Names and answers come from data files and models: the template escapes all that it is given.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from actrep_ray.evaluation.explanations import Explanation, explanations_of
from actrep_ray.evaluation.frames import VERDICTS
from actrep_ray.evaluation.image_figures import choose_images
from actrep_ray.evaluation.pictures import choose_clip
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.evaluation.tables import TableData
from data_prep.files import replacing

_CAPTIONS = {
    "curves": "Training. Thin: each step; thick: running mean; dots: held out, with 95% intervals "
    "(shares: Wilson; MAE: bootstrap).",
    "counts": "Predicted against true counts. Blue exact, orange one off, red further off; the "
    "area is the number of clips.",
    "images": "Held-out images, the first of each class, above what the last predictor answered: "
    "green is right.",
    "matrix": "Predictors by data sets, with 95% intervals; the darker, the better.",
    "clip": "One held-out clip. Green cycles match a true one, red ones match none.",
}


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        name: For example "curves".
        caption: What it shows.
        source: A data URI.
    """

    name: str
    caption: str
    source: str


@dataclass(frozen=True)
class Answer:
    """One answer that is shown whole."""

    title: str
    text: str


def write_page(
    path: Path,
    given: ReportInput,
    tables: Sequence[TableData],
    pictures: Mapping[str, Path],
    remarks: Sequence[str],
) -> None:
    """Write the page of a report.

    Args:
        path: The HTML file.
        given: What the report is made of.
        tables: The main ones stand above the pictures.
        pictures: PNG files by name.
        remarks: What stands above them all.
    """
    explanations = _explanations(given)
    environment = Environment(
        loader=PackageLoader("actrep_ray.evaluation"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        title=given.title,
        facts=given.facts,
        remarks=remarks,
        tables=tables,
        verdicts=VERDICTS,
        pictures=[
            Picture(name, caption, _data_uri(pictures[name]))
            for name, caption in _CAPTIONS.items()
            if name in pictures and not (name == "images" and explanations)
        ],
        explanations=explanations,
        answer=_shown_answer(given),
    )
    # A sampled text can hold halves of characters that UTF-8 cannot.
    with replacing(path) as partial:
        partial.write_bytes(page.encode("utf-8", errors="replace"))


def _explanations(given: ReportInput) -> list[Explanation]:
    """What the last predictor answered about the images that are shown."""
    images = choose_images(given.clips)
    if not images or not given.sets:
        return []
    last = {one.clip_id: one for one in list(given.sets.values())[-1]}
    return explanations_of(images, last, given.task)


def _shown_answer(given: ReportInput) -> Answer | None:
    """The whole answer to the clip that is shown, of the last predictor."""
    clip = choose_clip(given.clips)
    if clip is None or not given.sets:
        return None
    name, predictions = list(given.sets.items())[-1]
    prediction = next(p for p in predictions if p.clip_id == clip.id)
    told = given.task.describe_truth(given.task.reference(clip))
    title = f"What {name} answered to {clip.id} ({told})"
    return Answer(title, prediction.text)


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
