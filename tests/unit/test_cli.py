"""The command line: help that teaches, and one line with exit code 2 for a user's mistake."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.models.tiny import write_tiny_model
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.synthetic.dataset import write_dataset

COMMANDS = (
    "prepare synthetic", "prepare tiny-model", "prepare rcs-report", "prepare rcs-export",
    "validate", "cot", "sft", "train", "evaluate",
    "count", "check", "report", "doctor", "quickstart",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"train": 3, "validation": 1, "test": 1}
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, level="easy", num_clips=sizes, seed=0, num_processes=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong input is answered with."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("actrep: error: ")
    assert err.count("\n") == 1
    return err


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from actrep_ray.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'verl', 'cv2', 'numpy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stderr.strip() == "[]"
    assert "quickstart" in run.stdout
    assert time.perf_counter() - began < 10  # under a second on an idle machine


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    assert f"example:\n  actrep {command}" in capsys.readouterr().out


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["count", "--nothing"])
    assert exit_.value.code == 2


def test_a_wrong_recipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: grpo\ntrain: {group_sise: 8}\n")
    assert "did you mean 'group_size'" in error_of(["train", str(path)], capsys)
    path.write_text("stage: grpo\n")
    assert "group_size=1" in error_of(["train", str(path), "--set", "train.group_size=1"], capsys)
    assert "use `actrep train`" in error_of(["sft", str(path)], capsys)
    assert "data.path is not set" in error_of(["train", str(path)], capsys)
    assert "no such recipe" in error_of(["train", str(tmp_path / "absent.yaml")], capsys)


def test_all_mistakes_of_a_recipe_are_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: grpo\ntrain: {group_sise: 8}\nvideo: {fps: fast}\n")
    assert main(["train", str(path), "--set", "seed=-1"]) == 2
    header, *mistakes = capsys.readouterr().err.splitlines()
    assert header == f"actrep: error: {path}: 3 settings cannot be used:"
    assert [line.partition(":")[0] for line in mistakes] == [
        "  seed=-1",
        "  video.fps='fast'",
        "  unknown key 'train.group_sise'; did you mean 'group_size'?",
    ]


@pytest.mark.parametrize("command", ["sft", "train"])
def test_a_wrong_model_is_one_line(
    command: str, data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    stage = {"sft": "sft", "train": "grpo"}[command]
    folder = tmp_path / "model"
    recipe.write_text(
        f"stage: {stage}\nruns_dir: {tmp_path}\nmodel: {{path: {folder}}}\ndata: {{path: {data}}}\n"
    )
    run = [command, str(recipe)]
    assert "no such checkpoint" in error_of(run, capsys)
    folder.mkdir()
    assert "no config.json" in error_of(run, capsys)
    (folder / "config.json").write_text("{}")
    assert "no *.safetensors" in error_of(run, capsys)
    weights = (model / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    assert "cut short?" in error_of(run, capsys)
    (folder / "model.safetensors").write_bytes(weights)
    assert "model_type=None" in error_of(run, capsys)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type='llama', expected one of" in error_of(run, capsys)


@pytest.mark.parametrize("problem", ["missing", "empty", "truncated"])
def test_a_wrong_video_is_one_line(
    problem: str, data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = list(read_clips(data))
    video = tmp_path / f"{problem}.mp4"
    whole = Path(clips[0].video).read_bytes()
    if problem != "missing":
        video.write_bytes(whole[: len(whole) // 2] if problem == "truncated" else b"")
    bad = tmp_path / "clips.jsonl"
    write_clips(bad, [replace(clips[0], video=str(video)), *clips[1:]])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"stage: grpo\nruns_dir: {tmp_path}\nmodel: {{path: {model}}}\ndata: {{path: {bad}}}\n"
    )
    assert f"{problem}.mp4" in error_of(["train", str(recipe)], capsys)
    assert not (tmp_path / "run").exists()


def test_a_bad_row_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text('{"id": "a"}\n')
    arguments = ["cot", str(path), "--out", str(tmp_path / "cot.jsonl")]
    assert "clips.jsonl:1: key 'action' is missing" in error_of(arguments, capsys)


def test_a_run_is_not_overwritten(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoints" / "step-000050").mkdir(parents=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"stage: grpo\nruns_dir: {tmp_path}\nmodel: {{path: {model}}}\ndata: {{path: {data}}}\n"
    )
    message = error_of(["train", str(recipe)], capsys)
    assert "holds a run with a checkpoint of step 50; go on with --resume" in message


def test_count_refuses_what_is_no_video(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "text.mp4"
    video.write_text("no video")
    message = error_of(["count", str(video), "--checkpoint", str(model)], capsys)
    assert "text.mp4: cannot be opened as a video" in message
    message = error_of(["count", str(video), "--checkpoint", str(tmp_path)], capsys)
    assert "not a model checkpoint" in message


def test_prepare_validate_and_cot_write_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--train", "2", "--validation", "0", "--test", "1", "--processes", "1"]
    assert main(["prepare", "synthetic", *sizes, "--out", str(tmp_path)]) == 0
    path = tmp_path / "clips.jsonl"
    clips: list[Clip] = list(read_clips(path))
    assert [clip.split for clip in clips] == ["train", "train", "test"]
    assert main(["validate", str(path), "--out", str(tmp_path / "report")]) == 0
    answers = tmp_path / "cot.jsonl"
    assert main(["cot", str(path), "--split", "train", "--out", str(answers)]) == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["id"] for row in rows] == [clip.id for clip in clips[:2]]
    assert f"<answer>{clips[0].count}</answer>" in rows[0]["text"]
    assert "3 clips (2 train, 1 test)" in capsys.readouterr().out


def test_check_marks_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("learner: {lr: 2e-5}\n")
    assert main(["check", str(path), "--reward", "cycles", "--set", "seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (changed,) = [line for line in lines if "learner.lr " in line]
    assert changed.startswith("* ")
    assert "2e-05" in changed
    assert "default 1e-06" in changed
    assert sum(line.startswith("* ") for line in lines) == 2
    assert "reward cycles: keeps its contract" in lines[-1]
    assert "did you mean 'cycles'" in error_of(["check", "--reward", "cycle"], capsys)
    assert "give a recipe" in error_of(["check"], capsys)
