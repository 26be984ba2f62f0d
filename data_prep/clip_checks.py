"""What can be wrong with a clip: the kinds of findings, and the checks that need no video.

Owns the names of findings. Where a converter has put the name of a finding into a clip's `flags`,
somebody has seen it already: it is a warning then.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from data_prep.decode_check import VideoFacts
from data_prep.schema import Clip
from data_prep.video import fit_size, plan_indices

Level = Literal["error", "warning"]

SAMPLES_PER_CYCLE = 2.0  # Nyquist: fewer cannot show a cycle
_SHOWN = 200  # characters of a value
_SLACK_S = 1e-6  # that of `rewards.reference`, which leaves such marks out

ERRORS = {
    "not_utf8": "the line is not text in UTF-8",
    "not_json": "the line is not one JSON object with each key once",
    "schema": "a key is missing, unknown or holds a wrong value",
    "implausible_value": "a number that no video has",
    "duplicate_id": "the id is that of an earlier row",
    "conflicting_counts": "an earlier row gives this window of this video another count",
    "count_differs_from_cycles": "there are more or fewer marks than repetitions",
    "zero_length_cycles": "a mark ends where it starts",
    "reversed_cycles": "a mark ends before it starts",
    "unsorted_cycles": "a mark starts before the one before it",
    "overlapping_cycles": "a mark starts before the one before it has ended",
    "cycle_outside_clip": "a mark lies outside the clip",
    "clip_outside_video": "the clip goes on beyond the end of the video",
    "leak_of_video": "the same video is in another split",
    "leak_of_content": "a file with the same bytes is in another split",
    "missing_video": "no file there",
    "unreadable_video": "a folder, a loop of links, or no permission",
    "empty_video": "a file of no bytes",
    "undecodable_video": "the decoder refuses it",
    "decoder_crashed": "the decoder's process died of it",
    "decoder_hung": "the decoder did not finish in time",
    "fps_differs": "times in the row and in the video drift apart",
}
WARNINGS = {
    "below_nyquist": "cycles too short for the rate at which the clip is shown",
    "too_many_tokens": "the visual tokens do not fit into the model's context",
    "repeated_frames": "the clip has fewer frames than it is shown with",
    "duplicate_clip": "an earlier row has the same window of the same video",
    "duplicate_content": "another file of this split has the same bytes",
    "variable_frame_rate": "frames do not lie at equal distances in time",
    "num_frames_differs": "the row and the video disagree on the number of frames",
    "size_differs": "the row and the video disagree on width or height",
    "path_outside_folder": "the video lies outside the folder of the file",
}
KINDS = ERRORS | WARNINGS

# key, least, most: beyond these no arithmetic is done.
_PLAUSIBLE = (
    ("num_frames", 1, 10**8),
    ("width", 1, 2**16),
    ("height", 1, 2**16),
    ("count", 0, 10**6),
    ("video_fps", 0.01, 10_000),
    ("end_s", 0, 10**7),
)


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
    """

    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    factor: int
    frames_per_patch: int
    max_visual_tokens: int | None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one row.

    Attributes:
        kind: A key of `KINDS`.
        level: `error` or `warning`.
        row: Line of the file, from 1.
        clip_id: The row's id, empty where it could not be read.
        video: The row's video as it is written there, empty where it could not be read.
        key: Which key is wrong, empty where it is the line as a whole.
        value: What it holds.
        expected: What it should hold.
    """

    kind: str
    level: Level
    row: int
    clip_id: str
    video: str
    key: str
    value: str
    expected: str

    @property
    def message(self) -> str:
        """In words: key, value and what was expected."""
        what = f"{self.key}={self.value}" if self.key else self.value
        return f"{what}, expected {self.expected}"


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
        """As an object of JSON."""
        return asdict(self)


class RowFindings:
    """Makes the findings of one row."""

    def __init__(self, row: int, clip_id: str, video: str, flags: tuple[str, ...] = ()) -> None:
        self.row, self.clip_id, self.video, self.flags = row, clip_id, video, flags

    def make(self, kind: str, key: str, value: object, expected: str) -> Finding:
        """A finding; its level follows from its kind and from the row's flags."""
        is_warning = kind in WARNINGS or kind in self.flags
        level: Level = "warning" if is_warning else "error"
        text = str(value)
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return Finding(kind, level, self.row, self.clip_id, self.video, key, text, expected)


