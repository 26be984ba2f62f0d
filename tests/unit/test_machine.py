"""What of a machine makes commands fail: seen, and told with its remedy."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from actrep_ray.cli.abilities import Ability, DoctorReport
from actrep_ray.cli.doctor import print_report
from actrep_ray.cli.machine import (
    Finding,
    check_driver,
    check_environment,
    check_folder,
    check_limit,
    check_ports,
    check_python,
    check_shared_memory,
    driver_version,
    examine_machine,
)
from actrep_ray.run.console import make_console

GIB = 1024**3


def test_only_the_locked_python_is_right() -> None:
    assert check_python((3, 11)).state == "ok"
    wrong = check_python((3, 12))
    assert (wrong.state, wrong.seen) == ("fails", "3.12")
    assert "./launch.sh setup" in wrong.remedy


def test_an_environment_that_is_not_active_is_named_with_what_to_type() -> None:
    assert check_environment("actrep").state == "ok"
    found = check_environment(".venv/bin/actrep")
    assert found.state == "note"
    assert found.remedy == "type .venv/bin/actrep, or first: source .venv/bin/activate"


@pytest.mark.parametrize(
    ("free", "state"), [(GIB - 1, "fails"), (GIB, "note"), (10 * GIB - 1, "note"), (10 * GIB, "ok")]
)
def test_room_on_a_disk(tmp_path: Path, free: int, state: str) -> None:
    """Asked of the nearest folder that is there, since a cache is made when it is needed."""
    asked: list[Path] = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return free

    found = check_folder("disk", tmp_path / "not" / "yet", "go elsewhere", free_bytes)
    assert (found.state, asked) == (state, [tmp_path])
    assert ("go elsewhere" in found.remedy) == (state != "ok")


def test_a_folder_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    found = check_folder("disk", tmp_path / "file" / "below", "go elsewhere")
    assert (found.state, found.seen) == ("fails", f"{tmp_path / 'file'} is no folder")
    found = check_folder("disk", tmp_path / ("x" * 300), "go elsewhere")
    assert (found.state, found.seen) == ("fails", f"{tmp_path / ('x' * 300)}: File name too long")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    found = check_folder("disk", tmp_path, "go elsewhere")
    assert (found.state, found.seen) == ("fails", f"{tmp_path} cannot be written to")


def test_a_relative_cache_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTREP_CACHE", "here")
    (cache,) = (one for one in examine_machine() if one.name == "disk for decoded clips")
    assert cache.state == "fails"
    assert cache.seen == "ACTREP_CACHE='here', expected an absolute path"


def test_shared_memory_that_is_missing(tmp_path: Path) -> None:
    found = check_shared_memory(tmp_path / "shm")
    assert found.state == "note"
    assert "--shm-size" in found.remedy


def test_a_limit_below_the_floor_fails() -> None:
    """The hard limit counts, since processes raise their own up to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("open files are not limited here")
    assert check_limit("open files", resource.RLIMIT_NOFILE, hard, "ulimit -n 9").state == "ok"
    found = check_limit("open files", resource.RLIMIT_NOFILE, hard + 1, "ulimit -n 9")
    assert (found.state, found.remedy) == ("fails", "as root: ulimit -n 9")


def test_ports_that_cannot_be_listened_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_ports().state == "ok"

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    found = check_ports()
    assert (found.state, found.seen) == ("fails", "127.0.0.1: Cannot assign requested address")


@pytest.mark.parametrize(
    ("built_for", "has_device", "has_gpu", "state", "remedy"),
    [
        (None, False, False, "ok", ""),
        ("13.0", True, True, "ok", ""),
        (None, False, True, "note", "./launch.sh setup --gpu"),
        ("13.0", False, True, "fails", "driver 580 or newer, which CUDA 13.0 needs"),
    ],
)
def test_a_gpu_that_torch_does_not_see(
    built_for: str | None, has_device: bool, has_gpu: bool, state: str, remedy: str
) -> None:
    found = check_driver(built_for, has_device=has_device, has_gpu=has_gpu)
    assert (found.state, found.remedy) == (state, remedy)


@pytest.mark.parametrize(
    ("built_for", "installed", "remedy"),
    [
        ("13.0", "570.86.10", "driver 580 or newer, which CUDA 13.0 needs"),
        ("12.9", "470.57.02", "driver 525 or newer, which CUDA 12.9 needs"),
        ("13.0", "", "driver 580 or newer, which CUDA 13.0 needs"),
        ("13.0", "580.65.06", "the driver is new enough: make the device visible"),
        ("11.8", "470.57.02", "a driver that supports CUDA 11.8"),
    ],
)
def test_a_driver_that_is_too_old_is_named_with_the_one_it_takes(
    built_for: str, installed: str, remedy: str
) -> None:
    found = check_driver(built_for, has_device=False, has_gpu=True, installed=installed)
    assert found.state == "fails"
    assert found.remedy.startswith(remedy)
    assert (f"the driver is {installed}" in found.seen) == (built_for != "11.8" and installed != "")


def test_the_driver_is_read_from_the_kernel_module(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert driver_version(path) == ""
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert driver_version(path) == "570.86.10"


def test_a_python_without_the_environment_says_which_it_is() -> None:
    """As a job that was submitted to a Ray of another environment; -S leaves all packages out."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "actrep_ray", "doctor"],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert f"actrep: error: {sys.executable} has no module" in ran.stderr
    assert ".venv/bin/ray start" in ran.stderr


def test_what_fails_is_shown_with_its_remedy_and_decides() -> None:
    abilities = tuple(Ability(kind, kind, True, "") for kind in ("library", "engine", "learner"))
    note = Finding("environment", "note", "not active", "type it")
    fails = Finding("ports", "fails", "none", "allow them")
    assert DoctorReport({}, {}, abilities, (note,)).is_healthy
    report = DoctorReport({}, {}, abilities, (note, fails))
    assert not report.is_healthy
    shown = make_console(width=120)
    with shown.capture() as captured:
        print_report(report, shown)
    rows = [" ".join(line.replace("│", " ").split()) for line in captured.get().splitlines()]
    assert "environment note not active type it" in rows
    assert "ports fails none allow them" in rows
    assert "Training cannot run here: see the rows marked no or fails." in rows


def test_a_path_to_type_is_never_cut_off() -> None:
    path = "/home/somebody/" + "long/" * 12 + "actrep"
    report = DoctorReport({}, {}, (), (Finding("environment", "note", "not active", path),))
    shown = make_console(width=60)
    with shown.capture() as captured:
        print_report(report, shown)
    cells = [line.split("│")[4].strip() for line in captured.get().splitlines() if "│" in line]
    assert path in "".join(cells)


def test_root_is_not_held_to_a_number_of_processes() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard != resource.RLIM_INFINITY
    bound, exempt = (
        check_limit("n", resource.RLIMIT_NOFILE, hard + 1, "more", is_exempt=is_exempt)
        for is_exempt in (False, True)
    )
    assert (bound.state, exempt.state) == ("fails", "ok")
