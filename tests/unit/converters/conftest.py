"""Videos of a given length and rate, for annotations that come without."""

import os
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

FIXTURES = Path(__file__).parent / "fixtures"
MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> MakeVideo:
    """Writes a video of grey frames: make_video(path, fps, num_frames)."""
    folder = tmp_path_factory.mktemp("made")

    @cache
    def made(suffix: str, fps: Fraction, num_frames: int, rotation: int) -> Path:
        path = folder / f"{fps.numerator}_{fps.denominator}_{num_frames}_{rotation}{suffix}"
        encode(path, fps, num_frames, rotation)
        return path

    def make(path: Path, fps: float | Fraction, num_frames: int, rotation: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = Fraction(fps).limit_denominator(1001)
        os.link(made(path.suffix, rate, num_frames, rotation), path)
        return path

    return make


def encode(path: Path, fps: Fraction, num_frames: int, rotation: int = 0) -> None:
    """A video of 48 x 32 pixels."""
    with av.open(str(path), "w") as container:
        codec = "libx264" if path.suffix != ".avi" else "mpeg4"
        options = {"preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 90, np.uint8), format="rgb24")
        for i in range(num_frames):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
