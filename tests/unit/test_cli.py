"""The command line: help that teaches, and one line with exit code 2 for a user's mistake."""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from actrep_ray.cli.boundary import words_of_mistake
from actrep_ray.cli.commands import UsageError, picture_file
from actrep_ray.cli.main import build_parser, main
from actrep_ray.cli.training import is_resumed
from actrep_ray.config import ConfigError, load_recipe
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.program import program
from data_prep.files import DataError
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.synthetic.dataset import write_dataset

ALIKE = "actrep_ray.cli.prepare.converters"  # the public sets, which differ in a line each


def leaves(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser, as `prepare synthetic`."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, below in group.choices.items():
            yield from leaves(below, f"{name} {word}".strip())


COMMANDS = dict(leaves(build_parser()))


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


def test_every_command_has_a_file_of_its_own() -> None:
    files = Counter(parser.get_default("run").__module__ for parser in COMMANDS.values())
    assert len(COMMANDS) >= 21
    assert [name for name, number in files.items() if number > 1 and name != ALIKE] == []
    assert all(name.startswith("actrep_ray.cli.") for name in files)
    assert "actrep_ray.cli.main" not in files


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    assert f"example:\n  {program('actrep')} {command}" in capsys.readouterr().out


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
        "  --set 'seed=-1'",
        "  video.fps='fast'",
        "  unknown key 'train.group_sise'; did you mean 'group_size'?",
    ]


@pytest.mark.parametrize("kind", [UsageError, ConfigError, DataError])
def test_a_mistake_is_told_by_its_type(kind: type[ValueError]) -> None:
    assert words_of_mistake(kind("two\n  words"), argparse.Namespace()) in (
        "two words",
        "two\n  words",  # all mistakes of a recipe
    )


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a reader that does not say which file"),
        KeyError("a defect"),
        RuntimeError("a worker died"),
        OSError("no file of the user's"),
        FileNotFoundError(2, "No such file or directory", "/usr/share/nothing"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
    ids=repr,
)
def test_a_defect_is_no_mistake(error: Exception) -> None:
    args = argparse.Namespace(out=Path("/home/somebody/out"), num=3, paths=())
    assert words_of_mistake(error, args) is None


