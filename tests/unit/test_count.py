"""`actrep count`: votes, records, files and batches; numbers worked out by hand."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from actrep_ray.cli.main import main
from actrep_ray.counting.batch import Journal
from actrep_ray.counting.by_model import checked, doubted
from actrep_ray.counting.figure import plot_count
from actrep_ray.counting.outputs import Outputs, write_srt
from actrep_ray.counting.overlay import draw_on, total_of, write_overlay
from actrep_ray.counting.panel import describe, headline
from actrep_ray.counting.record import Segment, VideoCount, segments_of
from actrep_ray.counting.videos import find_videos
from actrep_ray.counting.votes import vote
from actrep_ray.evaluation.predictions import prediction_of_text
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.tasks.loading import load_task
from data_prep.files import DataError
from data_prep.periodicity.detector import Detection, detect_cycles
from data_prep.periodicity.lattice import NO_PERIOD
from data_prep.periodicity.verdict import Judgement
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import Video, clip_of_video
from data_prep.video_writer import encode_mp4

TASK = load_task("counting")


def text_of(answer: int | None, total: int | None, num_listed: int) -> str:
    lines = [f"rep{i}: {i:.1f}-{i + 1:.1f}s" for i in range(1, num_listed + 1)]
    lines += [] if total is None else [f"Total: {total}"]
    tag = "" if answer is None else f"\n<answer>{answer}</answer>"
    return "<think>\nA person squats.\n" + "\n".join(lines) + f"\n</think>{tag}"


def counted(*texts: str) -> VideoCount:
    """What a model's answers about a clip of 20 s come to."""
    found = vote([prediction_of_text("a", text, TASK) for text in texts], TASK)
    return VideoCount(
        video=Path("a.mp4"),
        duration_s=20.0,
        count=found.count,
        verdict=found.verdict,
        reason=found.reason,
        confidence=found.confidence,
        cycles=found.shown.cycles,
        model=Path("m"),
        vote=found,
    )


def seen(count: int, confidence: float) -> Detection:
    """What the detector might have seen."""
    none = np.zeros(0, np.float32)
    return Detection(
        cycles=tuple((float(i), i + 1.0) for i in range(1, count + 1)),
        score=0.6,
        period=NO_PERIOD,
        times_s=none,
        distances=np.zeros((0, 0), np.float32),
        signal=none,
        judgement=Judgement("count", "", confidence),
    )


# --- votes


def test_the_median_of_the_answers_counts() -> None:
    said: Sequence[int | None] = (10, 11, 10, None, 10)
    found = counted(*(text_of(n, n, n or 0) for n in said))
    assert found.vote is not None
    assert (found.count, found.verdict, found.reason) == (10, "count", "")
    assert found.vote.agreement == 3 / 5
    assert found.confidence == 4 / 7
    assert found.vote.readings == tuple(said)
    assert found.vote.consistent == 4 / 5  # the unreadable one has a total and no answer
    lower = counted(*(f"<answer>{n}</answer>" for n in (8, 3, 9, 4)))  # 3 4 8 9, bare numbers
    assert lower.count == 4
    assert lower.reason == "1 of 4 answers say 8, 3, 9, 4"
    assert lower.confidence == 2 / 6


def test_half_of_the_answers_are_no_majority() -> None:
    bare = [f"<answer>{n}</answer>" for n in (2, 2, 2, 5, 5)]
    assert counted(*bare).is_sure
    assert not counted(*bare[1:]).is_sure


def test_a_contradiction_is_told_and_the_answer_is_the_count() -> None:
    found = counted(text_of(10, 12, 11))
    assert (found.count, len(found.cycles)) == (10, 11)
    assert found.reason == "the answer contradicts itself: answer 10, total 12, list 11"
    assert found.confidence == pytest.approx(0.5 * 2 / 3)
    assert headline(found) == f"a.mp4: 10 repetitions, not sure: {found.reason}"
    assert "NOT consistent: answer 10, total 12, list 11; the count is the answer's" in describe(
        found
    )
    record = found.to_json()
    assert record["claims"] == {"answer": 10, "total": 12, "list": 11}
    assert (record["count"], record["consistent"], record["consistent_share"]) == (10, False, 0.0)
    assert record["verdict"] == "not sure"


