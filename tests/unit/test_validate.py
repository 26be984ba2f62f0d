"""Validation by hand: every row is told apart, and videos that kill their decoder are rows too."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.cli.validate import view_of
from actrep_ray.config import load_recipe, override
from actrep_ray.models.tiny import write_tiny_model
from data_prep import validation
from data_prep.files import DataError
from data_prep.printable import printable
from data_prep.schema import Clip
from data_prep.validation.clip_checks import check_cycles, check_view
from data_prep.validation.decoder_processes import check_in_processes
from data_prep.validation.findings import KINDS, RowFindings
from data_prep.validation.report import Report, write_report
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.video_facts import VideoTask
from data_prep.validation.view import View, estimate_view
from data_prep.video.guard import end_processes
from data_prep.video_writer import encode_mp4
from rewards.reference import usable_cycles

pytestmark = pytest.mark.lengthy

FPS, NUM_FRAMES = 10, 40
VIEW = View(
    fps=4.0,
    min_frames=4,
    max_frames=256,
    min_pixels=1024,
    max_pixels=4096,
    factor=32,
    frames_per_patch=2,
    max_visual_tokens=100,
)
CLIP = Clip(
    id="a",
    dataset="test",
    split="train",
    video="a.mp4",
    start_s=0.0,
    end_s=4.0,
    video_fps=float(FPS),
    num_frames=NUM_FRAMES,
    width=64,
    height=64,
    action="squat",
    count=2,
    cycles=((0.5, 1.5), (1.5, 3.0)),
)
# What workers of the tests run: a real decoder, but for files that kill it or keep it busy.
BAD_DECODERS = """
import os, signal, threading
from pathlib import Path
from data_prep.validation.video_facts import check_video

def check(task):
    name = Path(task.path).stem
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit":
        os._exit(3)
    if name == "raise":
        raise MemoryError("no room for a frame")
    if name == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Event().wait()
    return check_video(task)
"""


def write_video(path: Path, *, seed: int = 0, num_frames: int = NUM_FRAMES) -> None:
    frames = np.random.default_rng(seed).integers(0, 255, (num_frames, 64, 64, 3), np.uint8)
    encode_mp4(path, frames, FPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos; `copy.mp4` holds the bytes of `a.mp4`."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a", "b")):
        write_video(folder / f"{name}.mp4", seed=seed)
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    return folder


@pytest.fixture(scope="module")
def bad_decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module that processes can import: its folder is on the path that they are given."""
    folder = tmp_path_factory.mktemp("decoders")
    (folder / "bad_decoders.py").write_text(BAD_DECODERS)
    sys.path.insert(0, str(folder))
    import bad_decoders

    yield bad_decoders
    sys.path.remove(str(folder))


