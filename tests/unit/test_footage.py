"""Footage that nobody rendered: cuts, fades, cameras that move, and what is made of the shots."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.periodicity.camera import follow_camera
from data_prep.periodicity.detector import agreement, detect_cycles, detect_in_frames
from data_prep.periodicity.fades import take_apart
from data_prep.periodicity.features import stabilise
from data_prep.periodicity.half_turns import features_of_turn
from data_prep.periodicity.shots import find_shots, likeness
from data_prep.periodicity.verdict import (
    EVENTS,
    LEAST_DOUBT,
    NEVER_RETURNS,
    ONE_EVENT,
    STILL,
    Judgement,
    Shot,
    judge,
    judge_all,
)
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video_writer import encode_mp4

FPS = 15.0
Frames = NDArray[np.uint8]


def place(seed: int, height: int = 48, width: int = 64) -> NDArray[np.float32]:
    """A room with details of its own, larger than what a camera shows of it. [H + 40, W + 40]"""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, size=((height + 40) // 8, (width + 40) // 8))
    size = (width + 40, height + 40)
    return np.asarray(cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_CUBIC))


def repeated(count: int, seed: int, period_s: float = 1.2) -> np.ndarray:
    """A large picture in whose middle a bright square goes up and down. [T, H + 40, W + 40]"""
    times = np.arange(int((count * period_s + 1.0) * FPS)) / FPS
    phase = np.clip((times - 0.5) / period_s, 0, count)
    height = 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    frames = np.repeat(place(seed)[None], len(times), axis=0)
    for frame, high in zip(frames, height, strict=True):
        top = round(50 - 20 * high)
        frame[top : top + 12, 46:58] = 250
    return frames


def film(frames: np.ndarray, x: np.ndarray | float = 0.0, seed: int = 0) -> Frames:
    """What a camera shows that looks x pixels beside the middle, with noise. [T, 48, 64]"""
    rng = np.random.default_rng(seed)
    shown = []
    for frame, shift in zip(frames, np.broadcast_to(x, len(frames)), strict=True):
        move = np.array([[1, 0, -20 - shift], [0, 1, -20]], np.float32)
        shown.append(cv2.warpAffine(frame, move, (64, 48)))
    noisy = np.stack(shown) + rng.normal(0, 1, size=(len(frames), 48, 64))
    return np.clip(noisy, 0, 255).astype(np.uint8)


# --- shots


def test_a_cut_is_found_where_it_is_and_the_counts_add_up() -> None:
    first, second = film(repeated(4, 1)), film(repeated(3, 2))
    both = np.concatenate([first, second])
    assert find_shots(both, FPS) == [(0, len(first)), (len(first), len(both))]
    found = detect_in_frames(both, FPS)
    assert (found.count, found.verdict) == (7, "count")
    assert [len(shot.cycles) for shot in found.shots] == [4, 3]
    assert found.cycles[4][0] > len(first) / FPS - 0.1
    assert found.distances.shape == (len(found.times_s),) * 2 == (len(found.signal),) * 2


@pytest.mark.parametrize("kind", ["motion", "light", "flash", "pan", "large subject"])
def test_what_is_no_cut(kind: str) -> None:
    picture = repeated(4, 1)
    num = len(picture)
    frames = film(picture, np.linspace(-15, 15, num) if kind == "pan" else 0.0)
    if kind == "light":
        frames[num // 2 :] = np.clip(frames[num // 2 :] * 1.4, 0, 255)
    if kind == "flash":
        frames[30:34] = 255
    if kind == "large subject":
        frames[:] = 120
        for i, frame in enumerate(frames):
            frame[:, : round(32 + 20 * np.sin(i / 6))] = 30
    assert find_shots(frames, FPS) == [(0, num)]


def test_black_between_two_shots_is_no_shot() -> None:
    first, second = film(repeated(3, 1)), film(repeated(3, 2))
    black = np.zeros((6, 48, 64), np.uint8)
    shots = find_shots(np.concatenate([first, black, second]), FPS)
    assert len(shots) == 2
    assert abs(shots[0][1] - len(first)) <= 1
    assert abs(shots[1][0] - len(first) - 6) <= 1


def dimmed(frames: Frames, contrast: float) -> Frames:
    """The same before a lens that is all but closed."""
    return np.clip(frames.astype(np.float32) * contrast + 40, 0, 255).astype(np.uint8)


def test_pictures_that_show_nothing_are_a_border_if_they_are_few_or_another_place_follows() -> None:
    first, second = film(repeated(3, 1)), film(repeated(3, 2))
    num = len(first)

    def borders(num_blank: int, after: Frames) -> list[tuple[int, int]]:
        return find_shots(np.concatenate([first, dimmed(first[:num_blank], 0.01), after]), FPS)

    both = 2 * num  # here both takes are as long
    assert borders(5, second) == [(0, num), (num + 5, both + 5)]  # 0.33 s
    assert borders(9, first) == [(0, num), (num + 9, both + 9)]  # 0.6 s: whatever follows
    assert borders(5, first) == [(0, both + 5)]  # 0.33 s of a flash: the same place


def test_a_clip_of_little_contrast_shows_something() -> None:
    dark = dimmed(film(repeated(3, 1)), 0.06)
    assert 2.0 < dark.std(axis=(1, 2)).min() < 3.0  # as little as a picture that is blank
    assert find_shots(dark, FPS) == [(0, len(dark))]


def test_details_are_alike_whatever_the_light_and_a_small_shift() -> None:
    room = place(1)
    assert likeness(room[20:68, 20:84], np.float32(0.6) * room[20:68, 22:86]) > 0.9
    assert likeness(room[20:68, 20:84], place(2)[20:68, 20:84]) < 0.5


def test_a_fade_is_taken_apart() -> None:
    first, second = film(repeated(4, 1)), film(repeated(4, 2))
    num = 9
    w = np.linspace(0, 1, num + 2)[1:-1, None, None]
    mixed = ((1 - w) * first[-num:] + w * second[:num]).astype(np.uint8)
    both = np.concatenate([first[:-num], mixed, second[num:]])
    spans = find_shots(both, FPS)
    assert len(spans) == 2
    left, right = take_apart(both, spans, FPS)
    assert left[1] > right[0]  # both are seen at a time
    assert left[1] - left[0] == len(left[2])
    start = len(first) - num
    alone = first[start : start + 6].astype(float)
    apart = np.abs(left[2][start : start + 6] - alone)
    assert np.median(apart) < 0.5 * np.median(np.abs(both[start : start + 6] - alone))
    assert detect_in_frames(both, FPS).count == 8


def test_no_frame_is_lost_where_a_fade_begins_after_the_end_of_its_shot() -> None:
    first, second = (np.repeat(place(seed)[None], 60, axis=0) for seed in (1, 2))
    w = np.array([0.2, 0.4, 0.6, 0.8])[:, None, None]
    mixed = (1 - w) * first[-1] + w * second[0]
    both = film(np.concatenate([first, mixed, second]))
    left, right = take_apart(both, [(0, 58), (66, 124)], FPS)  # mixed are 60 to 63
    assert (left[:2], len(left[2])) == ((0, 63), 63)
    assert (right[:2], len(right[2])) == ((61, 124), 63)
    assert np.array_equal(left[2][:60], both[:60])


# --- cameras


def test_a_pan_is_followed_by_the_pixels_that_it_goes() -> None:
    frames = film(repeated(4, 1), np.linspace(-10, 10, len(repeated(4, 1))))
    followed = follow_camera(frames.astype(np.float32))
    assert not followed.is_lost.any()
    assert followed.moved == pytest.approx(10 / 64, abs=0.015)
    still = np.abs(followed.frames - followed.background).mean(axis=0)
    assert np.median(still) < 3.0


@pytest.mark.parametrize("kind", ["pan", "picked up", "put down"])
def test_repetitions_before_a_moving_camera(kind: str) -> None:
    picture = repeated(5, 3)
    num = len(picture)
    if kind == "pan":
        x = np.linspace(-14, 14, num)
    else:
        still = picture[-1:] if kind == "picked up" else picture[:1]
        extra = np.repeat(still, 15, axis=0)
        jerk = 20 * np.linspace(0, 1, 15) ** 2
        parts = [picture, extra] if kind == "picked up" else [extra, picture]
        picture = np.concatenate(parts)
        zeros = np.zeros(num)
        x = np.concatenate([zeros, jerk] if kind == "picked up" else [jerk[::-1], zeros])
    found = detect_in_frames(film(picture, x), FPS)
    assert (found.verdict, found.count) == ("count", 5)


def test_a_camera_that_moves_before_a_still_room_counts_nothing() -> None:
    # Sampling between pixels blurs the room now more, now less: with a period of its own.
    room = np.repeat(place(4)[None], 90, axis=0)
    found = detect_in_frames(film(room, np.linspace(-12, 12, 90)), FPS)
    assert (found.count, found.verdict) == (0, "no repetition")


# --- the answer for all shots


def shot(num_cycles: int, verdict: str, reason: str, confidence: float) -> Shot:
    cycles = tuple((float(i), i + 1.0) for i in range(num_cycles))
    judgement = Judgement(verdict, reason, confidence)  # type: ignore[arg-type]
    return Shot(0.0, 9.0, cycles, judgement, 0.5)


def test_the_answer_for_all_shots_by_hand() -> None:
    sure, nothing = shot(3, "count", "", 0.8), shot(0, "no repetition", NEVER_RETURNS, 0.7)
    once = shot(1, "not sure", ONE_EVENT, 0.4)
    assert judge_all([sure]) == sure.judgement
    assert judge_all([sure, nothing]).confidence == pytest.approx(0.8)
    told = judge_all([sure, once])
    assert (told.verdict, told.reason) == ("count", "")
    assert told.confidence == pytest.approx(0.8 * (1 - 0.5 / 2))  # one of two shots is doubtful
    assert judge_all([once, nothing]) == Judgement("not sure", ONE_EVENT, 0.4)
    assert judge_all([once, once]) == Judgement("not sure", EVENTS, 0.4)
    assert judge_all([nothing, nothing]) == nothing.judgement


# --- what real-like clips showed


def test_light_that_changes_everything_a_little_is_no_motion() -> None:
    times = np.arange(int(12 * FPS)) / FPS
    side = np.where(np.arange(64) < 32, 2.0, -2.0)  # one lamp goes up as another goes down
    lit = film(np.repeat(place(1)[None], len(times), axis=0)).astype(float)
    lit += side * np.sin(2 * np.pi * times / 3.0)[:, None, None]
    found = detect_in_frames(np.clip(lit, 0, 255).astype(np.uint8), FPS)
    assert (found.verdict, found.reason) == ("no repetition", STILL)


def test_a_camera_that_is_put_down_is_no_repetition(tmp_path: Path) -> None:
    spec = clip_spec("real-like", 5, "train", 46)
    assert spec.scene is not None
    assert spec.scene.jerk_s == (0.0, 1.2)
    path = tmp_path / "a.mp4"
    encode_mp4(path, draw_clip(spec), spec.fps)
    found = detect_cycles(clip_of_video(path))
    assert found.count == spec.clip.count
    assert agreement(found.cycles, spec.clip.cycles or ()) == 1.0


@pytest.mark.parametrize(
    "number",
    [
        64,  # a fade whose place was missed by half of its length
        169,  # black frames, taken for a fade of one of both shots
        249,  # black frames; two repetitions were one event of twice the length
    ],
)
def test_counts_of_shots_add_up_over_fades_and_black(number: int, tmp_path: Path) -> None:
    spec = clip_spec("real-like", 5, "train", number)
    path = tmp_path / "a.mp4"
    encode_mp4(path, draw_clip(spec), spec.fps)
    found = detect_cycles(clip_of_video(path))
    assert (found.verdict, found.count) == ("count", spec.clip.count)
    assert agreement(found.cycles, spec.clip.cycles or ()) > 0.7


def turning_bar(turns: int, turn_s: float, mark: float) -> Frames:
    """A bright bar that turns about its middle; one end has a disc. [T, 64, 64]"""
    times = np.arange(int((turns * turn_s + 1.0) * FPS)) / FPS
    angle = 2 * np.pi * np.clip((times - 0.5) / turn_s, 0, turns)
    room = place(3, 64, 64)[20:84, 20:84] * 0.5
    frames = []
    for a in angle:
        frame = room.copy()
        way = 22 * np.array([np.cos(a), np.sin(a)])
        ends = [tuple(int(16 * v) for v in 32 + sign * way) for sign in (-1, 1)]
        cv2.line(frame, ends[0], ends[1], 230, 5, cv2.LINE_AA, 4)
        centre = tuple(int(16 * v) for v in 32 + 0.8 * way)
        cv2.circle(frame, centre, 16 * 3, mark, -1, cv2.LINE_AA, 4)
        frames.append(frame)
    noise = np.random.default_rng(0).normal(0, 1.5, (len(frames), 64, 64))
    return np.clip(np.stack(frames) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("turns", "turn_s"), [(3, 2.4), (8, 1.1)])
def test_a_bar_with_a_marked_end_is_counted_by_whole_turns(turns: int, turn_s: float) -> None:
    marked = detect_in_frames(turning_bar(turns, turn_s, mark=120.0), FPS)
    assert (marked.verdict, marked.count) == ("count", turns)
    lengths = [end - start for start, end in marked.cycles]
    assert np.median(lengths) == pytest.approx(turn_s, rel=0.1)
    plain = detect_in_frames(turning_bar(turns, turn_s, mark=230.0), FPS)
    assert plain.count == 2 * turns  # nothing tells its halves apart


def test_what_goes_to_one_side_and_the_other_is_no_half_turn() -> None:
    times = np.arange(int(9 * FPS)) / FPS
    reach = 14 * np.abs(np.sin(np.pi * times / 1.2))  # left and right in turn
    side = np.where((times / 1.2).astype(int) % 2 == 0, 1, -1)
    frames = np.repeat(place(4, 64, 64)[20:84, 20:84][None], len(times), axis=0)
    for frame, x in zip(frames, side * reach, strict=True):
        cv2.rectangle(frame, (28, 16), (36, 60), 250, -1)  # somebody stands
        cv2.line(frame, (32, 22), (int(32 + x), 26), 250, 4)  # and raises either arm
    still = stabilise(frames, FPS)
    assert features_of_turn(still, FPS, tuple((1.2 * k, 1.2 * k + 1.2) for k in range(7))) is None


@pytest.mark.parametrize("period_s", [0.9, 2.2])
def test_somebody_who_goes_across_the_picture_is_counted(period_s: float) -> None:
    times = np.arange(int((6 * period_s + 1.0) * FPS)) / FPS
    phase = np.clip((times - 0.5) / period_s, 0, 6)
    lifted = 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    frames = np.repeat(place(5, 64, 96)[20:84, 20:116][None] * 0.6, len(times), axis=0)
    for frame, x, up in zip(frames, np.linspace(14, 82, len(times)), lifted, strict=True):
        cv2.line(frame, (round(x), 26), (round(x), 56), 240, 5)
        for sign in (-1, 1):
            hand = (round(x + sign * 13), round(40 - 22 * up))
            cv2.line(frame, (round(x), 32), hand, 240, 3)
    noise = np.random.default_rng(0).normal(0, 1.5, frames.shape)
    found = detect_in_frames(np.clip(frames + noise, 0, 255).astype(np.uint8), FPS)
    assert (found.verdict, found.count) == ("count", 6)


def test_somebody_who_walks_about_without_repeating_is_no_doubt() -> None:
    told = judge(0, 2, LEAST_DOUBT / 2, has_period=False, moves=True)
    assert (told.verdict, told.reason) == ("no repetition", NEVER_RETURNS)
    assert judge(0, 2, 2 * LEAST_DOUBT, has_period=False, moves=True).verdict == "not sure"