def test_of_answers_that_say_the_count_a_consistent_one_is_shown() -> None:
    found = counted(text_of(3, 3, 2), text_of(4, 4, 4), text_of(3, 3, 3))
    assert (found.count, len(found.cycles), found.reason) == (3, 3, "")
    assert found.vote is not None
    assert found.vote.consistent == 2 / 3
    assert "3 answers say 3 (2 times), 4: the count is their median" in describe(found)


def test_stretches_of_repetitions_are_told_apart() -> None:
    cycles = ((1.0, 2.0), (2.0, 3.5), (6.4, 8.0), (11.0, 12.0))  # gaps of 0, 2.9 and 3 seconds
    found = replace(counted(text_of(4, 4, 4)), cycles=cycles)
    assert segments_of(cycles) == [Segment(1.0, 8.0, 3), Segment(11.0, 12.0, 1)]
    assert found.to_json()["segments"] == [
        {"start_s": 1.0, "end_s": 8.0, "count": 3},
        {"start_s": 11.0, "end_s": 12.0, "count": 1},
    ]
    assert "segment   11.0 s  to   12.0 s: 1 repetition\n" in describe(found)
    assert segments_of(()) == []


def test_an_answer_that_cannot_be_read_is_no_count() -> None:
    found = counted("I cannot tell.")
    assert (found.count, found.confidence) == (None, 0.0)
    assert headline(found) == "a.mp4: not sure: no readable count (missing)"
    squats = replace(found, action="squat")
    assert headline(squats) == "a.mp4 (squat): not sure: no readable count (missing)"
    assert squats.to_json()["action"] == "squat"
    assert found.to_json()["answers"] == [None]


def test_the_detector_makes_a_count_surer_or_less_sure() -> None:
    own = counted(text_of(4, 4, 4))  # 2 / 3
    same = checked(own, seen(4, 0.8))
    assert same.confidence == pytest.approx((2 / 3 * 0.8) / (2 / 3 * 0.8 + 1 / 3 * 0.2))
    assert same.is_sure
    other = checked(own, seen(5, 0.8))
    assert other.confidence == pytest.approx((2 / 3 * 0.2) / (2 / 3 * 0.2 + 1 / 3 * 0.8))
    assert (other.count, other.verdict) == (4, "not sure")
    assert other.reason == "the periodicity detector counts 5 (0.80 sure)"
    assert other.to_json()["cross_check"]["agreement"] == pytest.approx(8 / 9, abs=1e-3)
    unsure = replace(seen(0, 0.3), judgement=Judgement("not sure", "motion too weak", 0.3))
    assert checked(own, unsure).confidence == own.confidence


def test_a_clip_unlike_those_of_the_training_is_not_sure_unless_the_detector_agrees() -> None:
    own = counted(text_of(4, 4, 4))
    alike = replace(own, unlike=1.1)
    assert doubted(alike) == alike
    assert "do not trust it" not in describe(alike)
    foreign = doubted(replace(own, unlike=2.6))
    assert (foreign.count, foreign.verdict) == (4, "not sure")
    assert foreign.reason.startswith("it looks unlike the clips that the model was trained on (2.6")
    assert foreign.confidence == own.confidence / 2
    assert foreign.to_json()["unlike_training"] == 2.6
    confirmed = doubted(checked(replace(own, unlike=2.6), seen(4, 0.8)))
    assert confirmed.is_sure
    assert "trained on clips that look otherwise: do not trust it alone" in describe(confirmed)
    told = doubted(replace(counted("I cannot tell."), unlike=2.6))
    assert told.reason == "no readable count (missing)"


# --- files


def test_subtitles_have_a_cue_for_each_repetition(tmp_path: Path) -> None:
    write_srt(tmp_path / "a.srt", ((0.5, 1.2504), (3599.9996, 3661.5)))
    assert (tmp_path / "a.srt").read_text() == (
        "1\n00:00:00,500 --> 00:00:01,250\n1 / 2\n\n2\n01:00:00,000 --> 01:01:01,500\n2 / 2\n\n"
    )


