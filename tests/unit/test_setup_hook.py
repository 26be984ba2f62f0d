"""The torchvision hook: active in every process, free at start-up, idle where it is not needed."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from actrep_ray import torchvision_hook

LAUNCH = Path(__file__).resolve().parents[2] / "launch.sh"


def _run_fresh(code: str) -> str:
    """Standard output of a fresh interpreter, started outside the repository."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=sysconfig.get_paths()["purelib"],
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_pth_file_is_installed() -> None:
    path = Path(sysconfig.get_paths()["purelib"]) / torchvision_hook.PTH_NAME
    assert path.read_text(encoding="utf-8") == torchvision_hook.PTH_LINE


def test_writing_the_pth_file_again_says_nothing() -> None:
    """As `launch.sh setup` does it, with every warning an error."""
    (code,) = re.findall(r'-c "(.*install_pth.*)"$', LAUNCH.read_text(), re.MULTILINE)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=LAUNCH.parent,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_fresh_process_has_the_finder_and_has_imported_nothing_heavy() -> None:
    code = """
import sys
finders = [type(f).__name__ for f in sys.meta_path]
heavy = {"torch", "torchvision", "numpy", "pathlib", "typing", "ray"} & set(sys.modules)
print(finders.count("TorchvisionFinder"), sorted(heavy))
"""
    assert _run_fresh(code) == "1 []"


def test_looking_for_torchvision_does_not_import_torch() -> None:
    code = """
import importlib.util, sys
print(importlib.util.find_spec("torchvision") is not None, "torch" in sys.modules)
"""
    assert _run_fresh(code) == "True False"


@pytest.mark.lengthy
def test_fresh_process_resizes_a_video_with_a_qwen_processor() -> None:
    """4 frames of 56 x 84: patches of 2 x 16 x 16 after rounding to multiples of 32 (64 x 96)."""
    code = """
import numpy, torchvision, transformers
from transformers import AutoVideoProcessor, Qwen3VLVideoProcessor
processor = Qwen3VLVideoProcessor()
video = numpy.zeros((4, 3, 56, 84), numpy.uint8)
out = processor(videos=[video], return_tensors="pt", do_sample_frames=False,
                size={"shortest_edge": 1024, "longest_edge": 64 * 96 * 4})
print(out["video_grid_thw"].tolist(), tuple(out["pixel_values_videos"].shape))
"""
    assert _run_fresh(code) == "[[2, 4, 6]] (48, 1536)"


@pytest.mark.lengthy
def test_spawned_child_imports_torchvision(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing\n"
        "def child(queue):\n"
        "    import torchvision\n"
        "    queue.put(torchvision.__version__)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=child, args=(queue,))\n"
        "    process.start()\n"
        "    print(queue.get(timeout=120))\n"
        "    process.join(60)\n",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=240
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_activate_twice_places_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    torchvision_hook.activate()
    torchvision_hook.activate()
    finders = [f for f in sys.meta_path if type(f).__name__ == "TorchvisionFinder"]
    assert len(finders) == 1


def test_other_modules_are_left_to_the_next_finder() -> None:
    assert torchvision_hook.TorchvisionFinder.find_spec("torchvision.ops") is None
    assert torchvision_hook.TorchvisionFinder.find_spec("torch") is None


def _package_with_library(folder: Path, library: Path | None) -> str:
    init = folder / "__init__.py"
    init.touch()
    if library is not None:
        (folder / "_C.so").symlink_to(library)
    return str(init)


def _loadable_library() -> Path:
    """Some extension module of this interpreter: any shared object that opens."""
    import math

    candidates = [getattr(math, "__file__", None), sysconfig.get_config_var("INSTSONAME")]
    for name in candidates:
        if name and Path(name).is_file():
            return Path(name)
    pytest.skip("this interpreter has no shared object of its own to open")


def test_library_that_loads_is_found_so(tmp_path: Path) -> None:
    init = _package_with_library(tmp_path, _loadable_library())
    assert torchvision_hook.is_library_loadable(init)


def test_missing_or_broken_library_is_found_so(tmp_path: Path) -> None:
    assert not torchvision_hook.is_library_loadable(_package_with_library(tmp_path, None))
    (tmp_path / "_C.so").write_bytes(b"not a shared object")
    assert not torchvision_hook.is_library_loadable(str(tmp_path / "__init__.py"))


@pytest.mark.parametrize("case", ["cuda torch", "library loads"])
def test_declares_nothing_where_torchvision_loads_by_itself(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torchvision_hook, "declared", [])
    monkeypatch.setattr(torch.version, "cuda", "13.0" if case == "cuda torch" else None)
    library = None if case == "cuda torch" else _loadable_library()
    torchvision_hook.declare_operators_if_missing(_package_with_library(tmp_path, library))
    assert not torchvision_hook.is_declared_here()
