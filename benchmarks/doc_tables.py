"""Tables of the documents, from the files that their commands wrote.

    ./launch.sh quickstart
    python benchmarks/doc_tables.py quickstart runs/quickstart/summary.json

    python benchmarks/periodicity_levels.py > levels.txt
    python benchmarks/doc_tables.py periodicity_levels levels.txt

keeps the figures in docs/figures and writes their tables between the marks of the document. A file
is JSON, or ends with one JSON object as the output of a benchmark does. Without a file it prints
what the tables would be; a test compares them with the documents.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_video import SAID

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "figures"

Figures = dict[str, Any]

KINDS = {
    "synthetic-counted": "`medium`, of which training knows counts alone",
    "synthetic-marked": "the marked kind",
}
ROWS = ("constant", "periodicity", "untrained", "sft", "grpo")
COLUMNS = {
    "mae": "MAE",
    "obo": "OBO",
    "obz": "exact",
    "obo_list": "OBO by list",
    "obz_list": "exact by list",
    "consistent": "consistent",
}


@dataclass(frozen=True)
class Tables:
    """Tables of one document.

    Attributes:
        document: Relative to the repository.
        write: The tables as Markdown, of the figures that are kept.
        keep: What is kept of the file of a command.
    """

    document: str
    write: Callable[[Figures], str]
    keep: Callable[[Figures], Figures] = dict


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("name", choices=tuple(TABLES))
    options.add_argument("file", type=Path, nargs="?", help="what the command wrote")
    args = options.parse_args()
    if args.file:
        kept = TABLES[args.name].keep(read_figures(args.file))
        FOLDER.mkdir(exist_ok=True)
        _path(args.name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        document = ROOT / TABLES[args.name].document
        document.write_text(
            with_tables(document.read_text(encoding="utf-8"), args.name), encoding="utf-8"
        )
    print(tables(args.name))


def read_figures(path: Path) -> Figures:
    """The JSON object of a file, or of its last line."""
    text = path.read_text(encoding="utf-8").strip()
    try:
        found: Figures = json.loads(text)
    except json.JSONDecodeError:
        found = json.loads(text.splitlines()[-1])
    return found


def with_tables(text: str, name: str) -> str:
    """A document with the tables of a name between its marks.

    Raises:
        ValueError: if the marks are not there.
    """
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"expected the lines {first} and {last}")
    return f"{head}{first}\n{tables(name)}{last}{tail}"


def tables(name: str) -> str:
    """Of the figures that are kept, as Markdown."""
    return TABLES[name].write(json.loads(_path(name).read_text(encoding="utf-8")))


def _path(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _table(head: list[str], rows: list[list[str]]) -> str:
    top, *others = (f"| {' | '.join(line)} |\n" for line in (head, *rows))
    return "".join((top, f"|{'---|' * len(head)}\n", *others))


# --- docs/results.md


def _of_quickstart(figures: Figures) -> str:
    return "\n".join(_of_kind(figures[kind], title) for kind, title in KINDS.items())


def _of_kind(figures: Figures, title: str) -> str:
    rows = [
        [name, *(_interval(figures[name].get(key), name) for key in COLUMNS)]
        for name in (*ROWS, "paired")
        if name in figures
    ]
    number = figures["sft"]["n"]
    head = f"{number} held-out clips of {title}:\n\n"
    return head + _table(["after", *COLUMNS.values()], rows)


def _interval(interval: dict[str, float] | None, name: str) -> str:
    if interval is None:
        return ""
    form = "{:+.3f}" if name == "paired" else "{:.3f}"
    value, low, high = (form.format(interval[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _kept_of_quickstart(summary: Figures) -> Figures:
    return {key: summary[key] for key in (*KINDS, "num_clips", "seed")}


# --- docs/periodicity.md


def _of_levels(figures: Figures) -> str:
    scores = [
        [
            level,
            str(one["num_clips"]),
            *(
                f"{one[key][0]:.3f} [{one[key][1]:.2f}, {one[key][2]:.2f}]"
                for key in ("obo", "obz")
            ),
            f"{one['mae']:.3f}",
            f"{one['rmse']:.2f}",
            f"{one['obo_of_constant']:.3f}",
            f"{one['zeros_right']} of {one['zeros']}",
        ]
        for level, one in figures["levels"].items()
    ]
    costs = [
        [level, f"{one['mean_s']:.1f} s", f"{one['cycle_f1']:.3f}", f"{one['cpu_s']:.2f}"]
        for level, one in figures["levels"].items()
    ]
    head = ["level", "clips", "OBO", "exact", "MAE", "RMSE", "OBO of the constant"]
    return (
        _table([*head, "clips of count 0 answered 0"], scores)
        + "\n"
        + _table(["level", "mean length", "F1, cycles matched one to one", "CPU s a clip"], costs)
    )


def _of_real_like(figures: Figures) -> str:
    rows = [
        [kind, str(sum(said.values())), *(str(said.get(column, 0)) for column in SAID)]
        for kind, said in sorted(figures["confusion"].items())
    ]
    return _table(["kind", "clips", *SAID], rows)


# --- docs/count.md


def _of_confidence(figures: Figures) -> str:
    rows = [
        [
            name,
            str(one["num_clips"]),
            f"{one['right']:.3f}",
            f"{one['confidence']:.3f}",
            f"{one['error']:.3f}",
            f"{one['error_by_chance']:.3f}",
        ]
        for name, one in figures["files"].items()
    ]
    shares = [
        [what, case, str(one["num_clips"]), f"{one['right']:.3f}"]
        for what, cases in figures["shares"].items()
        for case, one in cases.items()
    ]
    return (
        _table(
            ["told by", "clips", "right", "mean confidence", "calibration error", "by chance"], rows
        )
        + "\n"
        + _table(["of the counts", "where", "clips", "right"], shares)
    )


TABLES = {
    "quickstart": Tables("docs/results.md", _of_quickstart, _kept_of_quickstart),
    "periodicity_levels": Tables("docs/periodicity.md", _of_levels),
    "real_like": Tables("docs/periodicity.md", _of_real_like),
    "count_confidence": Tables("docs/count.md", _of_confidence),
}


if __name__ == "__main__":
    main()
