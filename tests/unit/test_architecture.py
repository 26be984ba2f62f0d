"""The direction of imports, read from the source: actrep_ray -> data_prep -> rewards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("actrep_ray", "data_prep", "rewards")
MAY_IMPORT_RAY = {
    "session.py",  # cluster/, as the next three
    "nodes.py",
    "bundles.py",
    "supervision.py",
    "pool_actors.py",  # of RolloutPool, RewardPool
    "pool.py",  # RolloutPool, LearnerPool, RewardPool
}

# A module may import from its own level and from lower ones. A folder stands for its modules.
LEVELS = {
    "config": 0, "records": 0, "torchvision_hook": 0,
    "media": 1, "models": 1, "tasks": 1,
    "rollout": 2, "learner": 2, "scoring": 2, "weights": 2,
    "driver": 3,
    "cli": 4, "__main__": 5,
}  # fmt: skip


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below ``node`` except the bodies of ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        yield child
        yield from _run_time_nodes(child)


def _module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, source: str | None = None) -> set[str]:
    """Dotted names that ``path`` imports, also inside functions; relative ones made absolute."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    package = path.relative_to(ROOT).parent.parts
    for node in _run_time_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def _roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}


def _level(dotted: str) -> int | None:
    parts = dotted.split(".")
    return LEVELS.get(parts[1]) if parts[0] == "actrep_ray" and len(parts) > 1 else None


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import a.b
from c import d
from . import e
from ..f import g
if TYPE_CHECKING:
    import hidden
def function():
    import inner
"""
    path = ROOT / "actrep_ray" / "rollout" / "worker.py"
    assert _imports(path, source) == {
        "a.b", "c.d", "actrep_ray.rollout.e", "actrep_ray.f.g", "inner",
    }  # fmt: skip


@pytest.mark.parametrize("package", OURS)
def test_packages_exist(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()


def test_rewards_needs_only_the_standard_library_and_numpy() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "rewards"}
    wrong = {str(path): _roots(path) - allowed for path in _sources("rewards")}
    assert not {path: names for path, names in wrong.items() if names}


def test_data_prep_knows_neither_ray_nor_torch_nor_the_trainer() -> None:
    forbidden = {"ray", "torch", "torchvision", "vllm", "verl", "deepspeed", "actrep_ray"}
    wrong = {str(path): _roots(path) & forbidden for path in _sources("data_prep")}
    assert not {path: names for path, names in wrong.items() if names}


def test_only_the_ray_layer_imports_ray() -> None:
    importers = {path for path in _sources("actrep_ray") if "ray" in _roots(path)}
    assert not {str(path) for path in importers if path.name not in MAY_IMPORT_RAY}


@pytest.mark.parametrize("name", ["config", "records"])
def test_config_and_records_import_neither_ray_nor_torch(name: str) -> None:
    sources = _sources(f"actrep_ray/{name}") or [ROOT / "actrep_ray" / f"{name}.py"]
    assert not set().union(*map(_roots, sources)) & {"ray", "torch"}
    code = (
        f"import sys, actrep_ray.{name}; print([m for m in ('ray', 'torch') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"


def test_modules_import_only_from_their_level_and_below() -> None:
    wrong = []
    for path in _sources("actrep_ray"):
        level = _level(_module_of(path))
        if level is None:
            continue
        for name in _imports(path):
            imported = _level(name)
            if imported is not None and imported > level:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong
