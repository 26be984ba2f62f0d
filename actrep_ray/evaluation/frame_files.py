"""Data frames of an evaluation as Markdown, CSV and LaTeX files.

CSV keeps every digit and column; Markdown and LaTeX join a figure and its interval in one cell.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from actrep_ray.evaluation.frames import ENDS, method_of
from actrep_ray.tasks.base import Task
from data_prep.files import replacing

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
        if name.endswith(ENDS):
            continue
        cells = [_number(value) for value in frame[name]]
        title = name.replace("_", " ")
        if f"{name}_low" in frame:
            ends = zip(*(frame[f"{name}{end}"] for end in ENDS), strict=True)
            cells = [
                cell if np.isnan(low) else f"{cell} ({low:.3f}, {high:.3f})"
                for cell, (low, high) in zip(cells, ends, strict=True)
            ]
            of, _, last = name.rpartition(" ")  # of a matrix "DATA SET FIGURE"
            figure = figures.get(last)
            header = " ".join(filter(None, (of, figure.header))) if figure else title
            title = f"{header} (95% {method_of(figure)})"
        shown[title] = cells
    return pd.DataFrame(shown, dtype=str)


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else f"{value:.3f}"


def _are_left(frame: pd.DataFrame, titles: Sequence[str]) -> list[bool]:
    """Which columns hold texts; the numbers stand to the right."""
    names = [name for name in frame.columns if not name.endswith(ENDS)]
    kinds = [not is_numeric_dtype(frame[name]) for name in names]
    assert len(kinds) == len(titles)
    return kinds


def _escape_markdown(text: str) -> str:
    return " ".join(text.translate(_MARKDOWN).split())


def _escape_latex(text: str) -> str:
    return " ".join(text.translate(_LATEX).split())
