"""What a model is shown of a clip, estimated from the clip's line alone."""

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from data_prep.schema import Clip
from data_prep.video import fit_size, plan_times


@dataclass(frozen=True)
class View:
    """How a model is shown clips, and what it has room for; the `video` section of a recipe.

    Attributes:
        fps: Frames per second.
        min_frames: Fewest frames of a clip.
        max_frames: Most frames of a clip.
        min_pixels: Fewest pixels of one frame.
        max_pixels: Most pixels of one frame.
        factor: Side of a merged patch (one visual token), pixels.
        frames_per_patch: Frames that a visual token spans; Qwen-VL merges 2.
        max_visual_tokens: Room in the context; None where it is not known.
        max_distinct_fps: Rate above which temporal patches share a position in time (Qwen2.5-VL,
            whose positions are whole numbers); None where they never do.
    """

    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    factor: int
    frames_per_patch: int
    max_visual_tokens: int | None
    max_distinct_fps: float | None = None

    def num_distinct_patches(self, num_frames: int, fps: float) -> int:
        """Temporal patches of a clip that have a position of their own.

        Of 24 frames at 5 fps in Qwen2.5-VL, 12 patches, they lie 4 / 5 apart: positions
        0 0 1 2 3 4 4 5 6 7 8 8, of which 9 are distinct.
        """
        num_patches = math.ceil(num_frames / self.frames_per_patch)
        step = 1.0 if self.max_distinct_fps is None else self.max_distinct_fps / fps
        return len({int(i * step) for i in range(num_patches)})


@dataclass(frozen=True)
class Estimate:
    """What a model would see of a clip, from metadata alone.

    Attributes:
        row: Line of the file.
        clip_id: The clip.
        split: Its split.
        count: Its count.
        duration_s: Its length.
        num_frames: Frames shown.
        fps: Rate at which they are shown, after the limits on their number.
        height: Of a shown frame, pixels.
        width: Of a shown frame, pixels.
        visual_tokens: Tokens that stand for the video in the prompt.
        cycle_s: Median length of its marks; without marks, the longest that its mean cycle can
            be (length / count). None where nothing repeats.
        samples_per_cycle: `cycle_s` in frames shown.
        patches_per_cycle: `cycle_s` in temporal patches, of `frames_per_patch` frames each.
    """

    row: int
    clip_id: str
    split: str
    count: int
    duration_s: float
    num_frames: int
    fps: float
    height: int
    width: int
    visual_tokens: int
    cycle_s: float | None
    samples_per_cycle: float | None
    patches_per_cycle: float | None

    def to_json(self) -> dict[str, Any]:
        """The view as an object of JSON."""
        return asdict(self)


def estimate_view(clip: Clip, row: int, view: View) -> Estimate:
    """What a model is shown of a clip: frames, size, visual tokens and samples in a cycle."""
    times_s, fps = plan_times(
        clip, fps=view.fps, min_frames=view.min_frames, max_frames=view.max_frames
    )
    height, width = fit_size(
        clip.height,
        clip.width,
        factor=view.factor,
        min_pixels=view.min_pixels,
        max_pixels=view.max_pixels,
    )
    num_patches = math.ceil(len(times_s) / view.frames_per_patch)
    cycle_s = _cycle_length(clip)
    samples = None if cycle_s is None else cycle_s * fps
    return Estimate(
        row=row,
        clip_id=clip.id,
        split=clip.split,
        count=clip.count,
        duration_s=clip.duration_s,
        num_frames=len(times_s),
        fps=fps,
        height=height,
        width=width,
        visual_tokens=num_patches * (height // view.factor) * (width // view.factor),
        cycle_s=cycle_s,
        samples_per_cycle=samples,
        patches_per_cycle=None if samples is None else samples / view.frames_per_patch,
    )


def _cycle_length(clip: Clip) -> float | None:
    lengths = [end - start for start, end in clip.cycles or () if end > start]
    if lengths:
        return median(lengths)
    return clip.duration_s / clip.count if clip.count else None
