"""Evaluations as pandas data frames, and frames as Markdown, CSV and LaTeX files.

    predictors     one row for each predictor
    differences    one row for each pair of stages and figure
    breakdown      one row for each predictor, data set, action and bin of the true count

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
from actrep_ray.evaluation.scores import (
    FIGURES,
    HEADERS,
    SHARES,
    CountMetrics,
    Figures,
    score_cells,
)
from actrep_ray.tasks.clips import labels_of
from data_prep.files import replacing
from data_prep.schema import Clip
from data_prep.strata import BINS, stratum_of

_KEYS = ("dataset", "action", "bin")
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


def predictors_frame(metrics: Mapping[str, CountMetrics]) -> pd.DataFrame:
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
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures by data set, action and bin of the true count, for each predictor.

    Beside the figures: `clips`, how many are in the cell; `true_count`, their mean count; and
    `predicted_count`, the mean of the counts that could be read. One clip has no bootstrap
    interval: these ends are NaN there.

    Args:
        sets: Predictions on all of `clips`, by the name of the predictor.
        clips: What was counted in.
        num_bootstrap: Resamples of the intervals of MAE and RMSE.
        seed: Of the resamples.

    Raises:
        ValueError: if a predictor does not answer exactly these clips.
    """
    sets = {_clean(name): predictions for name, predictions in sets.items()}
    cells = {
        clip.id: (_clean(clip.dataset), _clean(clip.action), stratum_of(clip.count, BINS).name)
        for clip in clips
    }
    rows = [
        {"predictor": name, **dict(zip(_KEYS, cell, strict=True)), **_numbers(figures)}
        for name, predictions in sets.items()
        for cell, figures in score_cells(
            predictions, labels_of(clips), cells, num_bootstrap=num_bootstrap, seed=seed
        ).items()
    ]
    frame = pd.DataFrame(rows).merge(_mean_counts(sets, clips, cells), on=["predictor", *_KEYS])
    bootstrapped = [f"{figure}{end}" for figure in ("mae", "rmse") for end in _ENDS]
    frame.loc[frame["clips"] == 1, bootstrapped] = np.nan
    frame["predictor"] = pd.Categorical(frame["predictor"], categories=list(sets))
    frame["bin"] = pd.Categorical(frame["bin"], categories=[stratum.name for stratum in BINS])
    front = ["predictor", *_KEYS, "clips", "true_count", "predicted_count"]
    rest = [column for column in frame.columns if column not in front]
    return frame[front + rest].sort_values(["predictor", *_KEYS], ignore_index=True)


def write_frame(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a frame as `stem`.csv, .md and .tex; returns the three paths."""
    texts = {
        ".csv": frame.to_csv(index=False),
        ".md": to_markdown(frame),
        ".tex": to_latex(frame),
    }
    paths = []
    for ending, text in texts.items():
        path = stem.with_name(stem.name + ending)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
        paths.append(path)
    return paths


def to_markdown(frame: pd.DataFrame) -> str:
    """A frame as a table in Markdown, intervals in the cells of their figures."""
    shown = _as_shown(frame).map(_escape_markdown)
    rules = [":--" if is_left else "--:" for is_left in _are_left(frame, shown.columns)]
    head = [_escape_markdown(column) for column in shown.columns]
    lines = [head, rules, *shown.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(frame: pd.DataFrame) -> str:
    """A frame as a LaTeX tabular with booktabs' rules, intervals in the cells of their figures."""
    shown = _as_shown(frame)
    columns = "".join("l" if is_left else "r" for is_left in _are_left(frame, shown.columns))
    shown = shown.rename(columns=_escape_latex).map(_escape_latex)
    return _LATEX_HEAD + shown.to_latex(index=False, escape=False, column_format=columns)


def _as_shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts to be read: a figure and its interval in one cell, columns with their titles."""
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
            method = "Wilson" if name in SHARES else "bootstrap"
            title = f"{HEADERS.get(name, title)} (95% {method})"
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


def _mean_counts(
    sets: Mapping[str, Sequence[Prediction]],
    clips: Sequence[Clip],
    cells: Mapping[str, tuple[str, str, str]],
) -> pd.DataFrame:
    """True and predicted counts, their means by cell; what could not be read is left out."""
    truth = {clip.id: clip.count for clip in clips}
    rows = [
        (name, *cells[p.clip_id], truth[p.clip_id], np.nan if p.count is None else p.count)
        for name, predictions in sets.items()
        for p in predictions
    ]
    keys = ["predictor", *_KEYS]
    frame = pd.DataFrame(rows, columns=[*keys, "true_count", "predicted_count"])
    return frame.groupby(keys, as_index=False, sort=False).mean()


def _clean(name: str) -> str:
    """A name as UTF-8 can hold it: JSON can give halves of characters, and pandas refuses them."""
    return name.encode("utf-8", errors="replace").decode()


def _numbers(figures: Figures) -> dict[str, float]:
    row: dict[str, float] = {"clips": figures.num_clips}
    for name in FIGURES:
        row |= _ends(name, getattr(figures, name))
    return row


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
