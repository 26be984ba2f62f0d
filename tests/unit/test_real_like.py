"""The level real-like: what each kind of clip has, in its labels and in its pixels."""

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.schema import read_clips
from data_prep.synthetic.clip import ClipSpec, clip_spec
from data_prep.synthetic.dataset import write_dataset
from data_prep.synthetic.drawing import Pen
from data_prep.synthetic.levels import LEVELS
from data_prep.synthetic.real_like import JERK_S, KINDS, kind_of
from data_prep.synthetic.render import draw_clip
from data_prep.video_writer import Frames

WITHOUT = {"wandering", "still"}
IN_SHOTS = {"cuts", "black", "fade"}


@cache
def specs() -> list[ClipSpec]:
    return [clip_spec("real-like", 0, "train", i) for i in range(450)]


@cache
def first_of(kind: str) -> tuple[ClipSpec, Frames]:
    spec = next(s for s in specs() if kind_of(s.clip) == kind)
    return spec, draw_clip(spec)


def changes(frames: Frames) -> np.ndarray:
    """Mean change of a grey value from each frame to the next. [T - 1]"""
    grey = frames.mean(axis=3)
    return np.asarray(np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2)))


def at(spec: ClipSpec, time_s: float) -> int:
    return round(time_s * spec.fps)


def test_labels_agree_with_the_kind() -> None:
    kinds = Counter(kind_of(s.clip) for s in specs())
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 10  # 30 are expected of each
    for spec in specs():
        kind, clip = kind_of(spec.clip), spec.clip
        assert clip.flags == (f"kind:{kind}",)
        assert spec.scene is not None
        assert clip.cycles == spec.timeline.cycles
        assert clip.count == len(clip.cycles)
        assert clip.num_frames == clip.duration_s * clip.video_fps
        bounds = [bound for cycle in clip.cycles for bound in cycle]
        assert bounds == sorted(bounds)
        assert not bounds or (bounds[0] > 0 and bounds[-1] < clip.duration_s)
        if kind in WITHOUT:
            assert clip.count == 0
        elif kind == "once":
            assert clip.count == (0 if spec.timeline.one_way else 1)
        else:
            assert clip.count >= 2
        assert (len(spec.scene.cuts) > 0) == (kind in IN_SHOTS)
        assert (spec.scene.jerk_s is not None) == (kind == "jerk")


def test_each_shot_has_two_repetitions_and_no_cut_lies_in_one() -> None:
    for spec in specs():
        if spec.scene is None or not spec.scene.cuts:
            continue
        borders = [0.0, *(cut.start_s for cut in spec.scene.cuts), spec.clip.duration_s]
        ends = [0.0, *(cut.end_s for cut in spec.scene.cuts)]
        for start, (_, end) in zip(ends, pairwise(borders), strict=True):
            inside = [c for c in spec.timeline.cycles if start < c[0] and c[1] < end]
            assert len(inside) >= 2
        for cut in spec.scene.cuts:
            assert all(b < cut.start_s or a > cut.end_s for a, b in spec.timeline.cycles)


def test_a_jerk_leaves_the_repetitions_alone() -> None:
    jerks = [s for s in specs() if s.scene and s.scene.jerk_s]
    assert {s.scene.jerk_s[0] == 0.0 for s in jerks if s.scene and s.scene.jerk_s} == {True, False}
    for spec in jerks:
        assert spec.scene is not None
        assert spec.scene.jerk_s is not None
        start, end = spec.scene.jerk_s
        assert end - start == pytest.approx(JERK_S)
        assert all(b <= start or a >= end for a, b in spec.timeline.cycles)


def test_a_cut_changes_the_picture_at_once_and_a_fade_does_not() -> None:
    spec, frames = first_of("cuts")
    assert spec.scene is not None
    cut = at(spec, spec.scene.cuts[0].start_s)
    assert changes(frames)[cut - 1] > 5 * np.median(changes(frames))
    spec, frames = first_of("fade")
    assert spec.scene is not None
    fade = spec.scene.cuts[0]
    first, last = at(spec, fade.start_s), at(spec, fade.end_s)
    before, after = frames[first - 1].astype(float), frames[last].astype(float)
    middle = frames[(first + last) // 2].astype(float)
    assert np.abs(middle - (before + after) / 2.0).mean() < 0.25 * np.abs(after - before).mean()


def test_black_between_two_shots() -> None:
    spec, frames = first_of("black")
    assert spec.scene is not None
    cut = spec.scene.cuts[0]
    first, last = at(spec, cut.start_s), at(spec, cut.end_s)
    assert frames[first:last].max() < 30
    assert frames[first - 1].max() > 100 < frames[last].max()


def test_the_camera_of_a_still_clip_stands_and_that_of_the_others_does_not() -> None:
    def likeness(kind: str) -> float:
        """Least correlation of the first picture with the others in which the figure rests."""
        spec, frames = first_of(kind)
        rests = frames[~spec.track.is_moving].mean(axis=3)
        room = rests[:, : rests.shape[1] // 4].reshape(len(rests), -1)
        return min(float(np.corrcoef(room[0], other)[0, 1]) for other in room[1:])

    assert max(likeness("pan"), likeness("shake")) < likeness("still") - 0.1


def test_a_lamp_changes_the_light() -> None:
    def spread(kind: str) -> float:
        means = first_of(kind)[1].mean(axis=(1, 2, 3))
        return float(np.ptp(means) / means.mean())

    assert spread("still") < 0.15 < spread("light")


def test_a_subject_travels_and_one_wanders_without_repeating() -> None:
    for kind in ("travelling", "wandering"):
        spec, frames = first_of(kind)
        grey = frames.mean(axis=3)
        differs = np.abs(grey - np.median(grey, axis=0)) > 40
        columns = np.arange(grey.shape[2])
        centres = [(d.sum(axis=0) @ columns) / d.sum() for d in differs if d.sum() > 20]
        assert np.ptp(centres) > 0.25 * grey.shape[2], kind
        assert (spec.clip.count == 0) == (kind == "wandering")


def test_a_pen_with_a_box_draws_in_it_alone() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    Pen(image, mirror=False, box=(10.0, 20.0, 10.0)).disc((0.5, 0.5), 0.3, (255, 255, 255))
    rows, columns = np.nonzero(image[..., 0] > 128)
    assert (rows.mean(), columns.mean()) == pytest.approx((25.0, 15.0), abs=0.1)
    assert max(np.ptp(rows), np.ptp(columns)) <= 6


def test_kinds_are_kept_in_the_file(tmp_path: Path) -> None:
    path = write_dataset(
        tmp_path, level="real-like", num_clips={"test": 2}, seed=1, num_processes=1
    )
    assert all(kind_of(clip) in KINDS for clip in read_clips(path))
    assert list(LEVELS).index("real-like") == 4  # seeds go by it
