"""Files: strict reading, whole writing, locks. Writers and holders are really killed here."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from data_prep.files import (
    AppendedLines,
    DataError,
    complete_folder,
    read_json,
    read_jsonl,
    read_lines,
    replacing,
    write_json,
    write_lines,
)
from data_prep.locks import BusyError, locked
from data_prep.strict_json import parse_json


def start_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code that finds its `arguments` as texts, in a process of its own."""
    head = "import os, signal, sys, time\nfrom pathlib import Path\n"
    head += "from data_prep import files, locks\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_process(code: str, *arguments: object) -> int:
    """Run code to its end in a process of its own; its exit code."""
    with start_process(code, *arguments) as process:
        return process.wait()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- reading


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\u2028b\x85c\x0bd\x0ce\x1cf\rg\r\n\n \t\nlast".encode())
    lines = list(read_lines(path, "text"))
    assert [line.content.decode() for line in lines] == [
        "a\u2028b\x85c\x0bd\x0ce\x1cf\rg",
        "",
        " \t",
        "last",
    ]
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [line.is_blank for line in lines] == [False, True, True, False]
    assert [line.is_ended for line in lines] == [True, True, True, False]
    assert lines[-1].end == path.stat().st_size


def test_a_table_of_an_old_spreadsheet_has_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\rb\r\nc\n\rd")
    lines = list(read_lines(path, "a table", ends_at_return=True))
    assert [line.content for line in lines] == [b"a", b"b", b"c", b"", b"d"]
    assert [line.end for line in lines] == [2, 5, 7, 8, 9]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.integers(-(2**63) + 1, 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False),
    ),
    st.booleans(),
)
def test_what_json_can_hold_is_read_back(values: dict[str, object], is_ascii: bool) -> None:
    assert parse_json(json.dumps(values, ensure_ascii=is_ascii)) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN, expected a finite number"),
        ('{"a": [-Infinity]}', "-Infinity, expected a finite number"),
        ('{"a": 1e400}', "1e400, expected a number within a float's range"),
        ('{"a": 9223372036854775808}', "9223372036854775808, expected an integer within 64 bits"),
        ('{"a": 1' + "0" * 400 + "}", r"1000.*\(401 characters\), expected an integer"),
        ('{"a": ' + "9" * 5000 + "}", r"9999.*\(5000 characters\), expected an integer"),
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' is given twice"),
        ('{"a": {"b": 2, "b": 1}}', "key 'b' is given twice"),
        ('{"a": "\\ud800"}', r"\\ud800 is half of a surrogate pair"),
        ('{"a\\uDFFF": 1}', r"\\udfff is half of a surrogate pair"),
        ('{"a": "\\udc00\\ud800"}', r"\\udc00 is half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1', "not JSON"),
        ('{"a": "\x0b"}', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_is_strict(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_whole_pairs_and_the_numbers_at_the_edge_are_read() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json("[9223372036854775807, -9223372036854775807]") == [2**63 - 1, 1 - 2**63]
    assert parse_json("[1e400, NaN]", allows_any_number=True)[0] == float("inf")
    assert parse_json('"\\ud83d"', allows_surrogates=True) == "\ud83d"


def test_an_error_of_a_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        (b'{\n "a": 1,\n}', r"a\.json:3: not JSON"),
        (b'{\n "a": "\xff"}', r"a\.json:2: byte 0xff at 8, expected text in UTF-8"),
        (b'{\n\n "a": "\\uD800"}', r"a\.json:3: \\ud800 is half"),
        (b'{"a": NaN}', r"a\.json:1: NaN, expected"),
        (b'{"a": 1,\n "a": 1}', r"a\.json:2: key 'a' is given twice"),
        ("{}".encode("utf-16"), r"a\.json: is UTF-16, expected UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_json(path, "settings")
    with pytest.raises(DataError, match="is a folder, expected settings"):
        read_json(tmp_path, "settings")
    with pytest.raises(DataError, match="no such file, expected settings"):
        read_json(path / "below", "settings")
    with pytest.raises(DataError, match="not the name of a file"):
        read_json("a\0b", "settings")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file"):  # and nobody waits for a writer
        read_json(tmp_path / "pipe", "settings")


def test_a_last_line_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON .*; the last line, cut short"):
        list(read_jsonl(path, "rows"))
    told: list[str] = []
    assert [row.values for row in read_jsonl(path, "rows", on_cut=told.append)] == [{"a": 1}]
    assert len(told) == 1
    assert "a.jsonl:2" in told[0]
    path.write_text('{"a": 1\n{"a": 2')  # a broken line before the last is no cut
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        list(read_jsonl(path, "rows", on_cut=told.append))
    path.write_text('{"a": 1}\r{"a": 2}\r')  # nor is a file without line feeds
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        list(read_jsonl(path, "rows", on_cut=told.append))
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        AppendedLines(path)
    path.write_bytes('{"a": 1}\n{"a": "ä'.encode()[:-1])  # in the middle of a character
    assert [row.values for row in read_jsonl(path, "rows", on_cut=told.append)] == [{"a": 1}]
    assert len(told) == 2


# --- writing


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"

    def lines(num: int) -> list[str]:
        return [f"line {i}" for i in range(num)]

    def failing() -> object:
        yield "half"
        raise RuntimeError("in mid-write")

    assert write_lines(path, lines(3)) == 3
    with pytest.raises(RuntimeError):
        write_lines(path, failing())  # type: ignore[arg-type]
    assert path.read_text() == "line 0\nline 1\nline 2\n"
    assert names(path.parent) == ["a.txt"]
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_folder_or_device_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, expected a file to write"):
        write_lines(tmp_path, ["a"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file, expected a file to write"):
        write_lines(tmp_path / "pipe", ["a"])


def test_a_name_of_the_longest_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".txt")  # 244 bytes
    write_lines(path, ["a"])
    assert names(tmp_path) == [path.name]


def test_threads_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    threads = [threading.Thread(target=write_lines, args=(path, [str(i)] * 1000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert len(lines) == 1000
    assert len(set(lines)) == 1
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "step"

    def fail() -> None:
        with complete_folder(folder) as partial:
            (partial / "half").touch()
            raise RuntimeError("in mid-write")

    with pytest.raises(RuntimeError):
        fail()
    assert names(folder.parent) == []
    with complete_folder(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "inner" / "a").read_text() == "1"
    with pytest.raises(DataError, match="exists already"), complete_folder(folder):
        pass
    with complete_folder(folder, replaces=True) as partial:
        (partial / "b").write_text("2")
    assert names(folder) == ["b"]
    assert names(folder.parent) == ["step"]


LIMITED = """
import resource
sys.dont_write_bytecode = True  # it would be cut, and be read by others
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path, text = Path(sys.argv[1]), "x" * 5000
"""
WRITE_TOO_MUCH = {
    "file": "files.write_lines(path, [text])",
    "folder": """
with files.complete_folder(path) as partial:
    (partial / "a").write_text(text)
""",
    "lines": """
with files.AppendedLines(path) as lines:
    lines.add(text)
""",
}


@pytest.mark.parametrize("kind", WRITE_TOO_MUCH)
def test_a_disk_without_room_is_told_with_the_path(kind: str, tmp_path: Path) -> None:
    code = (
        f"{LIMITED}try:\n"
        + "".join(f"    {line}\n" for line in WRITE_TOO_MUCH[kind].strip().splitlines())
        + "except files.DataError as error:\n    print(error)\n"
    )
    path = tmp_path / "it"
    with start_process(code, path) as process:
        told, _ = process.communicate()
    assert (process.returncode, told) == (0, f"{path}: File too large\n")
    assert names(tmp_path) == (["it"] if kind == "lines" else [])


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("write", "reason"),
    [
        ("safetensors.torch.save_file(tensors, partial / 'a')", "File too large"),
        (
            "torch.save(tensors, partial / 'a')",
            "cannot be written whole: is there room on its disk?",
        ),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_told_with_the_path(
    write: str, reason: str, tmp_path: Path
) -> None:
    code = f"""
import torch, safetensors.torch
{LIMITED}
tensors = {{"a": torch.zeros(2000)}}
try:
    with files.complete_folder(path) as partial:
        {write}
except files.DataError as error:
    print(error)
"""
    with start_process(code, tmp_path / "it") as process:
        told, _ = process.communicate()
    assert (process.returncode, told) == (0, f"{tmp_path / 'it'}: {reason}\n")
    assert names(tmp_path) == []


def test_a_full_disk_that_a_worker_met_is_told_with_the_path(tmp_path: Path) -> None:
    met = SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    error = RayTaskError("save_state", "traceback", met).as_instanceof_cause()
    with (
        pytest.raises(DataError, match=r"step: No space left on device: make room and run it"),
        complete_folder(tmp_path / "step"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="unexpected"), complete_folder(tmp_path / "step"):
        raise RuntimeError("unexpected")  # what is no such error stays what it is


def test_a_file_that_cannot_be_made_is_told_by_its_own_name() -> None:
    path = Path("/proc/x.txt")  # where nobody may make a file, root included
    with pytest.raises(OSError, match=r"'/proc/x\.txt'") as raised:
        write_lines(path, ["a"])
    assert raised.value.filename == str(path)
    with pytest.raises(OSError, match=r"'/proc/x'"), complete_folder("/proc/x"):
        pass


def test_an_error_about_something_else_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), replacing(tmp_path / "a"):
        raise ConnectionRefusedError(111, "Connection refused")
    with pytest.raises(FileNotFoundError, match="/nowhere"), replacing(tmp_path / "a"):
        Path("/nowhere").read_text()


WRITE_FILES = """
path, number = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    files.write_lines(path, [str(number)] * 2000)
"""

WRITE_FOLDERS = """
path, number = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    with files.complete_folder(path, replaces=True) as partial:
        for name in "abc":
            (partial / name).write_text(str(number) * 2000)
"""


@pytest.mark.lengthy
@pytest.mark.parametrize("code", [WRITE_FILES, WRITE_FOLDERS], ids=["file", "folder"])
def test_a_kill_at_any_time_leaves_nothing_half_written(code: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "it", random.Random(0)
    num_left = 0
    for _ in range(12):
        writer = start_process(code, path)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 + 0.1 * rng.random())
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if path.is_file():
            lines = path.read_text().splitlines()
            assert (len(lines), len(set(lines))) == (2000, 1)
        elif path.exists():
            contents = {(path / name).read_text() for name in "abc"}
            assert len(contents) == 1
            assert len(contents.pop()) % 2000 == 0
        num_left = max(num_left, len(names(tmp_path)) - path.exists())
        assert num_left <= 2  # of the last one killed, and no other
    assert num_left > 0  # one was killed in mid-write
    assert run_process(code.replace("while True:", "for _ in range(1):"), path) == 0
    assert names(tmp_path) == ["it"]


DIE_IN_MID_WRITE = """
with files.replacing(sys.argv[1]) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_the_living_write_is_left_alone(tmp_path: Path) -> None:
    assert run_process(DIE_IN_MID_WRITE, tmp_path / "a") == -signal.SIGKILL
    (left,) = names(tmp_path)
    (tmp_path / left.replace(f".{os.uname().nodename}.", ".elsewhere.")).touch()
    with replacing(tmp_path / "b") as partial:
        partial.touch()
        code = "files.write_lines(sys.argv[1], ['c'])"
        assert run_process(code, tmp_path / "c") == 0
        assert partial.exists()
        assert left not in names(tmp_path)
    others = [name for name in names(tmp_path) if name not in ("b", "c")]
    assert others == [left.replace(f".{os.uname().nodename}.", ".elsewhere.")]


ADD_LINES = """
log = files.AppendedLines(sys.argv[1], is_durable=True)
print("ready", flush=True)
while True:
    log.add('{"key": "' + "x" * 5000 + '"}')
"""


@pytest.mark.lengthy
def test_a_file_grows_by_whole_lines_whoever_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for _ in range(6):
        writer = start_process(ADD_LINES, path)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        with path.open("ab") as file:
            file.write(b'{"key": "torn')
    with AppendedLines(path):
        pass
    rows = list(read_jsonl(path, "rows"))
    assert len(rows) >= 6
    assert {len(row.values["key"]) for row in rows} == {5000}


def test_a_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')  # as an editor leaves it
    with AppendedLines(path) as lines:
        lines.add('{"a": 3}')
    assert [row.values["a"] for row in read_jsonl(path, "rows")] == [1, 2, 3]


# --- locks

HOLD = """
with locks.locked(sys.argv[1], timeout_s=10.0, waits_for="nobody"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_wait_ends_and_says_what_for(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    holder = start_process(HOLD, path, 600)
    assert holder.stdout is not None
    holder.stdout.readline()
    began = time.monotonic()
    with (
        pytest.raises(BusyError, match=r"a\.lock: waited 0\.2 s for the writer of a"),
        locked(path, timeout_s=0.2, waits_for="the writer of a"),
    ):
        pass
    assert 0.2 <= time.monotonic() - began < 5
    holder.kill()
    holder.communicate()
    with locked(path, timeout_s=10.0, waits_for="a dead process"):  # freed by the kernel
        pass
    assert names(path.parent) == []


def test_a_thread_waits_like_a_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    refused: list[str] = []

    def other() -> None:
        try:
            with locked(path, timeout_s=0.0, waits_for="the other"):
                pass
        except BusyError as error:
            refused.append(str(error))

    with locked(path, timeout_s=0.0, waits_for="nobody"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        other()  # nor does the same thread hold it twice
    assert len(refused) == 2
    other()
    assert len(refused) == 2


COUNT = """
path = Path(sys.argv[1])
for _ in range(50):
    with locks.locked(path.with_name("a.lock"), timeout_s=60.0, waits_for="others"):
        number = int(path.read_text())
        path.write_text(str(number + 1))
"""


def test_a_lock_holds_though_its_file_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    workers = [start_process(COUNT, path) for _ in range(4)]
    for worker in workers:
        worker.communicate(timeout=120)
        assert worker.returncode == 0
    assert path.read_text() == "200"
    assert names(tmp_path) == ["number"]
