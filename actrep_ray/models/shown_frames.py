"""What of a recipe's frames the processor files of a checkpoint can say, for whoever else reads it.

transformers and vLLM find the rate, the limits on frames and the pixel budget of a model in its
processor files. Published ones hold their own defaults there (2 frames a second, at most 768), by
which a model that was trained on other frames would be asked with them.

The budget of a recipe is of one frame, as `Qwen2VLVideoProcessor` has it. That of Qwen3-VL,
`Qwen3VLVideoProcessor`, is of a whole video, so that no number in it gives clips of different
lengths the size that they were trained at; and it spreads frames up to the last one, where a plan
goes on from the first at the rate. The two cut frames into patches alike and both are read by the
processor of Qwen3-VL: so a checkpoint of ours names the first.

Whether to sample stays as it is published: without being asked to, transformers shows all frames of
a video to Qwen2-VL and 2.5. vLLM hands its frames to their processor without a rate, and it would
refuse to sample them.

What still differs, see `docs/serving.md`: it takes an even number of frames and spreads them over
the clip, and shrinks them by another filter.
"""

import json
from collections.abc import Mapping
from typing import Any

from actrep_ray.config import VideoConfig

_NESTED = "processor_config.json"  # transformers 5 writes all into it, and reads it first
_VIDEO, _IMAGE = "video_preprocessor_config.json", "preprocessor_config.json"
_OLD_NAMES = ("min_pixels", "max_pixels")  # would go before `size`


def with_frames(files: Mapping[str, bytes], video: VideoConfig) -> dict[str, bytes]:
    """Processor files, by name, that say which frames a model was trained on.

    Args:
        files: Of the checkpoint that training began with; those of processors are JSON.
        video: The recipe's section.

    Returns:
        All of them, and `video_preprocessor_config.json` where nothing else told videos and images
        apart.
    """
    found = dict(files)
    nested = _read(files, _NESTED)
    if "video_processor" in nested:
        nested["video_processor"] = _video_settings(nested["video_processor"], video)
        if "image_processor" in nested:
            nested["image_processor"] = _image_settings(nested["image_processor"], video)
        found[_NESTED] = _written(nested)
        return found
    if _VIDEO not in files and _IMAGE not in files:
        return found
    of_videos = _read(files, _VIDEO if _VIDEO in files else _IMAGE)
    found[_VIDEO] = _written(_video_settings(of_videos, video))
    if _IMAGE in files:
        found[_IMAGE] = _written(_image_settings(_read(files, _IMAGE), video))
    return found


def _video_settings(known: Mapping[str, Any], video: VideoConfig) -> dict[str, Any]:
    return _sized(known, video) | {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "fps": video.fps,
        "min_frames": video.min_frames,
        "max_frames": video.max_frames,
    }


def _image_settings(known: Mapping[str, Any], video: VideoConfig) -> dict[str, Any]:
    """An image is shown as a plan of one frame."""
    return _sized(known, video)


def _sized(known: Mapping[str, Any], video: VideoConfig) -> dict[str, Any]:
    kept = {name: value for name, value in known.items() if name not in _OLD_NAMES}
    size = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels}
    return kept | {"do_resize": True, "size": size}


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files.get(name, b"{}"))
    return content


def _written(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
