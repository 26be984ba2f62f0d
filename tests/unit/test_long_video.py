"""Long videos: where they are cut, and that no repetition is counted twice or lost."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actrep_ray.counting.long_video import Span, add_windows, plan_windows
from actrep_ray.counting.panel import describe
from actrep_ray.counting.videos import Source
from actrep_ray.counting.votes import vote
from actrep_ray.evaluation.predictions import prediction_of_text
from actrep_ray.tasks.loading import load_task
from data_prep.periodicity.detector import agreement, detect_cycles
from data_prep.periodicity.long import Cut, between, choose_cut, detect_long
from data_prep.schema import Clip
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video_writer import encode_mp4
from rewards.grammar.layout import Cycle

TASK = load_task("counting")
FPS = 12


def in_a_row(start_s: float, period_s: float, number: int) -> list[Cycle]:
    return [(start_s + i * period_s, start_s + (i + 1) * period_s) for i in range(number)]


def test_a_window_is_cut_in_a_pause_of_its_latter_half() -> None:
    # pauses: 5 to 9 (too early), 34 to 38, 41 to 42.5; window 10 to 70: 40 to 60 may be cut
    cycles = [*in_a_row(0, 1, 5), *in_a_row(9, 1, 25), *in_a_row(38, 1, 3), *in_a_row(42.5, 1, 20)]
    assert choose_cut(cycles, 10.0, 70.0) == Cut(41.75, 41.75)
    assert choose_cut([], 0.0, 60.0) == Cut(40.0, 40.0)  # nothing repeats: halfway from 30 to 50


def test_without_a_pause_it_is_cut_between_repetitions_and_the_next_looks_back() -> None:
    cycles = in_a_row(0.5, 1.5, 39)
    assert choose_cut(cycles, 0.0, 60.0) == Cut(50.0, 47.0)  # 0.5 + 33 x 1.5; two of 1.5 s earlier


def test_a_repetition_belongs_to_where_its_middle_lies() -> None:
    seen = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    assert between(seen, 10.0, 0.0, 13.0) == ((10.0, 12.0),)
    assert between(seen, 10.0, 13.0, 20.0) == ((12.0, 14.0), (14.0, 16.0))


def test_windows_of_a_model_follow_the_detector() -> None:
    cycles = [*in_a_row(2, 1, 8), *in_a_row(14, 2, 6)]  # a pause from 10 to 14, none after
    assert plan_windows(cycles, 15.0, 16.0) == [Span(0, 15, 0, 15)]
    assert plan_windows(cycles, 27.0, 16.0) == [Span(0, 12, 0, 12), Span(12, 27, 12, 27)]
    # from 12 on, 20 to 28 may be cut: no pause, and the last repetition ends at 26
    assert plan_windows(cycles, 40.0, 16.0)[1] == Span(12, 26, 12, 26)
    # nothing is seen: overlaps of an eighth, cut in the middle
    blind = plan_windows([], 30.0, 16.0)
    assert blind == [Span(0, 16, 0, 15), Span(14, 30, 15, 30)]


def answer(times: Sequence[Cycle], number: int) -> str:
    lines = [f"rep{i}: {a:.1f}-{b:.1f}s" for i, (a, b) in enumerate(times, start=1)]
    lines.append(f"Total: {number}")
    return "<think>\nMoves.\n" + "\n".join(lines) + f"\n</think>\n<answer>{number}</answer>"


def source(duration_s: float) -> Source:
    clip = Clip("a", "file", "test", "a.mp4", 0.0, duration_s, 12.0, 1, 64, 64, "unknown", 0)
    return Source(Path("a.mp4"), clip)


def test_counts_of_windows_add_up() -> None:
    spans = [Span(0, 12, 0, 12), Span(12, 28, 12, 27), Span(26, 40, 27, 40)]
    # The overlap from 26 to 28 is listed by both; (26, 28) lies in the middle, and so in the last.
    texts = [
        answer(in_a_row(2, 1, 8), 8),
        answer(in_a_row(2, 2, 7), 7),  # shown from 12 s on: 14-16 ... 26-28
        answer(in_a_row(0, 2, 3), 3),  # 26-28, 28-30, 30-32
    ]
    votes = [vote([prediction_of_text("a", text, TASK)], TASK) for text in texts]
    found = add_windows(source(40.0), spans, votes)
    assert found.count == 8 + 6 + 3
    assert found.cycles == (
        *in_a_row(2.0, 1.0, 8), *in_a_row(14.0, 2.0, 6), *in_a_row(26.0, 2.0, 3),
    )  # fmt: skip
    assert found.is_sure
    assert found.confidence == pytest.approx(2 / 3)
    record = json.loads(json.dumps(replace(found, model=Path("m")).to_json()))
    assert [window["count"] for window in record["windows"]] == [8, 6, 3]
    assert "window   12.0 s  to   27.0 s: 6 repetitions (consistent" in describe(found)

    # one window's answer contradicts itself: its number is taken, and it is said
    votes[0] = vote([prediction_of_text("a", answer(in_a_row(2, 1, 8), 9), TASK)], TASK)
    found = add_windows(source(40.0), spans, votes)
    assert (found.count, found.verdict) == (9 + 6 + 3, "not sure")
    assert found.reason.startswith("1 of 3 windows, the first at 0.0 s: the answer contradicts")
    # bare numbers cannot be told apart where windows overlap
    bare = [vote([prediction_of_text("a", "<answer>4</answer>", TASK)], TASK)] * 3
    found = add_windows(source(40.0), spans, bare)
    assert found.reason.startswith("2 of 3 windows, the first at 12.0 s: overlaps with another")


# --- a rendered file


def segments(number: int) -> tuple[list[np.ndarray], list[Cycle]]:
    """Clips that the detector counts rightly alone, a pause after each, and the repetitions."""
    rng = np.random.default_rng(0)
    pieces: list[np.ndarray] = []
    cycles: list[Cycle] = []
    at, index = 0.0, 0
    while len(pieces) < number:
        spec = clip_spec("easy", 11, "test", index)
        index += 1
        if spec.fps != FPS or spec.clip.count < 2:
            continue
        frames = draw_clip(spec)
        held = np.repeat(frames[-1:], int(FPS * rng.uniform(6, 12)), axis=0).astype(np.int16)
        held += rng.integers(-3, 4, size=(*held.shape[:3], 1), dtype=np.int16)
        piece = np.concatenate([frames, np.clip(held, 0, 255).astype(np.uint8)])
        if not _is_right_alone(frames, spec.clip.count):
            continue
        assert spec.clip.cycles is not None
        cycles += [(at + a, at + b) for a, b in spec.clip.cycles]
        pieces.append(piece)
        at += len(piece) / FPS
    return pieces, cycles


def _is_right_alone(frames: np.ndarray, count: int) -> bool:
    from data_prep.periodicity.detector import detect_in_frames
    from data_prep.periodicity.features import grey_of

    return detect_in_frames(grey_of(frames), FPS).count == count


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Cycle]]:
    """About ten minutes of 30 segments, the first minute of it, and the repetitions."""
    pieces, cycles = segments(30)
    folder = tmp_path_factory.mktemp("long")
    frames = np.concatenate(pieces)
    encode_mp4(folder / "long.mp4", frames, FPS)
    encode_mp4(folder / "short.mp4", frames[: 60 * FPS], FPS)
    return folder / "long.mp4", folder / "short.mp4", cycles


@pytest.mark.slow
def test_ten_minutes_of_known_segments_are_counted(
    rendered: tuple[Path, Path, list[Cycle]],
) -> None:
    path, _, cycles = rendered
    clip = clip_of_video(path)
    assert clip.duration_s > 500
    found = detect_long(clip)
    assert abs(found.count - len(cycles)) < 0.05 * len(cycles)  # 166 of 174
    assert agreement(found.cycles, tuple(cycles)) > 0.95


_PEAK = (
    "import resource, sys\n"
    "from actrep_ray.cli.main import main\n"
    "code = main(['count', sys.argv[1], '--method', 'periodicity', '--json'])\n"
    "peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF,\n"
    "    resource.RUSAGE_CHILDREN)]\n"
    "from data_prep.video.guard import end_processes\n"
    "end_processes()\n"
    "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "print(max(peaks), child, file=sys.stderr)"
)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(rendered: tuple[Path, Path, list[Cycle]]) -> None:
    """Peak memory of the command and of its decoding process, KiB."""
    peaks = []
    for path in (rendered[1], rendered[0]):
        run = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True
        )
        peaks.append([int(word) for word in run.stderr.split()[-2:]])
    (own_short, child_short), (own_long, child_long) = peaks
    assert own_long <= 1.3 * own_short
    assert child_long <= 1.3 * child_short


def test_a_short_clip_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    spec = clip_spec("easy", 3, "test", 0)
    encode_mp4(tmp_path / "a.mp4", draw_clip(spec), spec.fps)
    clip = clip_of_video(tmp_path / "a.mp4")
    found = detect_long(clip)
    assert found.cycles == detect_cycles(clip).cycles
    assert len(found.times_s)
