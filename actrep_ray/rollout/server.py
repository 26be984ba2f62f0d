"""vLLM's OpenAI server with frames by plan: `python -m actrep_ray.rollout.server ARGUMENTS`.

The arguments are vLLM's own. `actrep serve` gives those of a checkpoint; its `--media-io-kwargs`
names the loader below.
"""

import runpy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from actrep_ray.models.qwen_vl import video_metadata
from actrep_ray.models.serving import LOADER, VLLM_SERVER
from data_prep.video import clip_of_video, plan_frames
from data_prep.video.guard import read_guarded


@VIDEO_LOADER_REGISTRY.register(LOADER)
class PlannedVideo(VideoLoader):
    """Frames of a whole video as training, evaluation and `actrep count` see them."""

    @classmethod
    def load_bytes(
        cls,
        data: bytes,
        *,
        fps: float,
        min_frames: int,
        max_frames: int,
        min_pixels: int,
        max_pixels: int,
        factor: int,
        **others: Any,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The frames uint8 [T, height, width, 3] of a file's bytes, and what is known of them.

        Args:
            data: The file.
            fps: This and the next: see `plan_frames`.
            min_frames: Fewest frames.
            max_frames: Most frames.
            min_pixels: Fewest pixels of one frame.
            max_pixels: Most pixels of one frame.
            factor: Height and width are multiples of this.
            others: vLLM's own settings, of which none is looked at.

        Raises:
            VideoError: if the video cannot be read; vLLM answers 400.
        """
        with TemporaryDirectory(prefix="actrep-serve-") as folder:
            path = Path(folder) / "video"
            path.write_bytes(data)
            plan = plan_frames(
                clip_of_video(path),
                fps=fps,
                min_frames=min_frames,
                max_frames=max_frames,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                factor=factor,
            )
            frames = read_guarded(plan)
        return frames, video_metadata(plan) | {"do_sample_frames": False}


if __name__ == "__main__":
    runpy.run_module(VLLM_SERVER, run_name="__main__", alter_sys=True)
