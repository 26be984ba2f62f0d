"""The report as one HTML page that needs no other file and no network.

Names and answers come from data files and models: the template escapes all that it is given.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from actrep_ray.evaluation.examples import Example, examples_of
from actrep_ray.evaluation.explanations import Explanation, explanations_of
from actrep_ray.evaluation.frames import VERDICTS
from actrep_ray.evaluation.image_figures import choose_images
from actrep_ray.evaluation.pictures import choose_clip
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.evaluation.tables import TableData
from data_prep.files import replacing
from rewards.reference import Reference

_CAPTIONS = {
    "curves": "Training. Thin: each step; thick: running mean; dots: held out, with 95% intervals "
    "(shares: Wilson; MAE: bootstrap).",
    "counts": "Predicted against true counts. Blue exact, orange one off, red further off; the "
    "area is the number of clips.",
    "images": "Held-out images, the first of each class, above what the last predictor answered: "
    "green is right.",
    "errors": "Error against the true count, and against the mean length of a clip's repetitions "
    "(by its marks, else its length by its count), with 95% bootstrap intervals over clips.",
    "confidence": "How often the median of the samples is right, by its confidence, with 95% "
    "Wilson intervals; the area is the number of clips. On the line, confidence is what it says.",
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
    labels: Mapping[str, Reference],
) -> None:
    """Write the page of a report.

    Args:
        path: The HTML file.
        given: What the report is made of.
        tables: The main ones stand above the pictures.
        pictures: PNG files by name.
        remarks: What stands above them all.
        labels: By clip id; the answers of the last predictor are shown beside them.
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
        examples=_examples(given, labels),
        shown=list(given.sets)[-1] if given.sets else "",
        num_answers=len(given.clips),
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


def _examples(given: ReportInput, labels: Mapping[str, Reference]) -> list[Example]:
    """Answers of the last predictor, the worst first."""
    if not given.sets:
        return []
    return examples_of(given.clips, list(given.sets.values())[-1], labels, given.task)


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
