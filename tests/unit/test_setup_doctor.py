"""The doctor: what it concludes from abilities, and what it finds on this machine."""

import json
import subprocess
import sys

import pytest

from actrep_ray.cli.abilities import Ability, DoctorReport, check_ability
from actrep_ray.run.provenance import installed_version, read_versions


def _report(**available: bool) -> DoctorReport:
    kinds = {"ray": "library", "vllm": "engine", "hf": "engine", "fsdp2": "learner"}
    abilities = tuple(Ability(kinds[name], name, is_ok, "") for name, is_ok in available.items())
    return DoctorReport(versions={}, devices={}, abilities=abilities)


@pytest.mark.parametrize(
    ("available", "is_healthy"),
    [
        ({"ray": True, "vllm": True, "hf": True, "fsdp2": True}, True),
        ({"ray": True, "vllm": False, "hf": True, "fsdp2": True}, True),
        ({"ray": True, "vllm": False, "hf": False, "fsdp2": True}, False),
        ({"ray": False, "vllm": True, "hf": True, "fsdp2": True}, False),
        ({"ray": True, "vllm": True, "hf": True, "fsdp2": False}, False),
    ],
)
def test_healthy_needs_an_engine_a_learner_and_every_library(
    available: dict[str, bool], is_healthy: bool
) -> None:
    assert _report(**available).is_healthy is is_healthy


def test_failed_check_carries_the_reason() -> None:
    def broken() -> str:
        raise OSError("libcudart.so.13: cannot open\n shared object file")

    assert check_ability("engine", "vllm", broken) == Ability(
        "engine", "vllm", False, "OSError: libcudart.so.13: cannot open shared object file"
    )


def test_versions_distinguish_absent_from_installed() -> None:
    versions = read_versions()
    assert versions["actrep-ray"] == "0.1.0"
    assert versions["ray"] == "2.60.0"
    assert installed_version("a-package-nobody-installed") is None


@pytest.mark.lengthy
def test_examine_finds_a_machine_that_can_train() -> None:
    """In its own process: it imports vLLM and DeepSpeed, which reconfigure logging."""
    code = """
import dataclasses, json
from actrep_ray.cli.abilities import examine
report = examine()
print(json.dumps([dataclasses.asdict(a) for a in report.abilities]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    abilities = json.loads(run.stdout.strip().splitlines()[-1])
    assert {(a["kind"], a["name"]) for a in abilities if a["kind"] != "library"} == {
        ("engine", "vllm"), ("engine", "hf"), ("learner", "fsdp2"), ("learner", "deepspeed"),
    }  # fmt: skip
    unavailable = [a for a in abilities if not a["is_available"]]
    assert not unavailable
