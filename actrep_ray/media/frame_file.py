"""The file of cached frames: a header that says what is in it, then the pixels, memory-mapped.

    0      "actrep frames 1\\n", JSON of shape, dtype, plan and CRC-32 of the pixels, NULs
    4096   uint8 RGB [T, height, width, 3]

A header has one right form for given frames, so that comparing it covers every bit of it.
"""

import json
import mmap
import os
from typing import BinaryIO
from zlib import crc32

import numpy as np

Shape = tuple[int, int, int, int]

HEADER_BYTES = 4096  # a page, so that pixels begin on one


def write_frames(out: BinaryIO, frames: np.ndarray, key: str) -> None:
    """Write the frames of a plan: uint8 [T, height, width, 3].

    Args:
        out: Takes the file.
        frames: The pixels.
        key: Names the plan.
    """
    pixels = np.ascontiguousarray(frames).data.cast("B")
    out.write(_header(frames.shape, key, crc32(pixels)))
    out.write(pixels)


def map_frames(file: int, shape: Shape, key: str, *, is_verified: bool) -> np.ndarray | None:
    """The frames in an open file, mapped: writing to them changes nothing in it.

    Args:
        file: Its descriptor, which may be closed afterwards.
        shape: [T, height, width, 3] of the plan.
        key: Names the plan.
        is_verified: Whether this file was read and compared before.

    Returns:
        uint8 of that shape; None if the file is cut, damaged, or holds something else.
    """
    if os.fstat(file).st_size != HEADER_BYTES + int(np.prod(shape)):
        return None
    pages = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    if not is_verified:
        with memoryview(pages) as view:
            checksum = crc32(view[HEADER_BYTES:])
            is_sound = view[:HEADER_BYTES] == _header(shape, key, checksum)
        if not is_sound:
            return None
    return np.frombuffer(pages, np.uint8, offset=HEADER_BYTES).reshape(shape)


def _header(shape: tuple[int, ...], key: str, checksum: int) -> bytes:
    values = {"shape": list(shape), "dtype": "uint8", "plan": key, "crc32": checksum}
    return b"actrep frames 1\n" + json.dumps(values).encode().ljust(HEADER_BYTES - 16, b"\0")
