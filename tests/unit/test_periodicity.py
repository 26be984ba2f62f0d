"""The periodicity detector: hand-built trajectories, rendered clips, and what uses it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actrep_ray.cli.main import main
from actrep_ray.counting.panel import describe_cross_check
from actrep_ray.counting.record import cross_check
from actrep_ray.evaluation.periodicity import (
    FILE,
    begin_baselines,
    predict_periodicity,
    write_baseline,
)
from actrep_ray.evaluation.periodicity_figure import plot_detection
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import reading_histogram
from actrep_ray.tasks.loading import load_task
from data_prep.periodicity.cycles import (
    best_chain,
    close_gaps,
    excursions,
    trim_rest,
    whole_clip,
)
from data_prep.periodicity.detector import (
    Detection,
    agreement,
    detect_cycles,
    detect_in,
    propose_cycles,
)
from data_prep.periodicity.features import features_of_frames, features_of_signals
from data_prep.periodicity.similarity import (
    autocorrelation,
    estimate_period,
    self_similarity,
    squared_distances,
)
from data_prep.periodicity.verdict import REJECTED, Judgement, judge
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.synthetic.dataset import write_dataset
from data_prep.teachers.periodicity import propose_answers
from data_prep.video import VideoError
from data_prep.video_writer import encode_mp4
from rewards.grammar.layout import Cycle

FPS = 15.0


def course(cycles: list[Cycle], duration_s: float) -> np.ndarray:
    """Position of something that goes 0, 1, 0 in each cycle and rests in between. [T]"""
    times = np.arange(int(duration_s * FPS)) / FPS
    position = np.zeros(len(times))
    for start, end in cycles:
        phase = (times - start) / (end - start)
        inside = (phase >= 0) & (phase < 1)
        position[inside] = 0.5 - 0.5 * np.cos(2 * np.pi * phase[inside])
    return position


def seen(position: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """What a row of 30 pixels sees of something 0.3 wide at a position. [T, 30]"""
    places = np.linspace(-0.2, 1.2, 30)
    picture = np.exp(-((position[:, None] - places) ** 2) / (2 * 0.15**2))
    return picture + noise * np.random.default_rng(seed).normal(size=picture.shape)


def find(signals: np.ndarray, is_hidden: np.ndarray | None = None) -> Detection:
    return detect_in(features_of_signals(signals, FPS, is_hidden=is_hidden, least_motion=0.03))


def in_a_row(start: float, periods: list[float]) -> list[Cycle]:
    borders = start + np.concatenate([[0.0], np.cumsum(periods)])
    return list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))


# --- trajectories with known cycles


@pytest.mark.parametrize("period", [0.6, 1.0, 2.5])
def test_a_sine_of_known_period(period: float) -> None:
    cycles = in_a_row(1.0, [period] * 6)
    found = find(seen(course(cycles, 2.0 + 6 * period)))
    assert found.count == 6
    assert found.score > 0.6
    assert np.abs(np.array(found.cycles) - np.array(cycles)).max() < 0.15 * period
    assert found.period.by_autocorrelation_s == pytest.approx(period, abs=1.5 / FPS)
    assert found.period.by_spectrum_s == pytest.approx(period, rel=0.1)
    assert found.period.agree


def test_a_circle_is_counted_by_turns_and_not_by_halves() -> None:
    phase = 2 * np.pi * np.arange(int(8.0 * FPS)) / FPS / 1.6  # 5 turns
    assert find(np.stack([np.cos(phase), np.sin(phase)], axis=1)).count == 5


def test_two_speeds() -> None:
    cycles = in_a_row(0.5, [0.8] * 4 + [1.6] * 4)
    found = find(seen(course(cycles, 11.0)))
    assert found.count == 8
    assert agreement(found.cycles, tuple(cycles)) == 1.0


def test_a_tempo_that_drifts_to_twice_the_speed() -> None:
    cycles = in_a_row(0.4, (1.8 * 0.92 ** np.arange(9)).tolist())
    assert find(seen(course(cycles, 13.0))).count == 9


def test_pauses_belong_to_no_cycle() -> None:
    cycles = [(0.5, 1.5), (1.5, 2.5), (4.5, 5.5), (7.0, 8.0)]
    found = find(seen(course(cycles, 10.0)))
    assert agreement(found.cycles, tuple(cycles)) == 1.0
    assert found.cycles[1][1] < 3.0 < 4.0 < found.cycles[2][0]


def test_one_repetition_has_no_period_and_is_counted() -> None:
    found = find(seen(course([(2.0, 3.4)], 8.0)))
    assert found.count == 1
    assert found.cycles[0] == pytest.approx((2.0, 3.4), abs=0.2)


def test_noise() -> None:
    cycles = in_a_row(0.8, [1.1] * 7)
    found = find(seen(course(cycles, 9.5), noise=0.1))
    assert found.count == 7


@pytest.mark.parametrize("start_s", [1.2, 2.9, 4.4])
def test_a_short_occlusion(start_s: float) -> None:
    cycles = in_a_row(0.5, [1.2] * 6)
    signals = seen(course(cycles, 8.5))
    times = np.arange(len(signals)) / FPS
    is_hidden = (times >= start_s) & (times < start_s + 0.5)
    signals[is_hidden] = 7.0
    assert abs(find(signals, is_hidden).count - 6) <= 1


def test_nothing_moves() -> None:
    found = find(np.ones((90, 30)))
    assert (found.count, found.cycles, found.score) == (0, (), 0.0)
    assert found.period.period_s is None
    rng = np.random.default_rng(0)
    assert find(1.0 + 0.01 * rng.normal(size=(90, 30))).count == 0


def test_a_motion_that_never_returns() -> None:
    times = np.arange(int(8 * FPS)) / FPS
    position = np.clip((times - 2.0) / 3.0, 0.0, 0.9)
    assert find(seen(position, noise=0.02)).count == 0


def test_a_walk_without_aim() -> None:
    rng = np.random.default_rng(1)
    walks = [np.cumsum(rng.normal(size=(150, 8)), axis=0) for _ in range(5)]
    assert [find(walk).count for walk in walks] == [0] * 5


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_a_clip_of_a_few_frames(num_frames: int) -> None:
    assert find(seen(np.linspace(0.0, 1.0, num_frames))).count == 0


@pytest.mark.lengthy
@settings(max_examples=25)
@given(
    period=st.floats(0.6, 2.4),
    count=st.integers(1, 8),
    lead_s=st.floats(0.3, 2.0),
    unevenness=st.lists(st.floats(0.9, 1.1), min_size=8, max_size=8),
)
def test_any_period_and_phase(
    period: float, count: int, lead_s: float, unevenness: list[float]
) -> None:
    cycles = in_a_row(lead_s, [period * factor for factor in unevenness[:count]])
    found = find(seen(course(cycles, cycles[-1][1] + 0.6)))
    assert found.count == count
    assert np.abs(np.array(found.cycles) - np.array(cycles)).max() <= 0.3 * period
    borders = np.array(found.cycles).ravel()
    assert np.all(np.diff(borders) >= 0)
    assert 0.0 < found.score <= 1.0


def test_wrong_limits_are_named() -> None:
    features = features_of_signals(np.zeros((20, 2)), FPS)
    with pytest.raises(ValueError, match=r"min_period_s=2\.0, max_period_s=1\.0"):
        detect_in(features, min_period_s=2.0, max_period_s=1.0)


# --- the parts, by hand


def test_distances_and_self_similarity() -> None:
    squares = squared_distances(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], np.float32))
    assert squares.tolist() == [[0, 25, 0], [25, 0, 25], [0, 25, 0]]
    weights = self_similarity((np.sqrt(squares) / 10.0).astype(np.float32))  # distances 0 and 0.5
    unlike = np.exp(-0.25 / 0.125)  # e^-2
    assert weights[0] == pytest.approx(np.array([1.0, unlike, 1.0]) / (2.0 + unlike))
    assert weights.sum(axis=1) == pytest.approx(np.ones(3))


def test_excursions_take_the_smaller_of_both_ends() -> None:
    place = np.array([0.0, 2.0, 5.0, 1.0])
    distances = np.abs(place[:, None] - place[None]).astype(np.float32)
    # From moment 0 the furthest of 0..3 is 5 away, from moment 3 it is 4 away.
    assert excursions(distances)[0, 3] == 4.0
    assert excursions(distances)[1, 3] == 3.0  # 2 -> 5 is 3 away, 1 -> 5 is 4 away


def test_the_best_chain_by_hand() -> None:
    gains = np.full((9, 9), -1.0, np.float32)
    gains[0, 4], gains[4, 8] = 0.5, 0.5
    gains[0, 8] = 0.6
    assert best_chain(gains, 2, 8).tolist() == [[0, 4], [4, 8]]
    gains[0, 8] = 1.1
    assert best_chain(gains, 2, 8).tolist() == [[0, 8]]
    assert best_chain(np.full((9, 9), -0.1, np.float32), 2, 8).tolist() == []


def test_a_change_of_tempo_has_its_price() -> None:
    gains = np.full((12, 12), -1.0, np.float32)
    gains[0, 3], gains[3, 6] = 0.5, 0.5
    gains[6, 11] = 0.35  # 5 instead of 3 moments: 0.6 * ln(5 / 3) = 0.306
    assert best_chain(gains, 2, 8).tolist() == [[0, 3], [3, 6], [6, 11]]
    gains[6, 11] = 0.3
    assert best_chain(gains, 2, 8).tolist() == [[0, 3], [3, 6]]


def test_rest_is_trimmed_and_touching_borders_stay() -> None:
    place = np.array([0.0, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    distances = np.abs(place[:, None] - place[None]).astype(np.float32)
    borders = np.array([[0, 5], [5, 9]])
    assert trim_rest(borders, distances).tolist() == [[2, 5], [5, 7]]


def test_what_is_left_over_at_both_ends_is_one_more_by_hand() -> None:
    place = np.array([0.0, 1.0, 0.3, 1.0, 0.1, 1.0, 0.2])
    distances = np.abs(place[:, None] - place[None]).astype(np.float32)
    from_top_to_top = np.array([[1, 3], [3, 5]])
    # Most like both ends (0.0 and 0.2): 0.3 at moment 2, 0.1 at moment 4.
    whole = whole_clip(distances, from_top_to_top)
    assert whole is not None
    assert whole.tolist() == [[0, 2], [2, 4], [4, 6]]
    longer = np.pad(distances, ((0, 4), (0, 4)), mode="edge")  # rests at its end: 6 and not 2
    assert whole_clip(longer, from_top_to_top) is None
    assert whole_clip(distances, from_top_to_top[:1]) is None


def test_somebody_who_never_stands_twice_in_the_same_pose_is_counted_once_a_squat() -> None:
    cycles = in_a_row(0.0, [2.0] * 4)
    knees = course(cycles, 8.0)
    upright = np.interp(np.arange(len(knees)) / FPS, [0, 2, 4, 6, 8], [0.0, 0.5, 0.1, 0.6, 0.2])
    found = find(np.stack([knees, 1.2 * upright * (1.0 - knees)], axis=1))
    assert found.count == 4
    assert agreement(found.cycles, tuple(cycles)) == 1.0


def test_a_gap_too_short_for_a_pause_is_shared() -> None:
    assert close_gaps([(0.0, 1.0), (1.1, 2.1), (3.0, 4.0)]) == [
        (0.0, 1.05),
        (1.05, 2.1),
        (3.0, 4.0),
    ]
    assert close_gaps([(0.0, 1.0), (1.3, 2.3)]) == [(0.0, 1.0), (1.3, 2.3)]
    assert close_gaps([]) == []


def test_the_autocorrelation_of_a_square_wave() -> None:
    position = np.array([0.0, 0.0, 1.0, 1.0] * 5)
    distances = np.abs(position[:, None] - position[None]).astype(np.float32)
    curve = autocorrelation(distances, 9)
    assert curve[[0, 4, 8]] == pytest.approx([1.0, 1.0, 1.0])
    assert curve[[2, 6]] == pytest.approx([0.0, 0.0])


def test_a_strong_harmonic_does_not_halve_the_period() -> None:
    times = np.arange(int(12 * FPS)) / FPS
    base = 2 * np.pi * times / 1.5
    both = np.stack([np.sin(base) + 2.0 * np.sin(2 * base), 0.6 * np.cos(base)], axis=1)
    values = both.astype(np.float32)
    distances = np.sqrt(squared_distances(values))
    distances /= np.float32(np.percentile(distances, 95))
    period = estimate_period(values, distances, FPS, min_s=0.35, max_s=10.0)
    assert period.by_autocorrelation_s == pytest.approx(1.5, abs=1.0 / FPS)
    assert period.by_spectrum_s == pytest.approx(1.5, rel=0.1)


def test_agreement_by_hand() -> None:
    first = ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0))
    assert agreement(first, first) == 1.0
    assert agreement((), ()) == 1.0
    assert agreement(first, ()) == 0.0
    assert agreement(first, first[:2]) == pytest.approx(0.8)  # 2 * 2 / (3 + 2)
    assert agreement(first, tuple((a + 0.5, b + 0.5) for a, b in first)) == 0.0
    # 0.5 is within 0.4 of the longer cycle only: (2 / 3 + 0) / 2
    second = ((0.0, 1.5), (3.0, 3.2))
    assert agreement(((0.0, 1.0),), second) == pytest.approx((0.0 + 2 / 3) / 2)


# --- frames


def moving_square(positions: np.ndarray) -> np.ndarray:
    """A bright square that goes up and down over a still picture. uint8 [T, 48, 48, 3]"""
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(60, 120, size=(6, 6)), np.ones((8, 8))).astype(np.uint8)
    frames = np.repeat(still[None], len(positions), axis=0)
    for frame, position in zip(frames, positions, strict=True):
        top = round(30 * (1.0 - position)) + 4
        frame[top : top + 10, 18:28] = 230
    return np.repeat(frames[..., None], 3, axis=3)


def test_brightness_and_a_shaking_camera_are_undone() -> None:
    cycles = in_a_row(0.5, [1.0] * 5)
    frames = moving_square(course(cycles, 6.0))
    rng = np.random.default_rng(3)
    shaken = np.stack(
        [
            np.clip(np.roll(frame, rng.integers(-1, 2, size=2), (0, 1)) * gain, 0, 255)
            for frame, gain in zip(frames, np.linspace(0.75, 1.1, len(frames)), strict=True)
        ]
    ).astype(np.uint8)
    assert detect_in(features_of_frames(frames, FPS)).count == 5
    assert detect_in(features_of_frames(shaken, FPS)).count == 5


def test_a_covered_picture_is_hidden_and_costs_at_most_one() -> None:
    frames = moving_square(course(in_a_row(0.5, [1.2] * 6), 8.5))
    frames[60:68] = 250  # something passes right before the camera
    features = features_of_frames(frames, FPS)
    assert np.flatnonzero(features.is_hidden).tolist() == list(range(60, 68))
    assert abs(detect_in(features).count - 6) <= 1


def test_flow_can_be_added() -> None:
    frames = moving_square(course(in_a_row(0.5, [1.0] * 4), 5.0))
    assert detect_in(features_of_frames(frames, FPS, flow=True)).count == 4


# --- rendered clips and what uses the detector


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    return write_dataset(folder, level="easy", num_clips={"train": 16}, seed=11, num_processes=1)


@pytest.fixture(scope="module")
def clips(data: Path) -> list[Clip]:
    return list(read_clips(data))


@pytest.mark.lengthy
def test_rendered_clips_are_counted_without_their_labels(clips: list[Clip]) -> None:
    predictions = predict_periodicity(clips, num_processes=1)
    errors = [abs(int(p.reading or 0) - c.count) for p, c in zip(predictions, clips, strict=True)]
    assert [p.clip_id for p in predictions] == [c.id for c in clips]
    assert np.mean([error <= 1 for error in errors]) >= 0.9
    assert np.mean([error == 0 for error in errors]) >= 0.8
    likeness = [
        agreement(p.cycles, c.cycles or ()) for p, c in zip(predictions, clips, strict=True)
    ]
    assert np.mean(likeness) >= 0.7
    wrong = replace(clips[0], count=99, cycles=((0.0, 0.1),), action="nothing")
    assert detect_cycles(wrong).cycles == detect_cycles(clips[0]).cycles


@pytest.mark.lengthy
def test_a_process_beside_others_writes_what_this_one_would(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    task = load_task("counting")
    folders = {tmp_path / "a": clips[:2], tmp_path / "b" / "c": clips[2:3]}
    process = begin_baselines(folders, task)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    process.join()
    assert process.exitcode == 0
    for folder, some in folders.items():
        found = (folder / FILE).read_text()
        write_baseline(some, tmp_path / "here", task)
        assert found == (tmp_path / "here" / FILE).read_text()


@pytest.mark.lengthy
def test_a_process_beside_others_tells_that_it_failed(clips: list[Clip], tmp_path: Path) -> None:
    gone = replace(clips[0], video=str(tmp_path / "gone.mp4"))
    process = begin_baselines({tmp_path: [gone]}, load_task("counting"))
    process.join()
    assert process.exitcode == 1
    assert not (tmp_path / FILE).exists()


@pytest.mark.lengthy
def test_proposed_cycles_are_kept_where_they_agree_with_the_count(clips: list[Clip]) -> None:
    clip = next(c for c in clips if c.count >= 3 and detect_cycles(c).count == c.count)
    unmarked = replace(clip, cycles=None, cycles_source=None)
    proposal = propose_cycles(unmarked)
    assert (proposal.agrees, proposal.reason) == (True, "")
    assert len(proposal.cycles) == clip.count
    other = propose_cycles(replace(unmarked, count=clip.count + 3))
    assert (other.agrees, other.reason) == (False, "count_differs")

    given = [
        unmarked,
        replace(unmarked, count=clip.count + 3),
        clip,
        replace(unmarked, video=f"{clip.video}.missing"),
    ]
    done: list[tuple[int, int]] = []
    outcomes = list(propose_answers(given, progress=lambda *state: done.append(state)))
    reasons = [None, "count_differs", "has_marks", "unreadable_video"]
    assert [outcome.reason for outcome in outcomes] == reasons
    assert outcomes[0].clip.cycles_source == "periodicity"
    assert outcomes[0].text is not None
    assert f"<answer>{clip.count}</answer>" in outcomes[0].text
    assert done == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_missing_video_is_named(clips: list[Clip]) -> None:
    with pytest.raises(VideoError, match="gone"):
        detect_cycles(replace(clips[0], video="gone.mp4"))


@pytest.mark.lengthy
def test_the_picture(tmp_path: Path) -> None:
    found = find(seen(course(in_a_row(0.5, [1.0] * 5), 6.5)))
    path = tmp_path / "folder" / "picture.png"
    plot_detection(found, path, title="squares", others={"model": ((0.0, 1.0), (1.0, 2.0))})
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
    plot_detection(find(np.ones((30, 5))), path, title="still")


@pytest.mark.lengthy
def test_count_on_the_command_line(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = clips[0]
    command = ["count", clip.video, "--method", "periodicity"]
    assert main([*command, "--json", "--plot", str(tmp_path / "a.png")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["method"] == "periodicity"
    assert record["count"] == len(record["cycles"]) == detect_cycles(clip).count
    assert (tmp_path / "a.png").is_file()
    assert main(command) == 0
    assert f"{record['count']} repetitions" in capsys.readouterr().out
    assert main(["count", clip.video]) == 2
    assert "--checkpoint DIR is missing" in capsys.readouterr().err
    assert main([*command, "--plot", "/dev/null/a.png"]) == 2
    assert "/dev/null/a.png: /dev/null is a file, expected a folder" in capsys.readouterr().err


@pytest.mark.lengthy
def test_a_model_is_cross_checked(clips: list[Clip]) -> None:
    clip = clips[0]
    found = detect_cycles(clip)
    check = cross_check(found.cycles, found)
    assert (check["agreement"], check["count"]) == (1.0, found.count)
    text = describe_cross_check(check)
    assert f"agreement 1.00 of 1 with the periodicity detector, which finds {found.count}" in text
    half = found.cycles[::2]
    num_same = len(half)
    expected = 2 * num_same / (num_same + found.count)
    assert cross_check(half, found)["agreement"] == pytest.approx(expected, abs=1e-3)
    assert cross_check((), found)["agreement"] == 0.0


@pytest.mark.lengthy
def test_evaluate_on_the_command_line(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [replace(clip, split="test") for clip in clips[:4]]
    write_clips(tmp_path / "clips.jsonl", few)
    out = tmp_path / "out"
    data = str(tmp_path / "clips.jsonl")
    words = ["evaluate", "--method", "periodicity", "--data", data, "--out", str(out)]
    assert main([*words, f"--set=data.allow_outside=[{Path(few[0].video).parent}]"]) == 0
    assert "periodicity" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_clips"] == 4
    rows = [
        json.loads(line)
        for line in (out / "predictions-periodicity.jsonl").read_text().splitlines()
    ]
    assert [row["clip_id"] for row in rows] == [clip.id for clip in few]
    assert (out / "report" / "report.html").is_file()


# --- doubt


def test_the_three_answers() -> None:
    sure = find(seen(course(in_a_row(0.5, [1.0] * 5), 6.5)))
    assert (sure.verdict, sure.reason, sure.reading) == ("count", "", 5)
    once = find(seen(course([(2.0, 3.4)], 8.0)))
    assert (once.verdict, once.reading) == ("not sure", 1)
    assert once.reason == "one event, no repetition"
    still = find(np.ones((90, 30)))
    assert (still.verdict, still.reason, still.reading) == ("no repetition", "nothing moves", 0)
    assert once.confidence < sure.confidence


def test_a_chain_that_is_not_believed_is_no_zero() -> None:
    told = judge(0, 4, 0.2, has_period=True, moves=True)
    assert (told.verdict, told.reason) == ("not sure", REJECTED)
    assert judge(0, 0, 0.0, has_period=True, moves=True).verdict == "not sure"
    assert judge(0, 0, 0.0, has_period=False, moves=True).verdict == "no repetition"


def test_not_sure_is_a_row_of_its_own() -> None:
    given = [
        Prediction("a", 3),
        Prediction("b", None, problem="not_sure"),
        Prediction("c", None, problem="no_answer"),
    ]
    assert reading_histogram(given) == {"3": 1, "not sure": 1, "unparsed": 1}


def test_what_is_not_sure_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip("a", "set", "train", "a.mp4", 0.0, 8.0, 15.0, 120, 64, 64, "turn", 1)
    once = find(seen(course([(2.0, 3.4)], 8.0)))
    monkeypatch.setattr("data_prep.periodicity.detector.detect_cycles", lambda *_, **__: once)
    proposal = propose_cycles(clip)
    assert (proposal.agrees, proposal.reason) == (False, "not_sure")


def test_not_sure_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = find(seen(course([(2.0, 3.4)], 8.0)))
    unbelieved = replace(
        once, cycles=(), rejected=once.cycles, judgement=Judgement("not sure", REJECTED, 0.3)
    )
    video = tmp_path / "a.mp4"
    encode_mp4(video, np.zeros((4, 32, 32, 3), np.uint8), 15)
    command = ["count", str(video), "--method", "periodicity"]
    for found, answer in ((once, "not sure: one event"), (unbelieved, f"not sure: {REJECTED}")):
        monkeypatch.setattr(
            "data_prep.periodicity.long.detect_cycles", lambda *_, found=found, **__: found
        )
        assert main(command) == 3
        assert answer in capsys.readouterr().out
    picture = tmp_path / "a.png"
    assert main([*command, "--json", "--plot", str(picture)]) == 3
    record = json.loads(capsys.readouterr().out)
    assert (record["count"], record["verdict"], record["reason"]) == (None, "not sure", REJECTED)
    assert record["rejected"] == [[pytest.approx(2.0, abs=0.2), pytest.approx(3.4, abs=0.2)]]
    assert picture.is_file()
