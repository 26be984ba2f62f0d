"""Tier A of docs/gpu.md runs where nothing of a node is installed, at toy sizes on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# What only a node has cannot be imported.
BARE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "vllm", "verl"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
sys.argv = ["gpu_bare.py", "--device", "cpu"]
import gpu_bare
gpu_bare.main()
"""


@pytest.mark.slow
def test_every_check_that_a_cpu_can_run_passes() -> None:
    run = subprocess.run(
        [sys.executable, "-c", BARE, str(BENCHMARKS)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, run.stdout
    assert {line["check"] for line in lines if "skipped" in line and "check" in line} == {
        "flex_attention"
    }
    assert (lines[-1]["passed"], lines[-1]["failed"], lines[-1]["skipped"]) == (7, 0, 1)


def test_a_package_that_is_missing_is_stood_in_for_until_it_is_used() -> None:
    code = (
        "from stand_ins import stand_in_for; "
        "assert stand_in_for('json', 'no_such_package') == ['no_such_package']; "
        "import no_such_package.inner as inner; from no_such_package import Error; "
        "assert issubclass(Error, Exception); inner.decode()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=60, cwd=BENCHMARKS,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "RuntimeError: no_such_package.inner.decode is a stand-in: the package is missing"
    )
