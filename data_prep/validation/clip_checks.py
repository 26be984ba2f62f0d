"""The checks of one clip: its own numbers, its marks, what a model sees, and its video's facts."""

import math
from collections.abc import Iterator

from data_prep.schema import Clip, implausible
from data_prep.validation.findings import Finding, RowFindings
from data_prep.validation.video_facts import VideoFacts
from data_prep.validation.view import Estimate, View

SAMPLES_PER_CYCLE = 2.0  # Nyquist: fewer cannot show a cycle
_SLACK_S = 1e-6  # that of `rewards.reference`, which leaves such marks out


def check_values(clip: Clip, make: RowFindings) -> Iterator[Finding]:
    """Numbers that no video has; where there are any, the other checks make no sense."""
    for key, value, expected in implausible(clip):
        yield make.make("implausible_value", key, value, expected)


def check_window(clip: Clip, make: RowFindings) -> Iterator[Finding]:
    """The clip within its video, by the row's own numbers; one frame of slack."""
    end_s = (clip.num_frames + 1) / clip.video_fps
    if clip.end_s > end_s + _SLACK_S:
        length = f"{clip.num_frames} frames at {clip.video_fps:g} fps"
        yield make.make(
            "clip_outside_video", "end_s", clip.end_s, f"at most {end_s:.3f} ({length})"
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
    num_patches = math.ceil(estimate.num_frames / view.frames_per_patch)
    num_distinct = view.num_distinct_patches(estimate.num_frames, estimate.fps)
    if num_distinct < num_patches:
        yield make.make(
            "shared_positions",
            "video.fps",
            f"{estimate.fps:.3g}, so {num_distinct} positions in time for {num_patches} temporal "
            "patches",
            f"at most {view.max_distinct_fps:g} fps",
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
    clip: Clip, estimate: Estimate, facts: VideoFacts, last_s: float, make: RowFindings
) -> Iterator[Finding]:
    """The row against what was found in its video, which could be decoded.

    Args:
        clip: The row.
        estimate: How it is shown.
        facts: Of its video.
        last_s: The last second of the video at which it is shown.
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
    if last_s >= facts.end_s:
        found = f"a clip within the {facts.end_s:.3f} s ({facts.num_frames} frames) of the video"
        yield make.make("clip_outside_video", "end_s", f"{clip.end_s}", found)
    if facts.num_wrong:
        value = f"{make.video!r} ({facts.num_wrong} of {facts.num_decoded} frames)"
        yield make.make("wrong_frames", "video", value, "the frames of a pass through the file")
    if clip.num_frames != facts.num_frames:
        found = f"{facts.num_frames} as in the video"
        yield make.make("num_frames_differs", "num_frames", clip.num_frames, found)
    if (clip.width, clip.height) != (facts.width, facts.height):
        found = f"{facts.width}x{facts.height} as in the video"
        yield make.make("size_differs", "width", f"{clip.width}x{clip.height}", found)
