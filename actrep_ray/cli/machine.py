"""What of this machine will make the next command fail, each with its remedy.

Asked of the system alone, without torch or Ray, so that it is known before they are imported.
"""

import os
import re
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actrep_ray.media.cache_folder import default_folder
from actrep_ray.run.program import program

# Ray places objects in /dev/shm, and below this falls back to slow files in /tmp.
SHARED_MEMORY_FLOOR_BYTES = 2 * 1024**3
_PYTHON = (3, 11)
_DISK_FAILS_BYTES = 1024**3  # the quickstart's videos, models and checkpoints take about half
_DISK_IS_SCARCE_BYTES = 10 * 1024**3
_OPEN_FILES = 4096  # Ray raises its own limit up to the hard one and uses some thousands
_DRIVERS = {"12": 525, "13": 580}  # the oldest that runs a CUDA of this major version
_PROCESSES = 2048  # threads count too; Ray and BLAS start hundreds

State = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Finding:
    """One thing of the machine that commands rely on.

    Attributes:
        name: What was looked at.
        state: `fails` if a command will end because of it, `note` if it will be slow or must be
            typed otherwise.
        seen: What was found.
        remedy: What to do; empty where nothing has to be done.
    """

    name: str
    state: State
    seen: str
    remedy: str = ""


def examine_machine() -> tuple[Finding, ...]:
    """Every check of the machine, in the order in which a newcomer meets them."""
    return (
        check_python(sys.version_info[:2]),
        check_environment(program("actrep")),
        check_folder("disk for runs and checkpoints", Path.cwd(), "go to another folder"),
        _check_cache(),
        check_shared_memory(Path("/dev/shm")),
        check_limit("open files", resource.RLIMIT_NOFILE, _OPEN_FILES, "ulimit -n 65536"),
        check_limit(
            "processes",
            resource.RLIMIT_NPROC,
            _PROCESSES,
            "ulimit -u 8192",
            is_exempt=os.geteuid() == 0,  # of this limit alone
        ),
        check_ports(),
    )


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether the lock file is for this Python."""
    seen = ".".join(map(str, version))
    if version == _PYTHON:
        return Finding("Python", "ok", seen)
    return Finding("Python", "fails", seen, "./launch.sh setup, which makes .venv with Python 3.11")


def check_environment(typed: str) -> Finding:
    """Whether `actrep` alone is found.

    Args:
        typed: What starts it from here.
    """
    if typed == "actrep":
        return Finding("environment", "ok", "active: actrep is found by its name")
    remedy = f"type {typed}, or first: source {Path(typed).with_name('activate')}"
    return Finding("environment", "note", "not active: actrep alone is not found", remedy)


def check_folder(
    name: str, folder: Path, remedy: str, free_bytes: Callable[[Path], int] | None = None
) -> Finding:
    """Whether a folder, or the nearest one above that is there, can be written to and has room.

    Args:
        name: What it is for.
        folder: Need not exist.
        remedy: What to do where it cannot be written to, or is full.
        free_bytes: Free room of the disk of a folder, in bytes; default: asked of the system.
    """
    try:
        there = next(one for one in (folder, *folder.parents) if one.exists())
    except OSError as error:  # a folder on the way that may not be entered, or a name too long
        return Finding(name, "fails", f"{folder}: {error.strerror}", remedy)
    if not there.is_dir():
        return Finding(name, "fails", f"{there} is no folder", remedy)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "fails", f"{there} cannot be written to", remedy)
    free = (free_bytes or _free_bytes)(there)
    seen = f"{free / 1024**3:.1f} GiB free in {there}"
    if free < _DISK_FAILS_BYTES:
        return Finding(name, "fails", seen, f"make room, or {remedy}")
    if free < _DISK_IS_SCARCE_BYTES:
        return Finding(name, "note", seen, f"too little for a real model: make room, or {remedy}")
    return Finding(name, "ok", seen)


def check_shared_memory(folder: Path) -> Finding:
    """Whether Ray's objects have room in shared memory."""
    name, remedy = "shared memory", "start the container with --shm-size=8g"
    if not folder.is_dir():
        return Finding(name, "note", f"no {folder}: Ray will use slow files in /tmp", remedy)
    size = shutil.disk_usage(folder).total
    seen = f"{size / 1024**3:.1f} GiB in {folder}"
    if size < SHARED_MEMORY_FLOOR_BYTES:
        return Finding(name, "note", f"{seen}: Ray will use slow files in /tmp", remedy)
    return Finding(name, "ok", seen)


def check_limit(
    name: str, number: int, floor: int, remedy: str, *, is_exempt: bool = False
) -> Finding:
    """Whether a hard limit of this process, up to which it can be raised, is high enough.

    Args:
        name: What is limited.
        number: Of the `resource` module.
        floor: Least that is enough.
        remedy: The command that raises it.
        is_exempt: Whether the system does not hold this user to it.
    """
    if is_exempt:
        return Finding(name, "ok", "root is not held to a limit")
    hard = resource.getrlimit(number)[1]
    if hard == resource.RLIM_INFINITY or hard >= floor:
        limit = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        return Finding(name, "ok", limit)
    return Finding(name, "fails", f"at most {hard}, expected {floor}", f"as root: {remedy}")


def check_ports() -> Finding:
    """Whether a port of the loopback address can be listened at, as Ray and gloo do."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
    except OSError as error:
        remedy = "allow listening at 127.0.0.1 (ip link set lo up; the sandbox's rules)"
        return Finding("ports", "fails", f"127.0.0.1: {error.strerror}", remedy)
    return Finding("ports", "ok", "127.0.0.1 can be listened at")


def check_driver(
    built_for: str | None, *, has_device: bool, has_gpu: bool, installed: str = ""
) -> Finding:
    """Whether torch can use the GPU that the machine has.

    Args:
        built_for: CUDA version of torch; None: a build for the CPU.
        has_device: Whether torch sees a device.
        has_gpu: Whether the machine says that it has one.
        installed: Version of the driver; empty if it is not known.
    """
    if has_device or not has_gpu:
        return Finding("GPU driver", "ok", "torch sees the GPU" if has_device else "no GPU here")
    if built_for is None:
        seen = "this machine has a GPU, and torch is built for the CPU"
        return Finding("GPU driver", "note", seen, "./launch.sh setup --gpu")
    seen = f"torch is built for CUDA {built_for} and sees no device"
    needed = _DRIVERS.get(built_for.partition(".")[0])
    if needed is None:
        return Finding("GPU driver", "fails", seen, f"a driver that supports CUDA {built_for}")
    if installed:
        seen += f"; the driver is {installed}"
    remedy = f"driver {needed} or newer, which CUDA {built_for} needs"
    if installed.partition(".")[0].isdecimal() and int(installed.partition(".")[0]) >= needed:
        remedy = "the driver is new enough: make the device visible (CUDA_VISIBLE_DEVICES, --gpus)"
    return Finding("GPU driver", "fails", seen, remedy)


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Version of NVIDIA's kernel module, as 580.65.06; empty where there is none."""
    with suppress(OSError):
        found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", path.read_text(errors="replace"))
        return found[1] if found else ""
    return ""


def _check_cache() -> Finding:
    """Where decoded clips go; a wrong ACTREP_CACHE is a finding, not an end of the report."""
    name, remedy = "disk for decoded clips", "set ACTREP_CACHE to an absolute path with room"
    try:
        folder = default_folder()
    except ValueError as error:
        return Finding(name, "fails", str(error), remedy)
    return check_folder(name, folder, remedy)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