def validate(path: Path, rows: list[Any], view: View = VIEW, **options: Any) -> Report:
    lines = [row.to_json() if isinstance(row, Clip) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    decoding = Decoding(1, 60.0, is_on=options.pop("decode", False))
    return validate_file(path, view, decoding, **options)


def kinds_of(report: Report) -> dict[int, set[str]]:
    """Names of findings by row, warnings in brackets."""
    found: dict[int, set[str]] = {}
    for finding in report.findings:
        name = finding.kind if finding.level == "error" else f"({finding.kind})"
        found.setdefault(finding.row, set()).add(name)
    return found


def check_rows_are_all_there(report: Report) -> None:
    parts = (report.num_ok, report.num_warnings, report.num_errors, report.num_other_rows)
    assert sum(parts) == report.num_rows
    assert min(parts) >= 0


# --- rows


def test_a_good_file_has_no_findings(folder: Path) -> None:
    rows = [CLIP, replace(CLIP, id="b", video="b.mp4", split="test")]
    report = validate(folder / "good.jsonl", rows, decode=True)
    assert report.findings == []
    assert (report.num_rows, report.num_ok) == (2, 2)
    assert (report.num_videos, report.num_videos_checked) == (2, 2)
    assert report.num_frames_decoded == 2 * 16  # 4 s at 4 fps
    assert list(report.cycle_lengths_s) == [1.0, 1.5, 1.0, 1.5]


CASES: tuple[tuple[dict[str, Any], set[str]], ...] = (
    ({"count": "2"}, {"schema"}),
    ({"cycles": [[1.0, 10**400]]}, {"schema"}),
    ({"flags": 5}, {"schema"}),
    ({"extra": 5}, {"schema"}),
    ({"num_frames": 0}, {"implausible_value"}),
    ({"end_s": 1e300}, {"implausible_value"}),
    ({"width": 10**300}, {"implausible_value"}),
    ({"end_s": 4.2}, {"clip_outside_video"}),
    ({"end_s": 4.1}, set()),  # one frame of slack
    ({"count": 3}, {"count_differs_from_cycles"}),
    ({"count": 3, "flags": ["count_differs_from_cycles"]}, {"(count_differs_from_cycles)"}),
    ({"cycles": [[1.0, 1.0], [1.5, 3.0]]}, {"zero_length_cycles"}),
    ({"cycles": [[1.0, 0.5], [1.5, 3.0]]}, {"reversed_cycles"}),
    ({"cycles": [[1.5, 3.0], [0.5, 1.4]]}, {"unsorted_cycles"}),
    ({"cycles": [[0.5, 1.6], [1.5, 3.0]]}, {"overlapping_cycles"}),
    ({"cycles": [[0.5, 1.5], [1.5, 4.2]]}, {"cycle_outside_clip"}),
    ({"cycles": [[-0.1, 1.5], [1.5, 3.0]]}, {"cycle_outside_clip"}),
    ({"cycles": None, "count": 0}, set()),
    ({"cycles": None, "count": 9}, {"(below_nyquist)"}),  # 4 s / 9 at 4 fps: 1.8 samples
    ({"cycles": None, "count": 8}, set()),  # 2 samples
    ({"cycles": [[0.0, 0.4], [0.4, 0.8]]}, {"(below_nyquist)"}),  # 1.6 samples
    ({"end_s": 0.3, "cycles": None, "count": 0}, {"(repeated_frames)"}),  # 3 frames shown as 4
    ({"video": "../elsewhere/a.mp4"}, {"path_outside_folder"}),
    ({"video": "no.mp4"}, {"missing_video"}),
    ({"video": "a\0.mp4"}, {"schema"}),
)


def test_what_is_wrong_with_a_row(folder: Path, tmp_path: Path) -> None:
    """Each row has a video of its own, with bytes of its own."""
    video, rows = (folder / "a.mp4").read_bytes(), []
    for i, (changes, _) in enumerate(CASES):
        (tmp_path / f"{i}.mp4").write_bytes(video + bytes([i]))
        rows.append(json.loads(CLIP.to_json()) | {"id": str(i), "video": f"{i}.mp4"} | changes)
    report = validate(tmp_path / "rows.jsonl", rows)
    found = kinds_of(report)
    for row, (changes, kinds) in enumerate(CASES, start=1):
        assert found.get(row, set()) == kinds, changes
    check_rows_are_all_there(report)


@pytest.mark.parametrize(
    ("fps", "value"),
    [
        (4.0, None),  # 4 / 4: every patch has the next position
        (5.0, "5, so 8 positions in time for 10 temporal patches"),  # 0 0 1 2 3 4 4 5 6 7
        (8.0, "8, so 8 positions in time for 16 temporal patches"),
    ],
)
def test_patches_that_share_a_position_are_told(fps: float, value: str | None) -> None:
    view = replace(VIEW, fps=fps, max_distinct_fps=4.0)
    estimate = estimate_view(CLIP, 1, view)
    findings = [f for f in check_view(CLIP, estimate, view, RowFindings(1, "a", "a.mp4"))
                if f.kind == "shared_positions"]  # fmt: skip
    assert [f.value for f in findings] == ([value] if value else [])
    assert all(f.expected == "at most 4 fps" for f in findings)


def test_a_bad_line_is_a_finding_and_not_the_end(folder: Path) -> None:
    path = folder / "lines.jsonl"
    good = CLIP.to_json().encode()
    lines = [
        b"\xef\xbb\xbf" + good + b"\r",
        b"",
        b"\xff\xfe",
        b'{"id": 1',
        b"[1, 2]",
        good[:-1] + b', "count": 3}',
        b"[" * 100_000,
        b'{"id": ' + b"9" * 5000 + b"}",
        b"   ",
        good.replace(b'"a"', b'"b"').replace(b"a.mp4", b"b.mp4"),
    ]
    path.write_bytes(b"\n".join(lines))
    report = validate_file(path, VIEW, Decoding(1, 60.0, is_on=False))
    assert kinds_of(report) == {
        3: {"not_utf8"},
        4: {"not_json"},
        5: {"schema"},
        6: {"not_json"},  # a key that is given twice
        7: {"not_json"},
        8: {"not_json"},
    }
    assert (report.num_rows, report.num_ok, report.num_errors, report.num_blank) == (8, 2, 6, 2)
    check_rows_are_all_there(report)


def test_findings_name_file_row_key_value_and_expectation(folder: Path, tmp_path: Path) -> None:
    path = folder / "named.jsonl"
    report = validate(path, [CLIP, replace(CLIP, id="b", video="b.mp4", count=5)])
    written = json.loads(write_report(report, tmp_path).read_text())
    (finding,) = written["findings"]
    assert finding == {
        "file": str(path),
        "kind": "count_differs_from_cycles",
        "level": "error",
        "row": 2,
        "clip_id": "b",
        "video": "b.mp4",
        "key": "count",
        "value": "5",
        "expected": "2, as many as cycles",
        "message": "count=5, expected 2, as many as cycles",
    }
    assert written["rows"] == {
        "read": 2,
        "ok": 1,
        "with_warnings": 0,
        "with_errors": 1,
        "of_other_splits": 0,
        "blank_lines": 0,
    }
    assert [k["kind"] for k in written["kinds"]] == ["count_differs_from_cycles"]
    estimates = [json.loads(x) for x in (tmp_path / "estimates.jsonl").read_text().splitlines()]
    assert [estimate["visual_tokens"] for estimate in estimates] == [32, 32]


CYCLES = st.lists(
    st.tuples(st.integers(-1, 12), st.integers(-1, 12)).map(lambda c: (c[0] / 2, c[1] / 2)),
    max_size=5,
)


@given(cycles=CYCLES, count=st.integers(0, 5))
def test_marks_that_training_leaves_out_are_errors(
    cycles: list[tuple[float, float]], count: int
) -> None:
    """And the other way round, but for marks after the clip's end, which training takes."""
    clip = replace(CLIP, cycles=tuple(cycles), count=count)
    findings = list(check_cycles(clip, RowFindings(1, "a", "a.mp4")))
    is_late = [f for f in findings if f.kind == "cycle_outside_clip" and "-" not in f.value]
    is_left_out = usable_cycles(clip.count, clip.cycles)[1] is not None
    assert bool(len(findings) > len(is_late)) == is_left_out


def test_every_kind_that_is_made_is_known_with_a_meaning() -> None:
    package = Path(validation.__file__).parent
    sources = [*package.glob("*.py"), *package.with_name("video").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    for kind, meaning in KINDS.items():
        assert text.count(f'"{kind}"') >= 2, kind  # in the table, and where it is made
        assert meaning


# --- rows and other rows


def test_duplicates_and_leaks_name_the_other_row(folder: Path) -> None:
    rows = [
        CLIP,
        replace(CLIP, video="b.mp4"),  # the id of row 1
        replace(CLIP, id="c", count=1, cycles=None),  # the window of row 1, another count
        replace(CLIP, id="d"),  # the same clip again
        replace(CLIP, id="e", start_s=1.0, end_s=3.9, cycles=None, video="./a.mp4"),
        replace(CLIP, id="f", split="test", start_s=2.0, cycles=None),
        replace(CLIP, id="g", split="test", video="copy.mp4"),
        replace(CLIP, id="h", split="train", video="copy.mp4", start_s=0.5, cycles=None),
    ]
    report = validate(folder / "leaks.jsonl", rows)
    leaks = {"leak_of_video", "leak_of_content"}
    assert kinds_of(report) == {
        1: leaks,
        2: {"duplicate_id"},
        3: leaks | {"conflicting_counts"},
        4: leaks | {"(duplicate_clip)"},
        5: leaks,
        6: leaks,
        7: leaks,
        8: leaks,
    }
    told = {(f.row, f.kind): f.value for f in report.findings}
    assert told[2, "duplicate_id"] == "'a' (row 1)"
    assert told[3, "conflicting_counts"] == "1 (2 in row 1)"
    assert told[6, "leak_of_video"] == "'a.mp4' (test; train in row 1)"
    assert told[1, "leak_of_content"] == "'a.mp4' (train; test in row 7: 'copy.mp4')"
    assert told[7, "leak_of_content"] == "'copy.mp4' (test; train in row 1: 'a.mp4')"


def test_two_actions_in_one_window_are_two_clips(folder: Path) -> None:
    rows = [
        CLIP,
        replace(CLIP, id="b", action="wave", count=1, cycles=None),
        replace(CLIP, id="c", action="wave", cycles=None),  # contradicts row 2, not row 1
    ]
    report = validate(folder / "actions.jsonl", rows)
    assert kinds_of(report) == {3: {"conflicting_counts"}}
    assert [f.value for f in report.findings] == ["2 (1 in row 2)"]


def test_copies_in_one_split_are_a_warning(folder: Path) -> None:
    report = validate(folder / "copies.jsonl", [CLIP, replace(CLIP, id="b", video="copy.mp4")])
    assert kinds_of(report) == {2: {"(duplicate_content)"}}
    assert (report.num_ok, report.num_warnings, report.num_errors) == (1, 1, 0)


def test_other_splits_are_looked_at_for_leaks_only(folder: Path) -> None:
    rows = [
        replace(CLIP, id="x", count=7),
        replace(CLIP, id="y", split="test", video="copy.mp4"),
        replace(CLIP, id="z", split="test", video="b.mp4"),
        {"id": "bad"},
    ]
    report = validate(folder / "split.jsonl", rows, split="test", decode=True)
    assert kinds_of(report) == {2: {"leak_of_content"}, 4: {"schema"}}
    assert (report.num_rows, report.num_other_rows, report.num_ok) == (4, 1, 1)
    assert (report.num_videos, report.num_videos_checked) == (3, 2)  # train is only hashed
    check_rows_are_all_there(report)
    with pytest.raises(DataError, match="holds no clip of validation"):
        validate(folder / "split.jsonl", rows[:3], split="validation")


# --- what a model sees


def test_estimates_by_hand() -> None:
    """10 s at 4 fps: 40 frames, 20 temporal patches; 640 x 360 within 224 x 224 pixels: 288 x 160,
    9 x 5 tokens. Cycles of 0.4 s: 1.6 frames, 0.8 patches."""
    clip = replace(
        CLIP, end_s=10.0, num_frames=100, width=640, height=360, cycles=((0.0, 0.3), (1.0, 1.5))
    )
    view = replace(VIEW, max_pixels=224 * 224)
    estimate = estimate_view(clip, 1, view)
    assert (estimate.num_frames, estimate.width, estimate.height) == (40, 288, 160)
    assert estimate.visual_tokens == 20 * 9 * 5
    assert estimate.cycle_s == pytest.approx(0.4)
    assert estimate.samples_per_cycle == pytest.approx(1.6)
    assert estimate.patches_per_cycle == pytest.approx(0.8)
    capped = estimate_view(clip, 1, replace(view, max_frames=15))
    assert (capped.num_frames, capped.fps, capped.visual_tokens) == (15, 1.5, 8 * 9 * 5)
    assert capped.samples_per_cycle == pytest.approx(0.6)


def test_the_context_is_a_limit(folder: Path) -> None:
    view = replace(VIEW, max_visual_tokens=31)  # the clip needs 8 patches of 4 tokens
    report = validate(folder / "room.jsonl", [CLIP], view)
    (finding,) = report.findings
    assert (finding.kind, finding.level) == ("too_many_tokens", "warning")
    assert finding.message == "visual tokens=32 (16 frames of 64x64), expected at most 31"


def test_nyquist_follows_the_rate_at_which_a_clip_is_really_shown(folder: Path) -> None:
    view = replace(VIEW, max_frames=4)  # 4 s in 4 frames: 1 fps, cycles of 1.25 s
    report = validate(folder / "rate.jsonl", [CLIP], view)
    (finding,) = report.findings
    assert finding.value == (
        "median cycle 1.25 s: 1.25 samples at 1 fps, 0.62 after merging 2 frames"
    )
    assert finding.expected == "2 samples, so 1.6 fps"
    assert report.nyquist() == {
        "clips_that_repeat": 1,
        "below_2_samples": 1,
        "below_2_temporal_patches": 1,
        "shown_below_wanted_fps": 1,
        "fps": 4.0,
        "patches_per_s": 2.0,
    }


def test_the_estimate_is_the_number_of_tokens_of_the_real_processor(
    folder: Path, tmp_path: Path
) -> None:
    from actrep_ray.models.qwen_vl import QwenVLInputs
    from data_prep.video import read_frames

    clip = replace(CLIP, end_s=3.8).with_root(folder)  # 15 frames: 8 patches
    for family in ("qwen3_vl", "qwen2_5_vl"):
        model = write_tiny_model(tmp_path / family, family=family)
        recipe = override(load_recipe(None), [f"model.path={model}"])
        view, note = view_of(recipe)
        assert str(model) in note
        inputs = QwenVLInputs(model)
        assert view.factor == inputs.factor
        plan = inputs.plan(clip, recipe.video)
        tokens = inputs.encode("How many?", plan, read_frames(plan)).input_ids
        number = int((tokens == inputs.video_pad_id).sum())
        assert estimate_view(clip, 1, view).visual_tokens == number


def test_without_a_checkpoint_the_patches_are_assumed_and_said_so() -> None:
    view, note = view_of(load_recipe(None))
    assert (view.factor, view.frames_per_patch) == (32, 2)
    assert view.max_visual_tokens == 8192 - 1024
    assert note == "patches of Qwen3-VL, as model.path is not set"


# --- decoders that die


def test_files_that_kill_their_decoder_are_rows_and_the_rest_goes_on(
    folder: Path, bad_decoders: Any
) -> None:
    names = ["crash", "a", "hang", "raise", "b", "exit", "copy"]
    for name in ("crash", "hang", "raise", "exit"):
        write_video(folder / f"{name}.mp4", seed=len(name) + ord(name[0]), num_frames=12)
    path = folder / "kill.jsonl"
    short: dict[str, Any] = {"end_s": 1.2, "num_frames": 12, "cycles": None, "count": 1}
    clips = [
        replace(CLIP, id=name, video=f"{name}.mp4", **(short if len(name) > 1 else {}))
        for name in names
    ]
    clips[-1] = replace(CLIP, id="copy", video="copy.mp4")
    path.write_text("".join(clip.to_json() + "\n" for clip in clips))
    end_processes()  # those that other tests have left warm
    began = time.monotonic()
    report = validate_file(path, VIEW, Decoding(2, 8.0, check=bad_decoders.check))
    assert time.monotonic() - began < 90
    assert kinds_of(report) == {
        1: {"decoder_crashed"},
        3: {"decoder_hung"},
        4: {"decoder_crashed"},
        6: {"decoder_crashed"},
        7: {"(duplicate_content)"},
    }
    values = {finding.row: finding.value for finding in report.findings}
    assert "killed by SIGSEGV" in values[1]
    assert "deadline of 8 s" in values[3]
    assert "ended with code 1: MemoryError: no room for a frame" in values[4]
    assert "ended with code 3" in values[6]
    assert report.num_videos_checked == 3
    check_rows_are_all_there(report)
    assert not children_of(os.getpid())


def test_a_process_that_cannot_start_is_no_finding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passing.py").write_text("def check(task): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    import passing

    (tmp_path / "passing.py").write_text("raise ImportError('gone by the time it is needed')")
    task = VideoTask(str(folder / "a.mp4"))
    with pytest.raises(RuntimeError, match="ended with code 1 at its start"):
        list(check_in_processes([task], num_workers=1, deadline_s=5.0, check=passing.check))


def children_of(pid: int) -> list[int]:
    """Decoding processes below a process."""
    children = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"data_prep.video.process" in command.read_bytes():
                children.append(int(child))
    return children


STOPPED = """
import signal
import sys
from bad_decoders import check
from data_prep.validation.view import View
from data_prep.validation.validate import Decoding, validate_file

if __name__ == "__main__":
    # Started in the background of a shell, a process ignores ctrl-C until it says otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    view = View(4.0, 4, 256, 1024, 4096, 32, 2, None)
    try:
        validate_file(sys.argv[1], view, Decoding(2, 600.0, check=check))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_it_is_stopped(
    folder: Path, tmp_path: Path, bad_decoders: Any, number: signal.Signals
) -> None:
    """Both workers hang when it is interrupted, or killed with no chance to tidy up."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    for name in ("hang", "other/hang"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / f"{name}.mp4", seed=len(name))
    path = tmp_path / "clips.jsonl"
    clips = [replace(CLIP, id=n, video=f"{n}.mp4") for n in ("hang", "other/hang")]
    path.write_text("".join(clip.to_json() + "\n" for clip in clips))
    root = Path(__file__).resolve().parents[2]
    paths = f"{root}:{Path(str(bad_decoders.__file__)).parent}"
    run = subprocess.Popen(
        [sys.executable, str(script), str(path)],
        env=os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    children: list[int] = []
    while len(children) < 2 or not all(map(is_waiting_forever, children)):
        assert run.poll() is None, run.stderr
        assert time.monotonic() < deadline, f"not at work after 60 s: {children}"
        children = children_of(run.pid)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert said == ""
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "decoding processes were left"


def is_waiting_forever(pid: int) -> bool:
    """Whether a worker has come to the file at which it hangs: it blocks SIGTERM there."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- the command


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["validate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_table_json_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = folder / "command.jsonl", tmp_path / "out"
    bad = replace(CLIP, id="b\x1b[2J[red]", video="b.mp4", count=5)
    path.write_text(CLIP.to_json() + "\n" + bad.to_json() + "\n")
    options = [str(path), "--out", str(out), "--workers", "1", "--deadline", "60"]
    code, shown, error = run(options, capsys)
    assert code == 2
    assert error.splitlines()[-1] == (
        f"actrep: error: {path}: 1 of 2 rows with errors, the first in row 2 (b\\x1b[2J[red]): "
        f"count=5, expected 2, as many as cycles; all are in {out / 'report.json'}"
    )
    assert "count_differs_from_cycles" in shown
    assert "2 rows = 1 ok + 0 with warnings + 1 with errors; 2 of 2 videos decoded" in shown
    assert "\x1b" not in shown
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "report.json").read_text())["rows"]["read"] == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "estimates.jsonl",
        "report.json",
        "report.png",
    ]


def test_warnings_fail_only_when_strict(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "warn.jsonl"
    path.write_text(replace(CLIP, cycles=None, count=9).to_json() + "\n")
    options = [str(path), "--out", str(tmp_path), "--no-decode"]
    code, shown, _ = run(options, capsys)
    assert code == 0
    assert "0 of 1 videos decoded" in shown
    assert run([*options, "--strict"], capsys)[0] == 2
    assert run([*options, "--strict", "--set", "video.fps=8"], capsys)[0] == 0


def test_a_file_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clips.jsonl"
    for content, message in ((None, "no such file"), (b"\n \n", "holds no clip")):
        if content is not None:
            path.write_bytes(content)
        code, shown, error = run([str(path), "--out", str(tmp_path / "out")], capsys)
        assert (code, shown) == (2, "")
        assert message in error
    assert not (tmp_path / "out").exists()
    path.write_bytes(b"nothing\n")
    code, shown, error = run([str(path), "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert "1 of 1 rows with errors" in error
    assert "no picture: no clip could be read" in shown


@given(st.text())
def test_what_is_printed_is_printable_in_utf_8(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode("utf-8")