def test_a_table_has_a_row_for_each_video(tmp_path: Path) -> None:
    records = [
        counted(text_of(1, 2, 2)).to_json(),
        {"video": "=b.mp4", "failure": "=b.mp4: no such video"},
    ]
    Outputs(csv=tmp_path / "t.csv").write_table(records)
    with (tmp_path / "t.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["count"], first["consistent"], first["num_cycles"]) == ("1", "false", "2")
    assert first["cycles"] == "1-2 2-3"
    assert (second["video"], second["count"], second["num_cycles"]) == ("'=b.mp4", "", "")
    assert second["failure"] == "'=b.mp4: no such video"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips that the detector counts, with 4 and 6 repetitions or so."""
    root = tmp_path_factory.mktemp("videos")
    for index in range(2):
        spec = clip_spec("easy", 3, "test", index)
        encode_mp4(root / f"{index}.mp4", draw_clip(spec), spec.fps)
    return root


def with_sound(video: Path, path: Path, *, lead_s: float = 0.0) -> None:
    """A copy of a video of an odd size, with a second of silence that begins before it."""
    with Video(video) as source, av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = 33
        stream.pix_fmt = "yuv444p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        for i, (_, frame) in enumerate(list(source.frames())[:20]):
            picture = av.VideoFrame.from_ndarray(frame[:33, :33].copy(), format="rgb24")
            picture.pts = i + round(10 * lead_s)
            picture.time_base = Fraction(1, 10)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        silence.rate, silence.pts, silence.time_base = 16_000, 0, Fraction(1, 16_000)
        out.mux(sound.encode(silence))
        out.mux(sound.encode(None))


def packets_of(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]


@pytest.mark.lengthy
@pytest.mark.parametrize("lead_s", [0.0, 0.4])
def test_the_overlay_keeps_times_and_sound(folder: Path, tmp_path: Path, lead_s: float) -> None:
    video = tmp_path / "sound.mp4"
    with_sound(folder / "0.mp4", video, lead_s=lead_s)
    found = replace(counted(text_of(2, 2, 0)), video=video, cycles=((0.2, 0.7), (0.7, 1.4)))
    out = tmp_path / "out" / "overlay.mp4"
    write_overlay(found, out)
    with Video(video) as before, Video(out) as after:
        assert np.allclose(before.probe.times_s, after.probe.times_s, atol=1e-3)
        assert (after.probe.width, after.probe.height) == (34, 34)
        assert after.probe.lead_s == pytest.approx(before.probe.lead_s, abs=0.03)
        changed = [
            np.abs(a.astype(int) - b[:33, :33]).mean()
            for (_, a), (_, b) in zip(before.frames(), after.frames(), strict=True)
        ]
    assert min(changed) > 1  # drawn on each
    heard, kept = packets_of(video), packets_of(out)
    assert [data for _, data in heard] == [data for _, data in kept]
    assert [at for at, _ in kept] == pytest.approx([at for at, _ in heard], abs=1e-3)


def test_the_counter_counts_what_has_ended() -> None:
    grey = np.full((96, 160, 3), 100, np.uint8)
    cycles = ((1.0, 2.0), (2.0, 4.0))
    drawn = draw_on(grey, 3.0, cycles, 8.0, "/ 2")
    assert (grey == 100).all()
    row = drawn[-2]  # the bar: 20 pixels a second
    blue, pale, dark = (42, 111, 184), (150, 184, 222), (29, 36, 51)
    assert [tuple(row[x]) for x in (10, 30, 50, 70, 100)] == [dark, blue, blue, pale, dark]
    assert total_of(counted(text_of(2, 2, 2))) == "/ 2"
    assert total_of(counted(text_of(10, 12, 11))) == "/ 11 listed, count 10 ?"


@pytest.mark.lengthy
def test_a_picture_of_a_models_count(tmp_path: Path) -> None:
    plot_count(counted(text_of(2, 2, 2)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 1000


# --- many


def test_videos_are_found(tmp_path: Path) -> None:
    for name in ("b.mp4", "sub/a.MKV", "notes.txt", ".c.mp4", "d[1].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_videos([tmp_path])]
    assert names == ["b.mp4", "d[1].mp4", "sub/a.MKV"]
    assert find_videos([tmp_path / "?.mp4", tmp_path / "b.mp4"]) == [tmp_path / "b.mp4"]
    assert find_videos([tmp_path / "d[1].mp4"]) == [tmp_path / "d[1].mp4"]
    with pytest.raises(DataError, match="no file matches"):
        find_videos([tmp_path / "*.avi"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no video in this folder"):
        find_videos([tmp_path / "empty"])


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`actrep count` by the detector: its exit code, output and errors."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main(["count", "--method", "periodicity", *map(str, words)])
        return code, *capsys.readouterr()

    return call


@pytest.mark.lengthy
def test_one_bad_file_leaves_the_others_done(folder: Path, tmp_path: Path, run: Run) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted(folder.iterdir()):
        (videos / path.name).write_bytes(path.read_bytes())
    (videos / "00.mp4").write_text("no video")
    results, table = tmp_path / "r.jsonl", tmp_path / "t.csv"
    words = (videos, "--out", results, "--csv", table, "--srt", tmp_path / "subtitles")
    code, out, err = run(*words)
    assert code == 1
    truth = [detect_cycles(clip_of_video(videos / name)).count for name in ("0.mp4", "1.mp4")]
    assert [line.split(": ")[1] for line in out.splitlines()] == [
        f"{count} repetitions" for count in truth
    ]
    assert "2 of 3 videos counted, 1 failed:" in err
    assert "00.mp4: cannot be opened as a video" in err
    cues = (tmp_path / "subtitles" / "0.srt").read_text()
    assert cues.count(" --> ") == truth[0]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row.get("count") for row in rows] == [truth[0], None, truth[1]]

    # nothing is written over, and what is there is left out
    assert run(*words)[0] == 2
    (videos / "00.mp4").write_bytes((videos / "1.mp4").read_bytes())
    code, out, err = run(*words, "--resume", "--json")
    assert code == 0
    assert [json.loads(line)["count"] for line in out.splitlines()] == [truth[1]]
    assert "1 of 3 videos counted, 2 counted before" in err
    with table.open(newline="") as file:
        assert [row["count"] for row in csv.DictReader(file)] == [
            str(truth[0]), str(truth[1]), str(truth[1]),
        ]  # fmt: skip


def test_a_file_that_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    path, video = tmp_path / "r.jsonl", tmp_path / "a.mp4"
    video.write_text("x")
    found = replace(counted(text_of(2, 2, 2)), video=video)
    with Journal(path, {"samples": 1}) as journal:
        journal.add(found)
        assert journal.holds(video)
    with path.open("a") as file:
        file.write('{"video": "b.m')
    journal = Journal(path, {"samples": 1}, goes_on=True)
    assert journal.holds(video)
    video.write_text("another")
    assert not journal.holds(video)
    with pytest.raises(DataError, match=r"r\.jsonl:1: was counted with samples=1, now it is 2; "):
        Journal(path, {"samples": 2}, goes_on=True)
    path.write_text('{"video": "a.mp4"}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:1: expected a line that `actrep count --out`"):
        Journal(path, {"samples": 1}, goes_on=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.mp4", "--srt", "a.txt"], "a.txt: expected a name that ends in .srt"),
        (["a.mp4", "--plot", "a.txt"], "a.txt: expected a name in .png"),
        (["a.mp4", "--resume"], "give --out FILE.jsonl"),
        (["a.mp4", "--samples", "3"], "--samples is for a model: leave it out"),
        (["x/a.mp4", "y/a.mkv", "--srt", "s"], "would be written for x/a.mp4 and for y/a.mkv"),
        (["a.mp4", "--overlay", "./a.mp4"], "is the video itself"),
        (["none.mp4"], "none.mp4: no such video"),
    ],
)
def test_what_cannot_be_done_is_one_line(words: list[str], expected: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--action", "squat"], "the question of this checkpoint names no action"),
        (["--actions", "squat,lunge"], "names no action (data.question='How many times"),
        (
            ["--actions", "a,b", "--set", "data.question=How many {action}?", "--srt", "a.srt"],
            "--actions counts in one video, without --out, --srt",
        ),
    ],
)
def test_an_action_that_the_question_does_not_name(
    words: list[str], expected: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", "a.mp4", "--checkpoint", str(model), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err


def test_a_doubtful_file_among_many_is_exit_code_3(tmp_path: Path, run: Run) -> None:
    still = np.zeros((24, 32, 32, 3), np.uint8)
    jump = still.copy()
    jump[8:12, :, 8:24] = 200  # one event
    encode_mp4(tmp_path / "jump.mp4", jump, 8)
    encode_mp4(tmp_path / "still.mp4", still, 8)
    code, out, err = run(tmp_path)
    assert code == 3
    assert "jump.mp4: not sure: one event, no repetition" in out
    assert "still.mp4: no repetition: nothing moves" in out
    assert "2 of 2 videos counted, 1 not sure" in err
    assert run(tmp_path / "jump.mp4")[0] == 3
    assert run(tmp_path / "still.mp4")[0] == 0