@pytest.mark.parametrize("name", ["/data/out", "/data/out/clips.jsonl", "/data", b"/data/out"])
def test_a_path_that_was_given_is_told(name: str | bytes) -> None:
    error = PermissionError(13, "Permission denied", name)
    text = name if isinstance(name, str) else name.decode()
    for args in (
        argparse.Namespace(out=Path("/data/out")),
        argparse.Namespace(annotations=[Path("/x"), Path("/data/out")]),
        argparse.Namespace(paths=(Path("/data/out"),)),
    ):
        assert words_of_mistake(error, args) == f"{text}: Permission denied"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("actrep_ray.evaluation.report.report_run", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(["report", "runs/nothing"])


@pytest.mark.lengthy
def test_what_cannot_be_read_or_written_is_one_line(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    inside = str(file / "inside")
    small = ["--train", "1", "--validation", "0", "--test", "0", "--processes", "1"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"stage: grpo\nruns_dir: {inside}\nmodel: {{path: {model}}}\ndata: {{path: {data}}}\n"
    )
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * f"{data.read_text().splitlines()[0]}\n")
    sets = ["repcount", "TABLE.csv", "--videos", str(tmp_path)]
    for arguments, message in (
        (["prepare", "synthetic", *small, "--out", inside], "file"),
        (["prepare", "tiny-model", "--out", inside], "file"),
        (["prepare", *sets, "--out", f"{tmp_path}/new"], "TABLE.csv"),
        (["prepare", *sets, "--out", inside], "file"),
        (["prepare", "rcs-report", str(data), "--out", f"{inside}.png"], "file"),
        (["prepare", "rcs-report", str(twice)], "twice"),
        (["prepare", "rcs-export", str(data), "--num", "2", "--out", f"{inside}/a"], "file"),
        (["validate", str(data), "--no-decode", "--out", inside], "file"),
        (["cot", str(data), "--out", f"{inside}/cot.jsonl"], "file"),
        (["train", str(recipe)], "file"),
        (["train", str(tmp_path)], f"{tmp_path}: "),
        (["report", str(tmp_path)], "no config.resolved.json"),
        (["report", inside], "no config.resolved.json"),
        (["prepare", "synthetic", *small, "--seed", "-1"], "seed=-1"),
        (["prepare", "tiny-model", "--family", "qwen2_vl", "--out", f"{tmp_path}/new"], "qwen2_vl"),
        (["check", "--reward", "nowhere:reward"], "cannot import 'nowhere'"),
        (["quickstart", "--set", f"runs_dir={inside}"], "file"),
    ):
        assert main(arguments) == 2, arguments
        *_, line = capsys.readouterr().err.splitlines()  # after the progress of `validate`
        assert line.startswith("actrep: error: "), arguments
        assert message in line, arguments


def test_a_picture_needs_a_known_ending() -> None:
    assert picture_file("a/b.PNG") == Path("a/b.PNG")
    with pytest.raises(argparse.ArgumentTypeError, match=r"a\.xyz: expected a name in \.png"):
        picture_file("a.xyz")


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
        f"stage: grpo\nruns_dir: {tmp_path}\nmodel: {{path: {model}}}\n"
        f"data: {{path: {bad}, allow_outside: [{data.parent}]}}\n"
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
    assert "holds a run (checkpoint step-000050); go on with --resume" in message


def test_a_job_that_is_started_again_begins_or_goes_on(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"stage: sft\nruns_dir: {tmp_path}\nmodel: {{path: {model}}}\ndata: {{path: {data}}}\n"
    )
    recipe = load_recipe(path)
    told = error_of(["sft", str(path), "--resume"], capsys)
    assert "run: holds no run to go on with" in told
    assert not recipe.run_dir.exists()
    assert "goes with --resume" in error_of(["sft", str(path), "--allow-changes", "seed"], capsys)
    args = build_parser().parse_args(["sft", str(path), "--begin-or-resume"])
    assert not is_resumed(args, recipe)
    recipe.run_dir.mkdir()
    (recipe.run_dir / "config.resolved.json").write_text("{}")
    assert is_resumed(args, recipe)
    for how in (["--overwrite", "--resume"], ["--begin-or-resume", "--resume"]):
        with pytest.raises(SystemExit):
            main(["sft", str(path), *how])


def test_count_refuses_what_is_no_video(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "text.mp4"
    video.write_text("no video")
    message = error_of(["count", str(video), "--checkpoint", str(model)], capsys)
    assert "text.mp4: cannot be opened as a video" in message
    message = error_of(["count", str(video), "--checkpoint", str(tmp_path)], capsys)
    assert "not a model checkpoint" in message


@pytest.mark.lengthy
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


def on_a_disk_of(kib: int, folder: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run `actrep` where `folder` is a file system of its own with so little room."""
    mount = f"mount -t tmpfs -o size={kib}k none {folder}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this user may not mount a file system")
    command = ["sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-m", "actrep_ray", *line]
    return subprocess.run(
        ["unshare", "--mount", *command], capture_output=True, text=True, check=False
    )


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "line",
    [
        ["prepare", "tiny-model", "--out"],
        ["prepare", "tiny-model", "--random", "--out"],
        ["prepare", "synthetic", "--level", "easy", "--train", "40", "--out"],
    ],
    ids=["shipped", "weights", "videos"],
)
def test_a_full_disk_is_one_line(line: list[str], tmp_path: Path) -> None:
    run = on_a_disk_of(64, tmp_path, *line, str(tmp_path / "out"))
    assert run.returncode == 2, run.stderr
    (told,) = run.stderr.splitlines()
    assert told.startswith(f"actrep: error: {tmp_path / 'out'}")
    assert told.endswith(": No space left on device: make room and run it again")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device: make room"),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "cannot be written whole",
        ),
    ],
)
def test_a_disk_without_room_is_no_defect_whoever_met_it(error: Exception, reason: str) -> None:
    words = words_of_mistake(error, argparse.Namespace())
    assert words is not None
    assert words.startswith(f"a file: {reason}")
    met = RayTaskError("save_model", "traceback", error).as_instanceof_cause()
    assert words_of_mistake(met, argparse.Namespace()) == words
    assert words_of_mistake(RuntimeError("os error 28 in the middle"), argparse.Namespace()) is None
