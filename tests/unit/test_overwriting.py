"""What took work to make is not written over, by any command, unless that is asked for."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.models.tiny import write_base_model, write_tiny_model
from actrep_ray.run.model_folder import resolve_model
from data_prep.schema import read_clips
from data_prep.synthetic.dataset import write_dataset

SMALL = ["--train", "2", "--validation", "0", "--test", "1", "--processes", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"train": 3, "test": 2}
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, level="easy", num_clips=sizes, seed=0, num_processes=1)


def commands(data: Path, folder: Path) -> dict[str, tuple[list[str], Path]]:
    """Each command with other arguments than those before it, and a file that it writes."""
    table = folder / "train.csv"
    clip = next(iter(read_clips(data)))
    table.write_text(f"video,count\n{Path(clip.video).name},7\n")
    out = str(folder / "out")
    convert = ["prepare", "csv", str(table), "--videos", str(Path(clip.video).parent)]
    evaluate = ["evaluate", "--method", "periodicity", "--data", str(data)]
    return {
        "synthetic": (["prepare", "synthetic", *SMALL, "--out", out], folder / "out/clips.jsonl"),
        "tiny-model": (["prepare", "tiny-model", "--out", out], folder / "out/model.safetensors"),
        "converters": ([*convert, "--out", out], folder / "out/clips.jsonl"),
        "rcs-export": (
            ["prepare", "rcs-export", str(data), "--num", "4", "--out", f"{out}.jsonl"],
            folder / "out.jsonl",
        ),
        "verl": (["prepare", "verl", str(data), "--out", f"{out}.parquet"], folder / "out.parquet"),
        "cot": (
            ["cot", str(data), "--split", "test", "--out", f"{out}.jsonl"],
            folder / "out.jsonl",
        ),
        "evaluate": ([*evaluate, "--out", out], folder / "out/predictions.jsonl"),
    }


NAMES = ("synthetic", "tiny-model", "converters", "rcs-export", "verl", "cot", "evaluate")


def leave(name: str, path: Path, data: Path) -> None:
    """What another call of the same command has left."""
    if name == "synthetic":
        write_dataset(path.parent, level="easy", num_clips={"train": 1}, seed=9, num_processes=1)
    elif name == "tiny-model":
        write_tiny_model(path.parent, seed=9)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("2,704 answers that were paid for\n")


@pytest.mark.lengthy
@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_is_kept_until_it_is_asked_to_go(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, path = commands(data, tmp_path)[name]
    leave(name, path, data)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("actrep: error: ")
    assert "; give --overwrite, or another " in line
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {file: content for file, content in after.items() if ".lock" not in file.name} == before
    assert main([*arguments, "--overwrite"]) == 0
    assert not path.is_file() or path.read_bytes() != before[path]


def test_a_data_set_of_the_same_settings_needs_no_leave(tmp_path: Path) -> None:
    arguments = ["prepare", "synthetic", *SMALL, "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(arguments) == 0


def test_an_evaluation_does_not_go_into_the_folder_of_a_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    arguments = ["evaluate", "--method", "periodicity", "--data", str(data), "--overwrite"]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert "is the folder of a training" in capsys.readouterr().err


def test_what_an_answer_cost_outlives_overwriting(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "cot.jsonl", tmp_path / "cot.jsonl.calls.jsonl"
    journal.write_text(json.dumps({"key": "paid"}) + "\n")
    assert main(["cot", str(data), "--out", str(out)]) == 0
    assert main(["cot", str(data), "--out", str(out), "--overwrite"]) == 0
    assert journal.read_text() == json.dumps({"key": "paid"}) + "\n"


WRITE = """
import sys
from pathlib import Path
from actrep_ray.models import tiny
print("ready", flush=True)
for number in range(1000):
    WRITER
"""
WRITERS: dict[str, tuple[str, Callable[..., Path]]] = {
    "random": (
        "tiny.write_tiny_model(sys.argv[1], seed=number, overwrite=True)", write_tiny_model
    ),
    "shipped": ("tiny.write_base_model(sys.argv[1], overwrite=True)", write_base_model),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_writer_of_a_small_model_leaves_a_whole_one_or_none(
    kind: str, tmp_path: Path
) -> None:
    code, write = WRITERS[kind]
    for number in range(3):
        folder = tmp_path / "model"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE.replace("WRITER", code), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2 + 0.37 * number)
        process.kill()
        process.communicate()
        if folder.exists():
            resolve_model(folder)
            assert (folder / "tokenizer.json").stat().st_size > 10_000
            assert (folder / "chat_template.jinja").is_file()
    write(tmp_path / "model", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
