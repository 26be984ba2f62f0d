"""Evaluations as pandas data frames, and frames as Markdown, CSV and LaTeX files.

    predictors     one row for each predictor
    differences    one row for each pair of stages and figure
    breakdown      one row for each predictor, data set and cell of the task's breakdowns (of
                   counting: action and bin of the true count)

A frame holds numbers: of figure F its value `F` and the ends of its 95% interval, `F_low` and
`F_high`. CSV keeps every digit of them; Markdown and LaTeX join the three in one cell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import Figures, Metrics, score_cells
from actrep_ray.tasks.base import Task, labels_of
from data_prep.files import replacing
from data_prep.schema import Clip
from rewards.reference import Reference

_ENDS = ("_low", "_high")
_LATEX_HEAD = "% needs \\usepackage{booktabs}; with UTF-8 input\n"
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after a line's \\ it would begin an argument
        "]": "{]}",
        "\u2191": r"$\uparrow$",
        "\u2193": r"$\downarrow$",
        "\u2192": r"$\rightarrow$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
_MARKDOWN = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;", **{c: f"\\{c}" for c in "\\`*_[]|~$"}}
)


def predictors_frame(metrics: Mapping[str, Metrics]) -> pd.DataFrame:
    """The figures of each predictor over all clips."""
    return pd.DataFrame([{"predictor": _clean(name), **_numbers(m)} for name, m in metrics.items()])


def differences_frame(differences: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    """What changed from stage to stage, with paired bootstrap intervals."""
    return pd.DataFrame(
        [
            {"stages": _clean(pair), "figure": key, **_ends("change", interval)}
            for pair, intervals in differences.items()
            for key, interval in intervals.items()
        ]
    )


def breakdown_frame(
    sets: Mapping[str, Sequence[Prediction]],
    clips: Sequence[Clip],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures by data set and all breakdowns at once, for each predictor.

    Beside the figures: `clips`, how many are in the cell, and the task's means (of counting:
    `true_count`, and `predicted_count` of the counts that could be read). One clip has no
    bootstrap interval: these ends are NaN there.

    Args:
        sets: Predictions on all of `clips`, by the name of the predictor.
        clips: What was asked about.
        task: Says what the figures and breakdowns are.
        num_bootstrap: Resamples of the intervals of what is no share.
        seed: Of the resamples.

    Raises:
        ValueError: if a predictor does not answer exactly these clips.
    """
    sets = {_clean(name): predictions for name, predictions in sets.items()}
    labels = labels_of(clips, task)
    breakdowns = task.breakdowns[::-1]
    keys = ["dataset", *(breakdown.column for breakdown in breakdowns)]
    cells = {
        clip.id: (
            _clean(clip.dataset),
            *(_clean(breakdown.cell_of(labels[clip.id])) for breakdown in breakdowns),
        )
        for clip in clips
    }
    rows = [
        {"predictor": name, **dict(zip(keys, cell, strict=True)), **_numbers(figures)}
        for name, predictions in sets.items()
        for cell, figures in score_cells(
            predictions, labels, cells, task, num_bootstrap=num_bootstrap, seed=seed
        ).items()
    ]
    keys = ["predictor", *keys]
    means = _cell_means(sets, labels, cells, keys, task)
    frame = pd.DataFrame(rows).merge(means, on=keys)
    bootstrapped = [f"{f.name}{end}" for f in task.figures if not f.is_share for end in _ENDS]
    frame.loc[frame["clips"] == 1, bootstrapped] = np.nan
    frame["predictor"] = pd.Categorical(frame["predictor"], categories=list(sets))
    for breakdown in breakdowns:
        if breakdown.order is not None:
            frame[breakdown.column] = pd.Categorical(
                frame[breakdown.column], categories=list(breakdown.order)
            )
    front = [*keys, "clips", *(column for column in means.columns if column not in keys)]
    rest = [column for column in frame.columns if column not in front]
    return frame[front + rest].sort_values(keys, ignore_index=True)


