"""Jobs for a decoding process that end as no job should."""

import os
import signal
import sys
import time
from pathlib import Path

from data_prep.video import VideoError


def double(number: int) -> int:
    return 2 * number


def refuse_odd(number: int) -> int:
    if number % 2:
        raise VideoError(f"{number}: odd")
    return number


def crash(text: str) -> None:
    sys.stderr.write(f"[h264 @ 0x55f0] {text}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: str) -> None:
    """Note that it has begun, and hold up even signals, as a decoder in a loop does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    Path(path).touch()
    while True:
        time.sleep(60)


def fill_memory(num_bytes: int) -> int:
    return len(bytearray(num_bytes))
