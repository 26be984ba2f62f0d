"""Why the worker processes of a vLLM engine gave up as it started."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

_STREAMS = (2, 1)  # stderr, and stdout that vLLM logs to: worker processes share both
_NUM_LINES = 20
_TAIL_BYTES = 2**18
_PREFIX = re.compile(r"^.*? \[[\w.]+:\d+\] ")  # of vLLM's log
_ERROR = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception))(?:: (\S.*))?")


class EngineStartError(RuntimeError):
    """An engine of several worker processes did not start; the message has what they wrote last."""


@contextmanager
def telling_what_workers_wrote(num_workers: int) -> Iterator[None]:
    """Put what vLLM's workers wrote into the error with which a start of several of them ends.

    vLLM says that one of its processes has failed and refers to a stack trace, which that process
    has logged. A Ray worker's output is a file for each stream.

    Raises:
        EngineStartError: from the block's own error, if a stream is a file that grew.
    """
    begins = {stream: _size_of(stream) for stream in _STREAMS if num_workers > 1}
    try:
        yield
    except Exception as error:
        lines = [line for stream, begin in begins.items() for line in _lines_since(stream, begin)]
        if not lines:
            raise
        cause = _cause_of([_PREFIX.sub("", line) for line in lines]) or str(error)
        last = "\n".join(f"  {line}" for line in lines[-_NUM_LINES:])
        raise EngineStartError(
            f"an engine of rollout.tensor_parallel_size={num_workers} did not start: {cause}\n"
            f"its workers wrote last:\n{last}"
        ) from error


def _cause_of(lines: Sequence[str]) -> str:
    """The first error that a traceback among the lines ends with; one without words by its code."""
    for before, line in pairwise(lines):
        if found := _ERROR.fullmatch(line.strip()):
            return found[0] if found[2] else f"{before.strip()} ({found[1]})"
    return ""


def _size_of(stream: int) -> int | None:
    """Bytes of the file that a stream is; None if it is no file that can be read again."""
    with suppress(OSError):
        status = os.fstat(stream)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


def _lines_since(stream: int, begin: int | None) -> list[str]:
    if begin is None:
        return []
    with suppress(OSError), Path(f"/proc/self/fd/{stream}").open("rb") as file:
        file.seek(max(begin, os.fstat(stream).st_size - _TAIL_BYTES))
        written = file.read().decode(errors="replace")
        return [line.rstrip() for line in written.splitlines() if line.strip()]
    return []
