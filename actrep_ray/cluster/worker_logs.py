"""The last lines that a worker wrote, found by the error that its call ended with."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import ray

from actrep_ray.cluster.actors import node_address

_MOST_LINES = 20
_TAIL_BYTES = 2**16  # of a file, which may have grown for days


def add_last_lines(raised: BaseException, error: BaseException) -> None:
    """Add to an exception what the worker wrote last, as a note: a traceback ends with it.

    Args:
        raised: What the run ends with.
        error: What Ray said of the worker's call, which names its process; nothing is added if it
            does not, or if no cluster is there.
    """
    process = _process_of(error)
    if process is None or not ray.is_initialized():
        return
    pid, address = process
    if address and address != node_address():
        raised.add_note(f"the worker's log is on node {address}, of process {pid}")
        return
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    with suppress(OSError):  # a log that cannot be read hides no error
        for path, lines in last_lines(logs, pid):
            text = "\n".join(f"  {one}" for one in lines)
            raised.add_note(f"the last lines of {path}:\n{text}")


def last_lines(logs: Path, pid: int) -> Iterator[tuple[Path, list[str]]]:
    """Each of a process's files with its last lines; those that are empty are left out."""
    for path in sorted(logs.glob(f"worker-*-{pid}.*")):
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
        # Ray's own marks, which tell its monitor whose lines follow.
        lines = [line for line in lines if line.strip() and not line.startswith(":")]
        if lines:
            yield path, lines[-_MOST_LINES:]


def _process_of(error: BaseException) -> tuple[int, str] | None:
    """Number and node address of the process that an error is of; None if it does not say."""
    pid = re.search(r"\bpid[:=] ?(\d+)", str(error))
    address = re.search(r"\bip[:=] ?([0-9a-fA-F.:]+)", str(error))
    return (int(pid[1]), address[1] if address else "") if pid else None
