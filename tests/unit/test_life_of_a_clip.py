"""docs/life-of-a-clip.md names functions that exist, and a row that is one."""

import ast
import json
import re
from pathlib import Path

import pytest

from actrep_ray.driver.phases import prompt_name
from data_prep.schema import parse_clip

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "life-of-a-clip.md"
_HOP = re.compile(r"`([\w/]+\.py):([\w.]+)`")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def hops_of(text: str) -> list[tuple[str, str]]:
    """(file, function) in the order of the page; "Class.method" where it is one."""
    return _HOP.findall(text)


def functions_of(path: Path) -> set[str]:
    """Names of a module's functions, and "Class.method" of its classes' own methods."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, _FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, _FUNCTIONS))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def missing_hops(text: str) -> list[str]:
    """The hops of a page that lead nowhere."""
    return [
        f"{file}:{name}"
        for file, name in hops_of(text)
        if not (ROOT / file).is_file() or name not in functions_of(ROOT / file)
    ]


def test_every_hop_is_a_function_that_is_there() -> None:
    assert missing_hops(PAGE.read_text(encoding="utf-8")) == []


def test_a_hop_that_is_not_there_is_found() -> None:
    true = "`data_prep/schema.py:read_clips`, `actrep_ray/driver/phases.py:Phases.issue`"
    false = [
        "data_prep/schema.py:read_clip",
        "data_prep/scheme.py:read_clips",
        "actrep_ray/driver/phases.py:issue",
        "actrep_ray/driver/phases.py:Phases.draw",
    ]
    assert missing_hops(" ".join([true, *(f"`{hop}`" for hop in false)])) == false


@pytest.mark.parametrize(
    "room",
    [
        "data_prep/",
        "rewards/",
        "actrep_ray/driver/",
        "actrep_ray/learner/batch/",
        "actrep_ray/learner/loss/",
        "actrep_ray/media/",
        "actrep_ray/models/",
        "actrep_ray/rollout/",
        "actrep_ray/scoring/",
        "actrep_ray/tasks/",
        "actrep_ray/weights/",
    ],
)
def test_the_page_passes_through_every_room_of_a_step(room: str) -> None:
    assert any(file.startswith(room) for file, _ in hops_of(PAGE.read_text(encoding="utf-8")))


def test_no_file_is_named_without_a_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"[\w/]+\.py\b", _HOP.sub("", text))
    assert named == ["tests/unit/test_life_of_a_clip.py"]


def test_the_row_of_the_page_is_one_and_gets_the_prompt_id_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    [row] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    clip = parse_clip(json.loads(row), "the page")
    assert clip.count == len(clip.cycles or ())
    assert f"`{prompt_name(1, 0)}-{clip.id}`" in text
