"""The word list: sorted, one line a word, and the names in it are those of the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"- \*\*([a-z_-]+)\*\*: (.+)")


def names_in_code() -> set[str]:
    names = set()
    for package in ("actrep_ray", "data_prep", "rewards"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
    return names


def test_words_are_sorted_and_name_what_the_code_has() -> None:
    lines = (ROOT / "docs" / "words.md").read_text(encoding="utf-8").splitlines()
    entries = [ENTRY.fullmatch(line) for line in lines if line.startswith("-")]
    assert len(entries) >= 30
    assert all(entries)
    words = [entry[1] for entry in entries if entry]
    assert words == sorted(set(words))
    named = {
        part
        for entry in entries
        if entry
        for name in re.findall(r"`([A-Za-z_.]+)`", entry[2])
        for part in name.split(".")
        if part not in ("clips", "jsonl")  # the file
    }
    assert named - names_in_code() == set()
