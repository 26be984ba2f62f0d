"""A clip before it is drawn: its line of `clips.jsonl`, its timeline and its track.

Everything about a clip follows from (level, seed, split, index) alone.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.files import DataError
from data_prep.schema import SPLITS, Clip
from data_prep.synthetic.levels import LEVELS, Level
from data_prep.synthetic.real_like import Scene, draw_scene, flags_of
from data_prep.synthetic.timeline import Timeline, Track, draw_timeline


@dataclass(frozen=True)
class ClipSpec:
    """A clip before it is drawn: all labels, no pixels.

    Attributes:
        level: What the clip was drawn from.
        fps: Frames per second.
        clip: The canonical line.
        timeline: Action and cycles.
        track: The track at the times of the frames.
        look_seed: Seeds colours, scenery, light, camera and noise.
        scene: What happens beside the timeline, in a real-like clip.
    """

    level: Level
    fps: int
    clip: Clip
    timeline: Timeline
    track: Track
    look_seed: np.random.SeedSequence
    scene: Scene | None = None


def clip_spec(level: str, seed: int, split: str, index: int) -> ClipSpec:
    """Draw the labels of one clip; a thousand times cheaper than its frames.

    Raises:
        DataError: for an unknown level or split, or a negative seed or index.
    """
    check_request(level, {split: index + 1}, seed, 1)
    ranges = LEVELS[level]
    entropy = (seed, list(LEVELS).index(level), SPLITS.index(split), index)
    time_seed, look_seed = np.random.SeedSequence(entropy).spawn(2)
    rng = np.random.default_rng(time_seed)
    fps = int(rng.choice(ranges.frame_rates))
    size = int(rng.choice(ranges.sizes))
    scene = draw_scene(rng, ranges, fps) if ranges.is_real_like else None
    timeline = scene.timeline if scene else draw_timeline(rng, ranges, fps)
    num_frames = round(timeline.duration_s * fps)
    clip = Clip(
        id=f"{level}-{seed}-{split}-{index:05d}",
        dataset="synthetic",
        split=split,
        video=f"videos/{split}-{index:05d}.mp4",
        start_s=0.0,
        end_s=timeline.duration_s,
        video_fps=float(fps),
        num_frames=num_frames,
        width=size,
        height=size,
        action=timeline.action,
        count=len(timeline.cycles),
        cycles=timeline.cycles,
        cycles_source="synthetic",
        flags=flags_of(scene) if scene else (),
    )
    track = timeline.track_at(np.arange(num_frames) / fps)
    return ClipSpec(ranges, fps, clip, timeline, track, look_seed, scene)


def check_request(level: str, num_clips: dict[str, int], seed: int, num_processes: int) -> None:
    """Raise ValueError for what no data set can be drawn from."""
    if level not in LEVELS:
        raise DataError(f"level={level!r}, expected one of {', '.join(LEVELS)}")
    if seed < 0:
        raise DataError(f"seed={seed}, expected an integer of at least 0")
    if num_processes < 1:
        raise DataError(f"num_processes={num_processes}, expected at least 1")
    for split, number in num_clips.items():
        if split not in SPLITS:
            raise DataError(f"num_clips: split {split!r}, expected one of {', '.join(SPLITS)}")
        if number < 0:
            raise DataError(f"num_clips[{split!r}]={number}, expected at least 0")
    if not sum(num_clips.values()):
        raise DataError(f"num_clips={num_clips}, expected at least one clip")
