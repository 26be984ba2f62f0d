"""The synthetic videos: exact labels, agreement with the files, determinism, what a level adds."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import decord
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.files import DataError
from data_prep.schema import SPLITS, read_clips
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.dataset import read_tracks, write_dataset
from data_prep.synthetic.levels import LEVELS, count_weights
from data_prep.synthetic.motions import MOTIONS
from data_prep.synthetic.render import draw_clip
from data_prep.synthetic.timeline import Timeline
from data_prep.video_writer import Frames, encode_mp4

pytestmark = pytest.mark.lengthy

NUM_CLIPS = {"train": 20, "validation": 4, "test": 4}

OF_ONE_KIND = [name for name, level in LEVELS.items() if not level.is_real_like]

clip_keys = {
    "level": st.sampled_from(sorted(OF_ONE_KIND)),
    "seed": st.integers(0, 2**31),
    "split": st.sampled_from(SPLITS),
    "index": st.integers(0, 99_999),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("easy")
    return write_dataset(out_dir, level="easy", num_clips=NUM_CLIPS, seed=7, num_processes=1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_track_of_a_timeline_by_hand() -> None:
    times = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0])
    cycles = ((1.0, 3.0), (4.0, 6.0))  # a pause of a second between them
    squat = Timeline("squat", 8.0, cycles).track_at(times)
    assert squat.position == pytest.approx([0, 0, 0.5, 1, 0.5, 0, 0, 0, 1, 0, 0])
    assert squat.is_moving.tolist() == [False, *[True] * 4, False, False, True, True, False, False]
    ball = Timeline("ball_bounce", 8.0, cycles).track_at(times)
    assert ball.position == pytest.approx([0, 0, 0.75, 1, 0.75, 0, 0, 0, 1, 0, 0])
    turn = Timeline("arm_rotation", 8.0, cycles).track_at(times)
    assert turn.position == pytest.approx([0, 0, 0.25, 0.5, 0.75, 0, 0, 0, 0.5, 0, 0])


def test_one_way_motion_stays_where_it_ends() -> None:
    track = Timeline("squat", 6.0, (), (1.0, 3.0, 0.8)).track_at(np.array([0.0, 1, 2, 3, 5]))
    assert track.position == pytest.approx([0, 0, 0.4, 0.8, 0.8])
    assert track.is_moving.tolist() == [False, False, True, False, False]


@given(**clip_keys)
@settings(max_examples=300)
def test_labels_are_consistent(level: str, seed: int, split: str, index: int) -> None:
    spec, ranges = clip_spec(level, seed, split, index), LEVELS[level]
    clip, cycles = spec.clip, spec.timeline.cycles
    assert clip.count == len(cycles) <= ranges.max_count
    assert clip.duration_s % 0.5 == 0
    assert ranges.duration_s[0] <= clip.duration_s <= ranges.duration_s[1]
    assert clip.num_frames == clip.duration_s * clip.video_fps == len(spec.track.position)
    bounds = [bound for cycle in cycles for bound in cycle]
    assert bounds == sorted(bounds) == [round(b, 3) for b in bounds]
    assert not bounds or (bounds[0] >= 0.299 and bounds[-1] <= clip.duration_s - 0.299)
    for start, end in cycles:
        assert ranges.period_s[0] - 0.0011 <= end - start <= ranges.period_s[1] + 0.0011
    for (_, end), (start, _) in pairwise(cycles):
        assert start == end or 0.399 <= start - end <= 1.501


@given(**clip_keys)
@settings(max_examples=200)
def test_track_rests_at_every_boundary(level: str, seed: int, split: str, index: int) -> None:
    timeline = clip_spec(level, seed, split, index).timeline
    for start, end in timeline.cycles:
        assert timeline.track_at(np.array([start, end])).position.tolist() == [0.0, 0.0]
        inside = timeline.track_at(np.linspace(start, end, 200, endpoint=False)[1:])
        assert inside.is_moving.all()
        assert inside.position.max() >= 0.9
        assert (inside.position > 0).all()
    if timeline.cycles:
        outside = timeline.track_at(np.array([0.0, timeline.duration_s]))
        assert outside.position.tolist() == [0.0, 0.0]
        assert not outside.is_moving.any()


@given(**clip_keys)
@settings(max_examples=100)
def test_speed_stays_within_the_levels_factor(
    level: str, seed: int, split: str, index: int
) -> None:
    lengths = np.array([e - s for s, e in clip_spec(level, seed, split, index).timeline.cycles])
    if len(lengths):
        assert lengths.max() / lengths.min() <= LEVELS[level].tempo_factor ** 2 + 0.01


@pytest.mark.parametrize("level", OF_ONE_KIND)
def test_counts_are_long_tailed(level: str) -> None:
    weights = count_weights(LEVELS[level])
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] == pytest.approx(0.05)
    assert weights.argmax() == 3
    assert (np.diff(weights[4:]) < 0).all()
    specs = [clip_spec(level, 0, "train", i) for i in range(1500)]
    counts = Counter(s.clip.count for s in specs)
    assert max(counts) == LEVELS[level].max_count
    assert 0.03 < counts[0] / 1500 < 0.07
    assert max(counts, key=counts.__getitem__) in (2, 3, 4)
    assert Counter(s.clip.action for s in specs).keys() == MOTIONS.keys()
    zeros = [s.track.is_moving.any() for s in specs if s.clip.count == 0]
    assert 0.25 < np.mean(zeros) < 0.75  # some move without repeating, some stand still
    best_constant = max(sum(counts[c + d] for d in (-1, 0, 1)) for c in range(24)) / 1500
    assert best_constant < 0.42


def test_metadata_agrees_with_the_files(dataset: Path) -> None:
    clips = list(read_clips(dataset))
    assert Counter(c.split for c in clips) == NUM_CLIPS
    tracks = read_tracks(dataset.with_name("tracks.jsonl"))
    assert [c.id for c in clips] == list(tracks)
    for clip in clips:
        reader = decord.VideoReader(clip.video)
        assert len(reader) == clip.num_frames == len(tracks[clip.id].position)
        assert reader.get_avg_fps() == clip.video_fps
        assert reader[0].shape == (clip.height, clip.width, 3)
        assert clip.count == len(clip.cycles or ())
        assert (clip.start_s, clip.end_s) == (0.0, clip.num_frames / clip.video_fps)
    assert {c.video_fps for c in clips} == {12.0, 15.0}


def test_decoded_frames_are_the_rendered_ones(dataset: Path) -> None:
    clip = next(iter(read_clips(dataset)))
    decoded = decord.VideoReader(clip.video)[:].asnumpy().astype(int)
    rendered = draw_clip(clip_spec("easy", 7, "train", 0)).astype(int)
    # what is left is the codec's loss and its coarser colour planes
    assert np.abs(decoded - rendered).mean() < 6


def test_result_does_not_depend_on_processes_or_order(dataset: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(
        tmp_path, level="easy", num_clips=dict(reversed(NUM_CLIPS.items())), seed=7,
        num_processes=2, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert files_of(tmp_path) == files_of(dataset.parent)
    assert seen[-1] == (28, 28)


def test_a_finished_folder_is_left_alone_and_a_half_one_completed(
    dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(dataset.parent, folder)
    arguments: dict[str, Any] = {
        "level": "easy",
        "num_clips": NUM_CLIPS,
        "seed": 7,
        "num_processes": 1,
    }
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.[jm]*")}
    write_dataset(folder, **arguments)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.[jm]*")} == before
    (folder / "clips.jsonl").unlink()
    (folder / "videos" / "train-00003.mp4").unlink()
    (folder / "videos" / ".train-00004.mp4.99.partial").write_bytes(b"cut off")
    write_dataset(folder, **arguments)
    assert files_of(folder) == files_of(dataset.parent)


def test_other_settings_replace_the_folder_if_asked_and_foreign_files_are_kept(
    tmp_path: Path,
) -> None:
    write_dataset(tmp_path, level="easy", num_clips={"train": 3}, seed=1, num_processes=1)
    first = files_of(tmp_path)
    other: dict[str, Any] = {"level": "easy", "num_clips": {"test": 2}, "seed": 2}
    with pytest.raises(DataError, match=r"seed=1 and not 2, num_clips=.*; give --overwrite"):
        write_dataset(tmp_path, **other, num_processes=1)
    assert files_of(tmp_path) == first
    path = write_dataset(tmp_path, **other, num_processes=1, overwrite=True)
    assert [c.split for c in read_clips(path)] == ["test", "test"]
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == [
        "test-00000.mp4", "test-00001.mp4",
    ]  # fmt: skip
    assert files_of(tmp_path)["clips.jsonl"] != first["clips.jsonl"]
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"clips\.jsonl: exists without a dataset\.json"):
        write_dataset(tmp_path, level="easy", num_clips={"train": 1}, seed=1, num_processes=1)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    spec = clip_spec("hard", 3, "test", 5)
    frames, again = draw_clip(spec), draw_clip(clip_spec("hard", 3, "test", 5))
    assert np.array_equal(frames, again)
    encode_mp4(tmp_path / "a.mp4", frames, spec.fps)
    encode_mp4(tmp_path / "b.mp4", again, spec.fps)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_splits_and_seeds_are_disjoint() -> None:
    specs = [
        clip_spec("easy", seed, split, i)
        for seed in (0, 1) for split in SPLITS for i in range(60)
    ]  # fmt: skip
    cycles = [s.timeline.cycles for s in specs if s.timeline.cycles]
    assert len(set(cycles)) == len(cycles)
    assert len({s.clip.id for s in specs}) == len(specs)


def test_no_name_gives_the_count_away(dataset: Path) -> None:
    for number, line in enumerate(dataset.read_text().splitlines()):
        row = json.loads(line)
        index = number - {"train": 0, "validation": 20, "test": 24}[row["split"]]
        assert row["video"] == f"videos/{row['split']}-{index:05d}.mp4"
        assert row["id"] == f"easy-7-{row['split']}-{index:05d}"


def moving_index(level: str, action: str) -> int:
    for i in range(500):
        clip = clip_spec(level, 0, "train", i).clip
        if clip.action == action and clip.count >= 2:
            return i
    raise AssertionError(f"no {action} at level {level}")


@pytest.mark.parametrize("action", MOTIONS)
def test_motion_is_bold_at_32_pixels(action: str) -> None:
    """The part of the picture that changes spans at least 40% of a side and has contrast."""
    frames = draw_clip(clip_spec("easy", 0, "train", moving_index("easy", action)))
    small = frames.reshape(len(frames), 32, 2, 32, 2, 3).mean(axis=(2, 4))
    change = np.abs(small - small[0]).mean(axis=3).max(axis=0) > 40  # [32, 32]
    rows, columns = np.nonzero(change)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 0.4 * 32
    assert change.mean() > 0.03


def border_noise(frames: Frames) -> float:
    """Mean change from frame to frame in the corners, which the figure does not reach."""
    corners = frames[:, :6, [*range(6), *range(-6, 0)]].astype(float)
    return float(np.abs(np.diff(corners, axis=0)).mean())


def test_levels_add_what_they_say() -> None:
    clips = {
        level: [draw_clip(clip_spec(level, 0, "train", i)) for i in range(7)]
        for level in ("easy", "medium", "hard")
    }
    noise = {level: np.mean([border_noise(c) for c in cs]) for level, cs in clips.items()}
    assert 1 < noise["easy"] < noise["medium"] < noise["hard"]

    def brightness_range(level: str) -> float:
        means = [c[:, :6].mean(axis=(1, 2, 3)) for c in clips[level]]
        return float(np.median([np.ptp(m) / m.mean() for m in means]))

    assert brightness_range("easy") < 0.05 < brightness_range("medium")


@pytest.mark.parametrize(
    ("level", "frame_rates", "sizes"),
    [("easy", {12, 15}, {64}), ("medium", {12, 15}, {64, 80}), ("hard", {24, 30}, {64, 80, 96})],
)
def test_frame_rates_and_sizes(level: str, frame_rates: set[int], sizes: set[int]) -> None:
    specs = [clip_spec(level, 0, "train", i) for i in range(60)]
    assert {s.fps for s in specs} == frame_rates
    assert {s.clip.width for s in specs} == {s.clip.height for s in specs} == sizes


def test_hard_has_distractors_bars_and_a_shaking_camera() -> None:
    ranges = LEVELS["hard"]
    assert ranges.num_bars[0] >= 1
    assert ranges.num_distractors[0] >= 1
    assert ranges.jitter > LEVELS["medium"].jitter > LEVELS["easy"].jitter == 0
    spec = clip_spec("hard", 0, "train", moving_index("hard", "ball_bounce"))
    still = draw_clip(spec)[~spec.track.is_moving].astype(float)
    # edges in the picture move although the figure rests
    spread = still.mean(axis=3).std(axis=0)
    assert np.quantile(spread, 0.99) > 2 * np.quantile(spread, 0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "extreme"}, "level='extreme', expected one of easy, medium, hard"),
        ({"num_clips": {"dev": 3}}, "split 'dev', expected one of train, validation, test"),
        ({"num_clips": {"train": -1}}, r"num_clips\['train'\]=-1, expected at least 0"),
        ({"num_clips": {}}, "expected at least one clip"),
        ({"seed": -1}, "seed=-1, expected an integer of at least 0"),
        ({"num_processes": 0}, "num_processes=0, expected at least 1"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "level": "easy",
        "num_clips": {"train": 1},
        "seed": 0,
        "num_processes": 1,
    }
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "out", **(arguments | change))
    assert not (tmp_path / "out").exists()


KILLED = """
import sys
from data_prep.synthetic.dataset import write_dataset

if __name__ == "__main__":
    write_dataset(
        sys.argv[1], level="easy", num_clips={"train": 4000}, seed=7, num_processes=2
    )
"""


def test_no_process_is_left_when_rendering_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out_dir = tmp_path / "data"
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen(
        [sys.executable, str(script), str(out_dir)],
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list((out_dir / "videos").glob("*.mp4"))) < 2:
        assert run.poll() is None
        assert time.monotonic() < deadline, "nothing was rendered in 60 s"
    run.kill()
    run.wait()
    while any(sessions_of(run.pid)):  # the workers, and multiprocessing's own helper
        assert time.monotonic() < deadline, "processes were left"


def sessions_of(session: int) -> Iterator[int]:
    """Living processes of a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(stat.parent.name)