def write_frame(frame: pd.DataFrame, stem: Path, task: Task) -> list[Path]:
    """Write a frame as `stem`.csv, .md and .tex; returns the three paths."""
    texts = {
        ".csv": frame.to_csv(index=False),
        ".md": to_markdown(frame, task),
        ".tex": to_latex(frame, task),
    }
    paths = []
    for ending, text in texts.items():
        path = stem.with_name(stem.name + ending)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
        paths.append(path)
    return paths


def to_markdown(frame: pd.DataFrame, task: Task) -> str:
    """A frame as a table in Markdown, intervals in the cells of their figures."""
    shown = _as_shown(frame, task).map(_escape_markdown)
    rules = [":--" if is_left else "--:" for is_left in _are_left(frame, shown.columns)]
    head = [_escape_markdown(column) for column in shown.columns]
    lines = [head, rules, *shown.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(frame: pd.DataFrame, task: Task) -> str:
    """A frame as a LaTeX tabular with booktabs' rules, intervals in the cells of their figures."""
    shown = _as_shown(frame, task)
    columns = "".join("l" if is_left else "r" for is_left in _are_left(frame, shown.columns))
    shown = shown.rename(columns=_escape_latex).map(_escape_latex)
    table: str = shown.to_latex(index=False, escape=False, column_format=columns)
    return _LATEX_HEAD + table


def _as_shown(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Texts to be read: a figure and its interval in one cell, columns with their titles."""
    figures = {figure.name: figure for figure in task.figures}
    shown = {}
    for name in frame.columns:
        if name.endswith(_ENDS):
            continue
        cells = [_number(value) for value in frame[name]]
        title = name.replace("_", " ")
        if f"{name}_low" in frame:
            ends = zip(*(frame[f"{name}{end}"] for end in _ENDS), strict=True)
            cells = [
                cell if np.isnan(low) else f"{cell} ({low:.3f}, {high:.3f})"
                for cell, (low, high) in zip(cells, ends, strict=True)
            ]
            figure = figures.get(name)
            method = "Wilson" if figure and figure.is_share else "bootstrap"
            title = f"{figure.header if figure else title} (95% {method})"
        shown[title] = cells
    return pd.DataFrame(shown, dtype=str)


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:.3f}"


def _are_left(frame: pd.DataFrame, titles: Sequence[str]) -> list[bool]:
    """Which columns hold texts; the numbers stand to the right."""
    names = [name for name in frame.columns if not name.endswith(_ENDS)]
    kinds = [not is_numeric_dtype(frame[name]) for name in names]
    assert len(kinds) == len(titles)
    return kinds


def _escape_markdown(text: str) -> str:
    return " ".join(text.translate(_MARKDOWN).split())


def _escape_latex(text: str) -> str:
    return " ".join(text.translate(_LATEX).split())


def _cell_means(
    sets: Mapping[str, Sequence[Prediction]],
    labels: Mapping[str, Reference],
    cells: Mapping[str, tuple[str, ...]],
    keys: Sequence[str],
    task: Task,
) -> pd.DataFrame:
    """The task's means of each cell, by predictor and cell; NaN is left out."""
    rows = [
        {
            **dict(zip(keys, (name, *cells[p.clip_id]), strict=True)),
            **task.cell_means(p.count, labels[p.clip_id]),
        }
        for name, predictions in sets.items()
        for p in predictions
    ]
    return pd.DataFrame(rows).groupby(list(keys), as_index=False, sort=False).mean()


def _clean(name: str) -> str:
    """A name as UTF-8 can hold it: JSON can give halves of characters, and pandas refuses them."""
    return name.encode("utf-8", errors="replace").decode()


def _numbers(figures: Figures) -> dict[str, float]:
    row: dict[str, float] = {"clips": figures.num_clips}
    for name, interval in figures.values.items():
        row |= _ends(name, interval)
    return row


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
