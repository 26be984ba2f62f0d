"""Every set, from rows as they are distributed to the exact lines that must come out."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.converters.actrep import actrep
from data_prep.converters.annotation import Source
from data_prep.converters.conversion import Summary, convert
from data_prep.converters.countix import countix
from data_prep.converters.ovr import ovr
from data_prep.converters.quva import quva
from data_prep.converters.remarks import FLAGS
from data_prep.converters.repcount import repcount
from data_prep.converters.table import TableFormat, table
from data_prep.converters.ucfrep import ucfrep
from data_prep.files import DataError
from data_prep.schema import Clip, read_clips
from rewards.reference import usable_cycles

FIXTURES = Path(__file__).parent / "fixtures"
NTSC = Fraction(30000, 1001)
MakeVideo = Callable[..., Path]

# The frame rates and lengths of the real videos.
REPCOUNT = {
    "train/train951.mp4": (30, 300),
    "train/test1463.mp4": (30, 300),
    "train/stu5_11.mp4": (NTSC, 900),
    "test/stu8_42.mp4": (30, 450),
    "test/train1615.mp4": (30, 300),
    "test/train2737.mp4": (NTSC, 300),
    "test/val1244.mp4": (25, 250),
    "test/train143.mp4": (30, 300),
    "test/stu4_5.mp4": (30, 900),
}
UCFREP = {
    "UCF-101/PlayingViolin/v_PlayingViolin_g17_c02.avi": (25, 123),
    "UCF-101/PommelHorse/v_PommelHorse_g25_c04.avi": (25, 400),
    "UCF-101/HandstandPushups/v_HandStandPushups_g21_c04.avi": (25, 88),
    "UCF-101/FrontCrawl/v_FrontCrawl_g25_c01.avi": (25, 97),
    "HulaHoop/v_HulaHoop_g24_c03.avi": (25, 91),
}
COUNTIX = {
    "train/battle_rope_training/AsJgDPLu_ro_000013_000023.mp4": (NTSC, 300),
    "train/DDq_MkrReKk_000050_000060.mp4": (30, 300),
    "bench pressing/BFPKPjBgXIU_000022_000032.mp4": (25, 248),
    "0CnQ-_e5Sl8_000017_000027.mp4": (30, 300),
    "test/1pcMlkxdxzs.mp4": (25, 249),
}
QUVA = {
    "000_rope_beach.mp4": (29, 228),
    "004_table_tennis.mp4": (30, 147),
    "068_spray_paint.mp4": (30, 310),
}
QUVA_MARKS = {
    "000_rope_beach": [
        13, 26, 40, 54, 67, 80, 93, 106, 121, 134, 146, 159, 173, 186, 199, 212, 225,
    ],
    "004_table_tennis": [32, 61, 94, 128],
    "068_spray_paint": [77, 145, 214, 278],
}  # fmt: skip
OVR = {"kin_0001.mp4": (30, 300), "val/ego_0002.mp4": (30, 300)}
ACTREP = {
    "stu8_42.mp4": (30, 450),
    "val/val1244.mp4": (25, 250),
    "train/train951.avi": (30, 300),
    "stu5_11.mp4": (NTSC, 900),
}
MINE = {"walks/a.mp4": (25, 250), "b.mp4": (12, 24)}
MINE_COLUMNS = {
    "video": "file", "count": "reps", "action": "exercise", "start": "from", "end": "to",
    "split": "part", "cycles": "marks",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, make_video: MakeVideo) -> Callable[..., Summary]:
    """Converts a source with its videos in `videos` below the folder of the output."""

    def run_(source: Source, videos: dict[str, tuple[Any, int]]) -> Summary:
        for name, (fps, num_frames) in videos.items():
            if not (tmp_path / "videos" / name).exists():
                make_video(tmp_path / "videos" / name, fps, num_frames)
        summary = convert(source, videos=tmp_path / "videos", out=tmp_path)
        assert summary.num_read == summary.num_written + summary.num_rejected
        assert set(summary.flags) <= set(FLAGS)
        assert len(clips_in(tmp_path)) == summary.num_written
        return summary

    return run_


def clips_in(folder: Path) -> dict[str, Clip]:
    return {clip.id: clip for clip in read_clips(folder / "clips.jsonl", allow_outside=["/"])}


def assert_as_expected(folder: Path, name: str) -> None:
    expected = (FIXTURES / name / "expected.jsonl").read_text(encoding="utf-8")
    assert (folder / "clips.jsonl").read_text(encoding="utf-8") == expected


def rejected_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_repcount(run: Callable[..., Summary], tmp_path: Path) -> None:
    files = [FIXTURES / "repcount" / "train.csv", FIXTURES / "repcount" / "test.csv"]
    summary = run(repcount(files), REPCOUNT)
    assert_as_expected(tmp_path, "repcount")
    assert dict(summary.splits) == {"train": 3, "test": 6}
    assert dict(summary.flags) == {
        "count_zero": 1, "zero_length_cycles": 1, "count_differs_from_cycles": 1,
    }  # fmt: skip
    clips = clips_in(tmp_path)
    push_up = clips["repcount-test-stu8_42"]
    # L / 30: 42 is 1.4 s, 88 is 2.933333 s, ...
    assert push_up.cycles == (
        (0.0, 1.4), (1.4, 2.933333), (2.933333, 4.733333), (4.733333, 6.633333),
        (6.633333, 8.433333), (8.433333, 10.566667),
    )  # fmt: skip
    assert (push_up.start_s, push_up.end_s, push_up.count) == (0.0, 15.0, 6)
    # A file that is named "train..." in the test split, a rate of 30000/1001, an alias.
    aliased = clips["repcount-test-train2737"]
    assert aliased.cycles is not None
    assert aliased.cycles[0] == (0.166833, 4.738067)  # 5 and 142
    assert clips["repcount-test-train2737"].action == "push_up"
    assert {clip.action for clip in clips.values()} == {
        "front_raise", "pull_up", "push_up", "jump_jack", "squat", "bench_pressing",
    }  # fmt: skip
    # No repetition: no marks, and that is right.
    nothing = clips["repcount-test-train143"]
    assert (nothing.count, nothing.cycles, nothing.flags) == (0, (), ("count_zero",))
    # 51 repetitions, of which the last ten are marked 899,899: 41 marks are left and not believed.
    ten_lost = clips["repcount-test-stu4_5"]
    assert ten_lost.cycles is not None
    assert len(ten_lost.cycles) == 41
    assert ten_lost.flags == ("zero_length_cycles", "count_differs_from_cycles")
    assert usable_cycles(ten_lost.count, ten_lost.cycles)[0] is None


def test_repcount_with_the_rates_in_the_table(run: Callable[..., Summary], tmp_path: Path) -> None:
    path = tmp_path / "test_with_fps.csv"
    path.write_text(
        "type,name,count,L1,L2,fps\n"
        "squant,val1244.mp4,1,5.0,109.0,25.0\n"  # the video's own
        "squant,train143.mp4,1,6,30,15\n"  # half of the video's: the marks follow the table
    )
    run(repcount([path]), REPCOUNT)
    same, other = clips_in(tmp_path).values()
    assert (same.cycles, same.flags) == (((0.2, 4.36),), ())
    assert (other.cycles, other.video_fps) == (((0.4, 2.0),), 30.0)
    assert other.flags == ("fps_differs_from_video",)


def test_ucfrep_tables(run: Callable[..., Summary], tmp_path: Path) -> None:
    source = ucfrep([FIXTURES / "ucfrep" / "new_val.csv"], strip_prefix="/data/")
    run(source, UCFREP)
    assert_as_expected(tmp_path, "ucfrep")
    clips = clips_in(tmp_path)
    # Frames count from 1: frame 59 is at 58 / 25 s. The part ends with its last frame.
    violin = clips["ucfrep-validation-v_PlayingViolin_g17_c02"]
    assert (violin.start_s, violin.end_s) == (0.0, 4.92)
    assert violin.cycles == ((0.0, 2.32), (2.32, 3.64), (3.64, 4.88))
    # A part in the middle: frames 270 to 385, its cycles count from its start.
    horse = clips["ucfrep-validation-v_PommelHorse_g25_c04"]
    assert (horse.start_s, horse.end_s) == (10.76, 15.4)
    assert horse.cycles == ((0.0, 1.2), (1.2, 2.32), (2.32, 3.48), (3.48, 4.6))
    assert horse.action == "pommel_horse"
    # The class whose folder UCF-101 spells otherwise than its files.
    assert clips["ucfrep-validation-v_HandStandPushups_g21_c04"].video.endswith(
        "UCF-101/HandstandPushups/v_HandStandPushups_g21_c04.avi"
    )


def test_ucfrep_tables_with_paths_of_another_machine(
    run: Callable[..., Summary], tmp_path: Path
) -> None:
    summary = run(ucfrep([FIXTURES / "ucfrep" / "new_val.csv"]), UCFREP)
    assert dict(summary.rejected) == {"absolute_path": 1}
    (row,) = rejected_in(tmp_path)
    assert row["detail"] == (
        "'/data/UCF-101/FrontCrawl/v_FrontCrawl_g25_c01.avi' is absolute; "
        "--strip-prefix takes off its front"
    )


def test_ucfrep_mat_files_say_the_same_as_tables(
    run: Callable[..., Summary], tmp_path: Path
) -> None:
    bounds = {
        "val/v_PommelHorse_g25_c04": [270, 300, 328, 357, 385],
        "train/v_HulaHoop_g24_c03": [1, 19, 37, 55, 73, 91],
    }
    for name, marks in bounds.items():
        path = tmp_path / "annotations" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        label = {
            "duration": marks[-1] - marks[0] + 1,
            "start_frame": marks[0],
            "end_frame": marks[-1],
            "temporal_bound_num": len(marks),
            "temporal_bound": np.array(marks, np.int32)[:, None],
        }
        savemat(path, {"label": label})
    (tmp_path / "annotations" / "val" / "._v_PommelHorse_g25_c04.mat").write_bytes(b"\0\5\26\7")
    summary = run(ucfrep([tmp_path / "annotations"]), UCFREP)
    assert dict(summary.splits) == {"train": 1, "validation": 1}
    clips = clips_in(tmp_path)
    from_table = (FIXTURES / "ucfrep" / "expected.jsonl").read_text().splitlines()[1]
    from_mat = (tmp_path / "clips.jsonl").read_text().splitlines()[1]
    assert from_mat == from_table
    hoop = clips["ucfrep-train-v_HulaHoop_g24_c03"]
    assert (hoop.count, hoop.action) == (5, "hula_hoop")
    assert hoop.cycles == ((0.0, 0.72), (0.72, 1.44), (1.44, 2.16), (2.16, 2.88), (2.88, 3.6))


def test_countix_with_and_without_class(run: Callable[..., Summary], tmp_path: Path) -> None:
    folder = FIXTURES / "countix"
    run(countix([folder / "countix_train.csv", folder / "countix_test.csv"]), COUNTIX)
    assert_as_expected(tmp_path, "countix")
    clips = clips_in(tmp_path)
    # Seconds of the YouTube video less the start of the clip; two parts of one clip.
    second = clips["countix-train-AsJgDPLu_ro_000013_05639"]
    assert (second.start_s, second.end_s) == (5.638972, 9.876543)
    assert (second.count, second.cycles, second.cycles_source) == (11, None, None)
    assert {clip.action for clip in clips.values() if clip.split == "test"} == {"unknown"}
    # A clip of 9.92 s (248 frames) of which 10 s are annotated is cut to it; by 2 frames, flagged.
    cut = clips["countix-train-BFPKPjBgXIU_000022_00000"]
    assert (cut.end_s, cut.flags) == (9.92, ("clip_outside_video",))
    # One frame short is not worth a remark.
    short = clips["countix-test-1pcMlkxdxzs_000013_00000"]
    assert (short.end_s, short.flags) == (9.96, ())


def test_countix_with_whole_videos(
    tmp_path: Path, make_video: MakeVideo, run: Callable[..., Summary]
) -> None:
    path = tmp_path / "countix_test.csv"
    path.write_text(
        (FIXTURES / "countix" / "countix_test.csv").read_text().replace("13,23", "0,10")
    )
    run(
        countix([path], full_videos=True),
        {"0CnQ-_e5Sl8.mp4": (12, 400), "1pcMlkxdxzs.mp4": (12, 400)},
    )
    first = next(iter(clips_in(tmp_path).values()))
    assert (first.start_s, first.end_s) == (18.5, 20.233333)
    assert first.id == "countix-test-0CnQ-_e5Sl8_000017_01500"  # the same either way


@pytest.fixture
def quva_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "QUVARepetitionDataset" / "annotations"
    folder.mkdir(parents=True)
    for name, marks in QUVA_MARKS.items():
        np.save(folder / f"{name}.npy", np.array(marks))
    (folder / "._000_rope_beach.npy").write_bytes(b"\0\5\26\7")
    return folder.parent


def test_quva_counts_the_ends_of_cycles(
    run: Callable[..., Summary], tmp_path: Path, quva_folder: Path
) -> None:
    run(quva([quva_folder]), QUVA)
    assert_as_expected(tmp_path, "quva")
    rope, tennis, _ = clips_in(tmp_path).values()
    assert (rope.count, rope.action, rope.split) == (17, "rope_beach", "test")
    assert rope.cycles is not None
    assert rope.cycles[:2] == ((0.0, 0.448276), (0.448276, 0.896552))  # 13 and 26 of 29 a second
    assert tennis.cycles == ((0.0, 1.066667), (1.066667, 2.033333), (2.033333, 3.133333),
                             (3.133333, 4.266667))  # fmt: skip


def test_quva_can_count_from_the_first_mark(
    run: Callable[..., Summary], tmp_path: Path, quva_folder: Path
) -> None:
    run(quva([quva_folder / "annotations"], first_mark="start"), QUVA)
    rope, tennis, _ = clips_in(tmp_path).values()
    assert (rope.count, tennis.count) == (16, 3)
    assert tennis.cycles is not None
    assert tennis.cycles[0] == (1.066667, 2.033333)


def test_ovr(run: Callable[..., Summary], tmp_path: Path) -> None:
    summary = run(ovr([FIXTURES / "ovr" / "ovr.json"]), OVR)
    assert_as_expected(tmp_path, "ovr")
    assert dict(summary.rejected) == {"no_annotations": 1}
    first, second, third = clips_in(tmp_path).values()
    assert (first.action, first.count) == ("a man lifting a barbell", 4)
    assert (second.start_s, second.end_s, second.count) == (8.5, 9.5, 2)
    assert (third.split, third.count) == ("validation", 7)


@pytest.mark.parametrize("form", ["lines", "a file each", "one object"])
def test_ovr_in_its_other_forms(form: str, run: Callable[..., Summary], tmp_path: Path) -> None:
    videos = json.loads((FIXTURES / "ovr" / "ovr.json").read_text())
    folder = tmp_path / "annotations"
    folder.mkdir()
    if form == "lines":
        (folder / "all.jsonl").write_text("".join(json.dumps(video) + "\n" for video in videos))
    elif form == "a file each":
        for video in videos:
            (folder / f"{video['video_id']}.json").write_text(json.dumps(video, indent=1))
    else:
        (folder / "all.json").write_text("\n".join(json.dumps(video) for video in videos))
    summary = run(ovr([folder]), OVR)
    assert (summary.num_read, summary.num_written) == (4, 3)
    expected = (FIXTURES / "ovr" / "expected.jsonl").read_text().splitlines()
    assert sorted((tmp_path / "clips.jsonl").read_text().splitlines()) == sorted(expected)


def test_actrep(run: Callable[..., Summary], tmp_path: Path) -> None:
    files = [FIXTURES / "actrep" / "labels.csv", FIXTURES / "actrep" / "train.jsonl"]
    run(actrep(files), ACTREP)
    assert_as_expected(tmp_path, "actrep")
    older = clips_in(tmp_path)["actrep-train-stu5_11"]
    assert (older.action, older.count, older.cycles) == ("front_raise", 6, None)


def test_a_table_of_ones_own(run: Callable[..., Summary], tmp_path: Path) -> None:
    layout = TableFormat(columns=MINE_COLUMNS, delimiter=";")
    run(table([FIXTURES / "csv" / "mine.csv"], dataset="mine", layout=layout), MINE)
    assert_as_expected(tmp_path, "csv")
    first, second, third = clips_in(tmp_path).values()
    assert first.cycles == ((0.5, 1.5), (1.5, 3.0))  # of the video, less the clip's start of 1 s
    assert second.cycles == ((0.5, 1.5),)
    assert (third.action, third.cycles, third.flags) == ("unknown", None, ("no_cycles",))


def test_a_table_in_frames_that_count_from_one(run: Callable[..., Summary], tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("video,count,start,end,m1,m2,m3,m4\nwalks/a.mp4,2,26,125,26,51,51.0,126\n")
    layout = TableFormat(marks="m", unit="frames", first_frame=1)
    run(table([path], layout=layout), MINE)
    (clip,) = clips_in(tmp_path).values()
    assert (clip.start_s, clip.end_s) == (1.0, 5.0)  # frames 26 to 125 of 25 a second: 100 frames
    assert clip.cycles == ((0.0, 1.0), (1.0, 4.0))
    assert clip.id == "csv-train-walks/a-26"


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="column 'coutn': expected one of video, count"):
        TableFormat(columns={"coutn": "reps"})
    with pytest.raises(DataError, match="delimiter='', expected one character"):
        TableFormat(delimiter="")
    with pytest.raises(DataError, match="not both"):
        TableFormat(columns={"cycles": "c"}, marks="L")
    with pytest.raises(DataError, match="first_frame=1"):
        TableFormat(first_frame=1)
    with pytest.raises(DataError, match="two forms of one set"):
        ucfrep([Path("a.csv"), Path("b.mat")])


def test_a_split_must_be_known(tmp_path: Path) -> None:
    path = tmp_path / "validtest_with_fps.csv"
    path.write_text("type,name,count\nsquat,a.mp4,1\n")
    with pytest.raises(DataError, match=r"validtest_with_fps\.csv.*give --split"):
        repcount([path])
    assert repcount([path], split="test").size == path.stat().st_size
