"""The quickstart's figures in the documents, from the file that the quickstart wrote.

    ./launch.sh quickstart
    python benchmarks/quickstart_table.py runs/quickstart/summary.json

copies the figures to docs/figures/quickstart.json and writes their tables into docs/results.md.
Without a file it prints what the tables would be; a test compares them with the document.
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures" / "quickstart.json"
DOCUMENT = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- quickstart: begin -->", "<!-- quickstart: end -->"

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


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("summary", type=Path, nargs="?", help="of a quickstart")
    args = options.parse_args()
    if args.summary:
        summary = json.loads(args.summary.read_text(encoding="utf-8"))
        kept = {key: summary[key] for key in (*KINDS, "num_clips", "seed")}
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(tables())


def with_tables(text: str) -> str:
    """A document with the tables between its marks.

    Raises:
        ValueError: if the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{tables()}{END}{tail}"


def tables() -> str:
    """Of the figures that are kept, as Markdown."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return "\n".join(_table(figures[kind], title) for kind, title in KINDS.items())


def _table(figures: dict[str, Any], title: str) -> str:
    number = figures["sft"]["n"]
    lines = [
        f"{number} held-out clips of {title}:",
        "",
        f"| after | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name in (*ROWS, "paired"):
        if name in figures:
            cells = " | ".join(_cell(figures[name].get(key), name) for key in COLUMNS)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(interval: dict[str, float] | None, name: str) -> str:
    if interval is None:
        return ""
    form = "{:+.3f}" if name == "paired" else "{:.3f}"
    value, low, high = (form.format(interval[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
