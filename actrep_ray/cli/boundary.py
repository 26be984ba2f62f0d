"""Whose mistake an error is, decided by its type.

What a person typed, or a file that they named, is answered with one line (a recipe with several
mistakes: one line each), and so is a disk without room. Everything else is a defect of ours and
keeps its traceback.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from actrep_ray.cli.commands import UsageError
from actrep_ray.cluster.stopping import InterruptError
from actrep_ray.run.program import program
from data_prep.full_disk import met_by_worker, reason_not_written

_LITTLE_ROOM = 2**20  # bytes of a disk that counts as full


def words_of_mistake(error: Exception, args: argparse.Namespace) -> str | None:
    """What to tell the person who asked; None where the error is not their mistake.

    Args:
        error: What a command raised.
        args: What they asked for.
    """
    cause = met_by_worker(error)
    if reason := reason_not_written(cause):
        return _one_line(f"{_unwritten(cause, args)}: {reason}")
    if isinstance(error, OSError):
        return _words_of_path(error, args)
    if not isinstance(error, ValueError):
        return None
    from actrep_ray.config import ConfigError
    from data_prep.files import DataError

    if not isinstance(error, UsageError | ConfigError | DataError):
        return None
    if isinstance(cause, ConfigError):
        return "\n  ".join(_one_line(line) for line in str(cause).splitlines())
    return _one_line(str(cause))


def words_of_stop(stopped: InterruptError, args: argparse.Namespace) -> str:
    """What was saved of a command that was ended, and how to go on."""
    if stopped.saved_step is None:
        return f"{stopped}; nothing new was saved"
    left_out = ("--resume", "--begin-or-resume", "--overwrite", "--fresh")
    line = [word for word in args.typed if word not in left_out]
    if "resume" in args:
        line.append("--resume")
    command = shlex.join([program("actrep"), *line])
    return f"{stopped}; step {stopped.saved_step} is saved; go on with: {command}"


def _words_of_path(error: OSError, args: argparse.Namespace) -> str | None:
    """The path and the reason, if it is about what was given, or lies in or above that."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename))
    at = path.absolute()
    for given in _given_paths(args):
        if at.is_relative_to(given) or given.is_relative_to(at):
            is_file = isinstance(error, FileExistsError)  # where a folder is to be made
            told = "is a file, expected a folder" if is_file else error.strerror
            return _one_line(f"{path}: {told}")
    return None


def _unwritten(error: BaseException, args: argparse.Namespace) -> str:
    """The file that a disk did not take, else what was given that lies on a full one."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    for given in _given_paths(args):
        there = next(folder for folder in (given, *given.parents) if folder.exists())
        if shutil.disk_usage(there).free < _LITTLE_ROOM:
            return str(given)
    return "a file"


def _given_paths(args: argparse.Namespace) -> Iterator[Path]:
    for value in vars(args).values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Path):
                yield one.absolute()


def _one_line(text: str) -> str:
    return " ".join(text.split())
