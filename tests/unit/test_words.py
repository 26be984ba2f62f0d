"""The word list: sorted, one line a word, and the names in it are those of the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"- \*\*([a-z_-]+)\*\*: (.+)")


# Who may define a name with the word in it, where the word once had several meanings.
OWNERS = {
    "stage": (
        "actrep_ray/config/recipe.py",
        "actrep_ray/config/learner.py",  # DeepSpeed's zero_stage
        "actrep_ray/evaluation/run_results.py",
    ),
    "milestone": ("actrep_ray/quickstart/",),
    "part": (
        "actrep_ray/config/generation.py",
        "actrep_ray/records.py",
        "actrep_ray/scoring/",
        "rewards/",
    ),
    "place": (
        "actrep_ray/cluster/placement.py",
        "actrep_ray/learner/strategies/ema.py",  # in_place, as everybody says
    ),
    "zone": ("actrep_ray/models/tiny.py", "actrep_ray/pretrain/motion.py"),
}


def definitions() -> dict[str, set[str]]:
    """Modules, classes, functions, fields and constants of the product, by file."""
    found = {}
    for package in ("actrep_ray", "data_prep", "rewards"):
        for path in (ROOT / package).rglob("*.py"):
            names = {path.stem}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    names.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
                elif isinstance(node, ast.Assign):
                    targets = [t.id for t in node.targets if isinstance(t, ast.Name)]
                    names.update(name for name in targets if name.isupper())
            found[path.relative_to(ROOT).as_posix()] = names
    return found


def words_of(name: str) -> set[str]:
    """`reward_parts` -> reward, part; `FramePlan` -> frame, plan."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {word.lower().removesuffix("s") for word in words}


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
    assert named - set().union(*definitions().values()) == set()


def test_words_that_had_several_meanings_are_defined_by_their_owners_alone() -> None:
    strangers = [
        f"{path}: {name}"
        for path, names in definitions().items()
        for name in names
        for word in words_of(name) & set(OWNERS)
        if not path.startswith(OWNERS[word])
    ]
    assert strangers == []


def test_words_of_a_name() -> None:
    assert words_of("reward_parts") == {"reward", "part"}
    assert words_of("FramePlan") == {"frame", "plan"}
    assert words_of("ZONES") == {"zone"}
    assert words_of("partial_files") == {"partial", "file"}