def estimate_view(clip: Clip, row: int, view: View) -> Estimate:
    """What a model is shown of a clip: frames, size, visual tokens and samples in a cycle."""
    indices, fps = plan_indices(
        clip, fps=view.fps, min_frames=view.min_frames, max_frames=view.max_frames
    )
    height, width = fit_size(
        clip.height,
        clip.width,
        factor=view.factor,
        min_pixels=view.min_pixels,
        max_pixels=view.max_pixels,
    )
    num_patches = math.ceil(len(indices) / view.frames_per_patch)
    cycle_s = _cycle_length(clip)
    samples = None if cycle_s is None else cycle_s * fps
    return Estimate(
        row=row,
        clip_id=clip.id,
        split=clip.split,
        count=clip.count,
        duration_s=clip.duration_s,
        num_frames=len(indices),
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


def check_values(clip: Clip, make: RowFindings) -> Iterator[Finding]:
    """Numbers that no video has; where there are any, the other checks make no sense."""
    for key, least, most in _PLAUSIBLE:
        value = getattr(clip, key)
        if not least <= value <= most:
            yield make.make("implausible_value", key, value, f"{least:g} to {most:g}")


def check_window(clip: Clip, make: RowFindings) -> Iterator[Finding]:
    """The clip within its video, by the row's own numbers; one frame of slack."""
    end_s = (clip.num_frames + 1) / clip.video_fps
    if clip.end_s > end_s + _SLACK_S:
        length = f"{clip.num_frames} frames at {clip.video_fps:g} fps"
        yield make.make(
            "clip_outside_video", "end_s", clip.end_s, f"at most {end_s:.3f} ({length})"
        )


def check_path(video: str, make: RowFindings) -> Iterator[Finding]:
    """A relative path that leaves the folder of the file."""
    if Path(os.path.normpath(video)).parts[:1] == (os.pardir,):
        yield make.make(
            "path_outside_folder", "video", repr(video), "a path below the file's folder"
        )


def check_cycles(clip: Clip, make: RowFindings) -> Iterator[Finding]:
    """Marks: as many as repetitions, in order, apart, inside the clip, of some length.

    Marks with one of the first four faults are left out in training (`usable_cycles`).
    """
    if clip.cycles is None:
        return
    if len(clip.cycles) != clip.count:
        number = len(clip.cycles)
        yield make.make(
            "count_differs_from_cycles", "count", clip.count, f"{number}, as many as cycles"
        )
    slack_s = 1.0 / clip.video_fps + _SLACK_S
    previous = (0.0, 0.0)
    for i, (start, end) in enumerate(clip.cycles):
        key, value = f"cycles[{i}]", [start, end]
        if end <= start:
            kind = "zero_length_cycles" if end == start else "reversed_cycles"
            yield make.make(kind, key, value, "start < end")
        if start < previous[0] - _SLACK_S and i:
            yield make.make("unsorted_cycles", key, value, f"a start of at least {previous[0]:g}")
        elif start < previous[1] - _SLACK_S and i:
            yield make.make(
                "overlapping_cycles", key, value, f"a start of at least {previous[1]:g}"
            )
        if start < -_SLACK_S or end > clip.duration_s + slack_s:
            yield make.make("cycle_outside_clip", key, value, f"times in 0 to {clip.duration_s:g}")
        previous = (start, end)


def check_view(clip: Clip, estimate: Estimate, view: View, make: RowFindings) -> Iterator[Finding]:
    """What the model sees: enough samples of a cycle, room for the tokens, frames of its own."""
    samples, patches = estimate.samples_per_cycle, estimate.patches_per_cycle
    if samples is not None and patches is not None and samples < SAMPLES_PER_CYCLE - _SLACK_S:
        assert estimate.cycle_s is not None
        needed = SAMPLES_PER_CYCLE / estimate.cycle_s
        what = "median cycle" if clip.cycles else "mean cycle of at most"
        yield make.make(
            "below_nyquist",
            "cycles" if clip.cycles else "count",
            f"{what} {estimate.cycle_s:.3g} s: {samples:.2f} samples at {estimate.fps:.3g} fps, "
            f"{patches:.2f} after merging {view.frames_per_patch} frames",
            f"{SAMPLES_PER_CYCLE:g} samples, so {needed:.3g} fps",
        )
    if view.max_visual_tokens is not None and estimate.visual_tokens > view.max_visual_tokens:
        size = f"{estimate.num_frames} frames of {estimate.width}x{estimate.height}"
        yield make.make(
            "too_many_tokens",
            "visual tokens",
            f"{estimate.visual_tokens} ({size})",
            f"at most {view.max_visual_tokens}",
        )
    available = round(clip.duration_s * clip.video_fps)
    if estimate.num_frames > available:
        value = f"{clip.end_s} ({available} frames from start_s)"
        yield make.make("repeated_frames", "end_s", value, f"{estimate.num_frames} frames or more")


def check_facts(
    clip: Clip, estimate: Estimate, facts: VideoFacts, last_index: int, make: RowFindings
) -> Iterator[Finding]:
    """The row against what was found in its video, which could be decoded.

    Args:
        clip: The row.
        estimate: How it is shown.
        facts: Of its video.
        last_index: The last frame that it is shown with.
        make: Makes the findings.
    """
    half_sample_s = 0.5 / estimate.fps
    drift_s = clip.end_s * abs(clip.video_fps / facts.fps - 1.0) if facts.fps else math.inf
    if drift_s > half_sample_s:
        found = f"{facts.fps:.6g} as in the video ({drift_s:.2f} s apart at the clip's end)"
        yield make.make("fps_differs", "video_fps", clip.video_fps, found)
    if facts.drift_s > half_sample_s:
        uneven = f"times up to {facts.drift_s:.2f} s off"
        yield make.make("variable_frame_rate", "video", f"{make.video!r} ({uneven})", "even times")
    if last_index >= facts.num_frames:
        found = f"a clip within the {facts.num_frames} frames of the video"
        yield make.make("clip_outside_video", "end_s", f"{clip.end_s} (frame {last_index})", found)
    if clip.num_frames != facts.num_frames:
        found = f"{facts.num_frames} as in the video"
        yield make.make("num_frames_differs", "num_frames", clip.num_frames, found)
    if (clip.width, clip.height) != (facts.width, facts.height):
        found = f"{facts.width}x{facts.height} as in the video"
        yield make.make("size_differs", "width", f"{clip.width}x{clip.height}", found)
