"""What a model behind an API is shown: parts of a message as OpenAI's chat completions name them.

    frames   "0.0 s:" JPEG "0.2 s:" JPEG ...    each image after its time in the clip; seen by any
                                                model that takes several images
    video    the file, or an MP4 of the frames  one `video_url`; vLLM's server and Gemini take it

Media are `data:` URLs: nothing has to be fetched by the endpoint, and nothing is left with it.
"""

import base64
import mimetypes
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from data_prep.schema import Clip
from data_prep.video import FramePlan
from data_prep.video.guard import probe_guarded, read_guarded
from data_prep.video_writer import encode_mp4

_LARGEST = 1000  # denominator of a rate


def frames_content(plan: FramePlan, jpeg_quality: int) -> list[dict[str, Any]]:
    """Each frame as a JPEG after its time; a still image, and those before it, without one.

    Args:
        plan: The frames.
        jpeg_quality: 1 to 100.

    Raises:
        VideoError: if the file cannot be decoded.
    """
    content: list[dict[str, Any]] = []
    for shown in plan.shown:
        for time_s, frame in zip(shown.timestamps_s, read_guarded(shown), strict=True):
            if not shown.is_image:
                content.append({"type": "text", "text": f"{time_s:.1f} s:"})
            url = data_url("image/jpeg", jpeg_of(frame, jpeg_quality))
            content.append({"type": "image_url", "image_url": {"url": url}})
    return content


def video_content(clip: Clip, plan: FramePlan, jpeg_quality: int) -> list[dict[str, Any]]:
    """A clip as a video: its file where it is all of that, else an MP4 of its frames.

    Args:
        clip: The clip.
        plan: Its frames; images before it are sent as images.
        jpeg_quality: Of those.

    Raises:
        VideoError: if the file cannot be read.
    """
    before = [one for shown in plan.before for one in frames_content(shown, jpeg_quality)]
    path = Path(plan.video)
    if plan.folder_fps is None and is_whole(clip):
        url = data_url(mimetypes.guess_type(path.name)[0] or "video/mp4", path.read_bytes())
    else:
        url = data_url("video/mp4", _encoded(plan))
    return [*before, {"type": "video_url", "video_url": {"url": url, "fps": plan.fps}}]


def is_whole(clip: Clip) -> bool:
    """Whether a clip is all of its video, to half a frame.

    Raises:
        VideoError: if the file cannot be read.
    """
    found = probe_guarded(clip.video)
    slack_s = 0.5 / found.fps
    return clip.start_s <= slack_s and clip.end_s >= found.end_s - slack_s


def jpeg_of(frame: np.ndarray, quality: int) -> bytes:
    """A frame uint8 [H, W, 3] RGB as a JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    is_written, jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    assert is_written, f"no JPEG of a frame of {frame.shape}"
    return bytes(jpeg)


def data_url(kind: str, content: bytes) -> str:
    """A URL that holds what it names."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(plan: FramePlan) -> bytes:
    """The frames of a plan as an MP4 at the plan's rate."""
    with TemporaryDirectory(prefix="actrep-upload-") as folder:
        path = Path(folder) / "clip.mp4"
        encode_mp4(path, read_guarded(plan), Fraction(plan.fps).limit_denominator(_LARGEST))
        return path.read_bytes()
