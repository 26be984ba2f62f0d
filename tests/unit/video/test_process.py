"""Decoding processes: a job that hangs or crashes costs its own file and nothing else."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.video import FramePlan, VideoError, read_frames
from data_prep.video.guard import end_processes, probe_guarded, read_guarded
from data_prep.video.process import Answer, DecodingProcess, Failure
from tests.unit.video import jobs
from tests.unit.video.coded import Kind, write_coded

pytestmark = pytest.mark.lengthy

Start = Callable[[Callable[[Any], Any]], DecodingProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process for a job; it is ended with the test."""
    started: list[DecodingProcess] = []

    def start_for(job: Callable[[Any], Any]) -> DecodingProcess:
        process = DecodingProcess(job)
        started.append(process)
        process.wait_ready()
        return process

    yield start_for
    for process in started:
        if not process.is_gone:
            process.end()


def test_a_process_does_one_job_after_the_other(start: Start) -> None:
    process = start(jobs.double)
    for number in (1, 2):
        process.give(number, 60.0)
        assert process.wait() == Answer(2 * number, "")


def test_an_error_of_a_video_is_raised_here_and_the_process_stays(start: Start) -> None:
    process = start(jobs.refuse_odd)
    process.give(3, 60.0)
    with pytest.raises(VideoError, match="3: odd"):
        process.wait()
    process.give(4, 60.0)
    assert process.wait() == Answer(4, "")


def test_a_crash_is_told_with_the_last_words(start: Start) -> None:
    process = start(jobs.crash)
    process.give("broken picture", 60.0)
    assert process.wait() == Failure(
        "decoder_crashed", "the decoder's process was killed by SIGSEGV: broken picture"
    )
    assert process.is_gone


def test_a_hang_ends_at_its_deadline(start: Start, tmp_path: Path) -> None:
    process = start(jobs.hang)
    began = time.monotonic()
    process.give(str(tmp_path / "begun"), 1.5)
    assert process.wait() == Failure("decoder_hung", "not decoded within the deadline of 1.5 s")
    assert time.monotonic() - began < 30
    assert (tmp_path / "begun").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_memory_is_bounded(start: Start) -> None:
    process = start(jobs.fill_memory)
    process.give(2**44, 60.0)
    assert process.wait() == Failure(
        "decoder_crashed", "the decoder's process ended with code 1: MemoryError"
    )


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from data_prep.video.process import DecodingProcess\n"
        "from tests.unit.video import jobs\n"
        "process = DecodingProcess(jobs.hang)\n"
        "process.wait_ready()\n"
        "process.give(sys.argv[1], 600.0)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "begun")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid):
        assert time.monotonic() < until, "the decoding process outlived its parent"
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


# --- reading with a guard


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FramePlan:
    path = tmp_path_factory.mktemp("guarded") / "video.mp4"
    write_coded(path, Kind(size=(640, 480)), num_frames=200)
    return FramePlan(str(path), 1, tuple(i / 25 for i in range(200)), 25.0, 96, 128)


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    end_processes()


def test_guarded_frames_are_the_same(plan: FramePlan) -> None:
    np.testing.assert_array_equal(read_guarded(plan), read_frames(plan))


def test_a_file_that_takes_too_long_is_an_error_of_that_file(plan: FramePlan) -> None:
    with pytest.raises(VideoError, match=r"video\.mp4: not decoded within the deadline of 0\.01 s"):
        read_guarded(plan, deadline_s=0.01)
    assert read_guarded(plan).shape == (200, 96, 128, 3)


def test_a_bad_file_leaves_the_process_warm(plan: FramePlan, tmp_path: Path) -> None:
    read_guarded(plan)
    before = _children()
    missing = FramePlan(str(tmp_path / "no.mp4"), 1, (0.0,), 1.0, 32, 32)
    with pytest.raises(VideoError, match=r"no\.mp4: no such video"):
        read_guarded(missing)
    read_guarded(plan)
    assert _children() == before
    assert len(before) == 1


def test_an_idle_process_that_was_killed_is_replaced(plan: FramePlan) -> None:
    read_guarded(plan)
    (pid,) = _children()
    os.kill(pid, signal.SIGKILL)
    assert read_guarded(plan).shape == (200, 96, 128, 3)


def test_a_process_outlives_the_thread_that_first_needed_it(plan: FramePlan) -> None:
    thread = threading.Thread(target=read_guarded, args=(plan,))
    thread.start()
    thread.join()
    before = _children()
    read_guarded(plan)
    assert _children() == before
    assert len(before) == 1


def _children() -> set[int]:
    """Process ids of the decoding processes of this process."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid() and "data_prep.video.process" in command:
            found.add(int(folder.name))
    return found


def test_a_forked_process_reads_with_processes_of_its_own(plan: FramePlan) -> None:
    code = (
        "import os, sys\n"
        "from data_prep.video import FramePlan\n"
        "from data_prep.video.guard import read_guarded\n"
        "plan = FramePlan(sys.argv[1], 1, (0.0, 1.0), 1.0, 96, 128)\n"
        "read_guarded(plan)\n"
        "if pid := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "os._exit(0 if read_guarded(plan).shape == (2, 96, 128, 3) else 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, plan.video]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 0


def test_a_probe_has_a_deadline_and_is_remembered(plan: FramePlan, tmp_path: Path) -> None:
    found = probe_guarded(plan.video)
    assert (found.num_frames, found.width, found.height) == (200, 640, 480)
    assert probe_guarded(plan.video) is found
    other = shutil.copy(plan.video, tmp_path / "other.mp4")
    with pytest.raises(VideoError, match=r"other\.mp4: not decoded within the deadline"):
        probe_guarded(other, deadline_s=1e-6)


def test_a_module_in_the_current_folder_is_not_imported(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    process = start(jobs.double)
    process.give(4, 60.0)
    assert process.wait() == Answer(8, "")


def test_the_product_reads_with_a_deadline_everywhere() -> None:
    """Only processes that can be ended decode: nobody else asks for frames without a guard."""
    root = Path(__file__).resolve().parents[3]
    unguarded = set()
    for path in [*(root / "actrep_ray").rglob("*.py"), *(root / "data_prep").rglob("*.py")]:
        if path.parent == root / "data_prep" / "video":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "data_prep.video"
            ):
                names = {name.name for name in node.names} & {"read_frames", "Video", "probe"}
                unguarded |= {(str(path.relative_to(root)), name) for name in names}
    assert unguarded == {  # both run in a process
        ("data_prep/validation/video_facts.py", "Video"),
        ("actrep_ray/counting/overlay.py", "Video"),
    }
