"""vLLM's OpenAI server in a process of its own."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

READY = "Application startup complete"


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Start a server, and end it after the block; yields the lines that it writes, as they come."""
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    output: list[str] = []
    has_started = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if READY in line:
                has_started.set()
        has_started.set()  # it ended

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        has_started.wait(1200)  # two processes import vLLM, one after the other
        assert any(READY in line for line in output), "".join(output[-30:])
        yield output
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        reader.join(30)
        assert process.stdout is not None
        process.stdout.close()
