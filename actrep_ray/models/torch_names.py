"""What the settings' names of devices and dtypes are in torch."""

import os
from pathlib import Path

import torch


def device_named(name: str) -> torch.device:
    """The device of a recipe; "auto" is a GPU where this process sees one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def num_gpus() -> int:
    """GPUs that torch can use on this machine; 0 where it is built without CUDA."""
    return torch.cuda.device_count()


def host_threads(num_gpus: int = 1, gpus: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Threads for work on the CPU beside GPUs: their share of the cores that a process may use.

    Args:
        num_gpus: Of the process, which may see fewer than the machine has.
        gpus: Where the kernel lists those of the machine.
    """
    of_machine = len(list(gpus.iterdir())) if gpus.is_dir() else 1
    return max(1, len(os.sched_getaffinity(0)) * num_gpus // max(num_gpus, of_machine))


def dtype_named(name: str) -> torch.dtype:
    """For example torch.bfloat16 of "bfloat16".

    Raises:
        ValueError: if torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype={name!r}: torch has no dtype of this name")
    return dtype
