"""Writing H.264 files."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.files import replacing

Frames = NDArray[np.uint8]  # [T, H, W, 3] RGB


def encode_mp4(path: Path, frames: Frames, fps: int | Fraction) -> None:
    """Write frames [T, H, W, 3] as H.264, atomically; equal input gives equal bytes.

    It is not synced to the disk, file by file: who writes many calls `data_prep.files.sync_folder`
    in the end. One thread and closed groups of pictures, so that any decoder can seek exactly.
    """
    height, width = frames.shape[1:3]
    options = {
        "preset": "ultrafast",
        "crf": "20",
        "x264-params": "keyint=48:scenecut=0:open-gop=0:threads=1",
    }
    with (
        replacing(path, is_durable=False) as partial,
        av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
