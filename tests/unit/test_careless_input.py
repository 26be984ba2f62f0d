"""Careless input: one line that says what is wrong, exit code 2, no traceback and no worker.

A table of what people get wrong, and inputs that hypothesis makes up.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from actrep_ray.cli.main import main
from actrep_ray.models.tiny import write_tiny_model

ROW: dict[str, Any] = {
    "id": "a", "dataset": "mine", "split": "train", "video": "a.mp4", "start_s": 0.0,
    "end_s": 6.0, "video_fps": 30.0, "num_frames": 180, "width": 64, "height": 64,
    "action": "squat", "count": 2, "cycles": [[0.5, 2.1], [2.1, 4.0]],
}  # fmt: skip
TABLE = "video,count\na.mp4,2\n"
MANY = "1" + "0" * 30


def row(**changes: Any) -> str:
    return json.dumps({**ROW, **changes}) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; whatever starts a cluster in it fails the test."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    return tmp_path


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was told; argparse ends a program where it meets a wrong flag."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


def check(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = answer(arguments, capsys)
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert expected in err, err
    assert last.startswith("actrep"), err
    assert "Traceback" not in err


# --- recipes

RECIPES: list[tuple[str | bytes, str]] = [
    ("name: a".encode("utf-16"), "is UTF-16, expected UTF-8"),
    ("name: caf\xe9".encode("latin-1"), "r.yaml:1: byte 0xe9 at 10, expected text in UTF-8"),
    (b"name: a\x00b", "r.yaml:1: not YAML (holds U+0000)"),
    ('runs_dir: "a\\0b"', r"r.yaml:1: 'a\x00b' holds a NUL"),
    ("[ " * 5000, "nested too deeply"),
    ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
    ("seed: 1\nname: a\nname: b", "r.yaml:3: key 'name' is given twice"),
    ("seed: 1\nlearner:\n\tlr: 1", "r.yaml:3: not YAML"),
    ("- a", "r.yaml: expected a mapping of settings, got list"),
    ("a: 1\n---\nb: 2", "r.yaml:2: not YAML"),
    ("name: !!python/object:os.system x", "r.yaml:1: not YAML"),
    ("seed: 2020-13-45", "r.yaml:1: not YAML"),
    ("learner: 5", "learner=5:"),
    ("1: 2", "unknown key '1'"),
    ("learner: {lr: .inf}", "r.yaml:1: .inf, expected a finite number"),
    ("learner: {lr: 'inf'}", "learner.lr=inf:"),
    ("learner: {lr: 1.0e+400}", "expected a finite number"),
    ("learner: {lr: 1e400}", "learner.lr=inf:"),
    ("learner: {lr: 'nan'}", "learner.lr=nan:"),
    ("learner: {lr: 1e20}", "learner.lr='1e20': Input should be less than or equal to 1"),
    (f"train: {{num_steps: {MANY}}}", "r.yaml:1: 10000000000000000000... (31 characters)"),
    ("train: {num_steps: 1000000000000000000}", "train.num_steps=1000000000000000000:"),
    ("train: {num_steps: true}", "train.num_steps=True: expected a number, got a boolean"),
    ("train: {group_size: 100000}", "train.group_size=100000:"),
    ("rollout: {num_workers: 1000000}", "rollout.num_workers=1000000:"),
    ("rollout: {temperature: 1e6}", "rollout.temperature='1e6':"),
    ("run: {stop_s: 1e20}", "run.stop_s='1e20':"),
    ("video: {fps: 1e20}", "video.fps='1e20':"),
    ("video: {decode_timeout_s: 1e20}", "video.decode_timeout_s='1e20':"),
    ("seed: 9223372036854775807", "seed=9223372036854775807:"),
    ("reward: {weights: {exact: 1e300}}", "reward.weights.exact: weight=1e+300"),
    ("reward: {weights: {nope: 1}}", "reward 'nope' is not known"),
    ("reward: {weights: {'os:system': 1}}", "reward 'os:system' cannot be called"),
]


@pytest.mark.parametrize(("content", "expected"), RECIPES)
def test_a_recipe(
    content: str | bytes, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "r.yaml").write_bytes(data)
    check(["check", "r.yaml"], expected, capsys)


OVERRIDES = [
    ("learner.lr", "expected key=value"),
    ("=1", "expected key=value"),
    ("learner.lr=abc", "learner.lr='abc':"),
    ("learner.lr=inf", "learner.lr=inf:"),
    ("learner.lr=", "learner.lr=None:"),
    ("learner..lr=1", "unknown key"),
    ("nam=x", "unknown key 'nam'; did you mean 'name'?"),
    ("name=a/b", "name='a/b':"),
    ("train.num_steps=" + MANY, "expected an integer within 64 bits"),
    ("learner.lr=\t1", "not YAML"),
    ("learner.lr=" + "[" * 3000, "nested too deeply"),
    ("train={num_steps: 1, num_steps: 2}", "is given twice"),
    ("learner.num_workers=3", "is not a multiple of learner.num_workers=3"),
]


@pytest.mark.parametrize(("text", "expected"), OVERRIDES)
def test_an_override_is_blamed_and_not_the_file(
    text: str, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "r.yaml").write_text("name: a\n")
    code, err = answer(["check", "r.yaml", "--set", text], capsys)
    assert code == 2, err
    assert "--set " in err, err
    assert expected in err, err
    assert len(err.splitlines()) == 1, err


# --- files of clips, tables

CLIPS: list[tuple[str | bytes, str]] = [
    (row().encode("utf-16"), "clips.jsonl: is UTF-16"),
    (row(action="caf").replace("caf", "caf\xe9").encode("latin-1"), "clips.jsonl:1: byte 0xe9"),
    ('{"a":' * 100_000, "clips.jsonl:1: not JSON that can be read (nested too deeply)"),
    ("[1]\n", "clips.jsonl:1: expected a JSON object, got list"),
    (row(count=10**30), "clips.jsonl:1: 10000000000000000000... (31 characters)"),
    (row(count=10**9, cycles=None), "clips.jsonl:1: count=1000000000, expected 0 to 1e+06"),
    (row(count="2"), "clips.jsonl:1: count='2'"),
    (row(count=True), "clips.jsonl:1: count=True"),
    (row(start_s=float("nan")), "clips.jsonl:1: NaN, expected a finite number"),
    (row(end_s=1e20), "clips.jsonl:1: end_s=1e+20"),
    (row(cycles=[[1e300, 2e300]]), "clips.jsonl:1: cycles[0]=1e+300"),
    (row(cycles=[[1]]), "clips.jsonl:1: cycles[0]=[1]"),
    (row(video_fps=1e-300), "clips.jsonl:1: video_fps=1e-300"),
    (row(width=10**12), "clips.jsonl:1: width=1000000000000"),
    (row(video="a\0b"), "clips.jsonl:1: video='a\\x00b'"),
    (row(video="/etc/passwd"), "clips.jsonl:1: video='/etc/passwd'"),
    (row() + row(), "clips.jsonl:2: id='a' was used in line 1 already"),
    (row(coutn=3), "clips.jsonl:1: unknown key 'coutn'"),
    ("", "clips.jsonl"),
]


@pytest.mark.parametrize(("content", "expected"), CLIPS)
def test_a_file_of_clips(
    content: str | bytes, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "clips.jsonl").write_bytes(data)
    check(["prepare", "rcs-export", "clips.jsonl", "--num", "3", "--out", "o"], expected, capsys)
    (folder / "r.yaml").write_text("data: {path: clips.jsonl}\n")
    check(["train", "r.yaml"], expected, capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TABLE.encode("utf-16") + b"\xff", "t.csv"),
        ("", "t.csv"),
        ("x,y\n1,2\n", "t.csv"),
        ("video,video,count\na,a,1\n", "t.csv"),
    ],
)
def test_a_table(
    content: str | bytes, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "t.csv").write_bytes(data)
    check(["prepare", "csv", "t.csv", "--videos", "videos"], expected, capsys)


# --- paths

PATHS = [
    ("nope", "no such"),
    (".", "is a folder"),
    ("/dev/zero", "not a regular file"),
    ("https://host/x", "is a URL, expected"),
    ("x" * 5000, "x: "),
    ("broken", "no such"),
    ("loop", "ymbolic links"),
    ("fifo", "not a regular file"),
]


@pytest.mark.parametrize(("path", "expected"), PATHS)
@pytest.mark.parametrize("command", [["check"], ["train"], ["validate"], ["prepare", "csv"]])
def test_a_path(
    command: list[str],
    path: str,
    expected: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    more = ["--videos", "videos"] if command[0] == "prepare" else []
    check([*command, path, *more], expected, capsys)


# --- models


def model_of(folder: Path, family: str, tensor: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    save_file({tensor: np.zeros(1, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "tensor", "expected"),
    [
        ("llama", "model.layers.0.mlp.up_proj.weight", "model_type='llama', expected one of"),
        ("qwen3_vl", "visual.blocks.0.mlp.fc1.weight", "weights beside it are of qwen2_vl"),
        ("qwen2_vl", "model.visual.blocks.0.mlp.linear_fc1.weight", "are of qwen3_vl:"),
        ("qwen3_vl", "model.visual.blocks.0.mlp.gate_proj.weight", "are of qwen2_5_vl:"),
    ],
)
def test_a_model_of_another_family(
    family: str, tensor: str, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_of(folder / "m", family, tensor)
    (folder / "clips.jsonl").write_text(row())
    (folder / "r.yaml").write_text("data: {path: clips.jsonl}\nmodel: {path: m}\n")
    check(["train", "r.yaml"], expected, capsys)
    check(["count", "a.mp4", "--checkpoint", "m"], expected, capsys)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "hf download Qwen/Qwen3-VL-4B-Instruct"),
        ("data/tiny-qwen3_vl", "actrep prepare tiny-model --family qwen3_vl"),
        ("runs/none", "no such checkpoint"),
    ],
)
def test_a_missing_model_says_how_to_get_it(
    path: str,
    expected: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    check(["count", "a.mp4", "--checkpoint", path], expected, capsys)


def test_a_published_model_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Small" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    model_of(snapshot, "qwen3_vl", "model.visual.blocks.0.mlp.linear_fc1.weight")
    refs = tmp_path / "hub" / "models--Qwen--Small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    code = "from actrep_ray.cli.inputs import check_model as c; print(c('Qwen/Small'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(snapshot)


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    model_of(tmp_path / "m", "qwen3_vl", "model.visual.blocks.0.mlp.linear_fc1.weight")
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "clips.jsonl").write_text(row(count=-1))
    (tmp_path / "r.yaml").write_text("data: {path: clips.jsonl}\nmodel: {path: m}\n")
    lines = [
        ["count", "a.mp4", "--checkpoint", "m"],
        ["evaluate", "--checkpoint", "m", "--data", "clips.jsonl"],
        ["train", "r.yaml"],
        ["headroom", "r.yaml"],
        ["sft", "r.yaml", "--set", "stage=sft"],
    ]
    code = (
        "import sys\nfrom actrep_ray.cli.main import main\n"
        f"assert [main(line) for line in {lines!r}] == [2] * {len(lines)}\n"
        "print([name for name in ('torch', 'transformers', 'vllm', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert len(done.stderr.splitlines()) == len(lines), done.stderr


# --- flags of commands that count, serve and export

ASKED = ["clips.jsonl", "--format", "swift"]  # of chat-export
FLAGS = [
    (["demo", "--host", ""], "--host: is empty"),
    (["demo", "--host", "999.1.1.1"], "--host 999.1.1.1 --port"),
    (["demo", "--port", "65536"], "65536: expected an integer of 1 to 65535"),
    (["demo", "--port", "\u00b2"], "expected an integer of 1 to 65535"),
    (["demo", "--queue", "0"], "expected an integer of 1 to 1000"),
    (["demo", "--max-upload-mb", "1e400"], "1e400: expected a number above 0"),
    (["demo", "--max-duration-s", "nan"], "nan: expected a number above 0"),
    (["demo", "--calibration", "c.json"], "--checkpoint DIR is missing"),
    (["serve", "m", "--show", "--port", "99999"], "99999: expected an integer of 1 to 65535"),
    (["serve", "m", "--show", "--port", "-1"], "-1: expected an integer of 1 to 65535"),
    (["serve", "m", "--show", "--name", ""], "--name: is empty"),
    (["serve", "nope", "--show"], "nope: no such checkpoint"),
    (["benchmark", "nope", "--data", "clips.jsonl"], "invalid choice: 'nope'"),
    (["benchmark", "quva", "--method", "periodicity", "--data", "nope"], "nope: no such file"),
    (["benchmark", "quva", "--method", "periodicity", "--data", "clips.jsonl"], "data set 'quva'"),
    (["headroom", "plain.yaml", "--set", "stage=sft"], "stage=sft, expected a recipe of stage"),
    (["count", "", "--method", "periodicity"], "is empty, expected a name"),
    (["count", "[", "--method", "periodicity"], "no file matches this pattern"),
    (["count", "a.mp4", "--method", "periodicity", "--csv", "videos"], "videos: is a folder"),
    (["count", "a.mp4", "--method", "periodicity", "--srt", "t.txt/a.srt"], "t.txt is a file"),
    (["count", "a.mp4", "--method", "periodicity", "--out", "t.txt", "--resume"], "t.txt:1: not"),
    (["count", "a.mp4", "--segments", "--actions", "a,a"], "names with commas between, each once"),
    (["count", "--camera", ""], "--camera: is empty"),
    (["count", "--camera", "9" * 26], "no number of a camera"),
    (["count", "--camera", "t.txt"], "t.txt: "),
    (["count", "--camera", "http://host/x"], "opened with --allow-network alone"),
    (["prepare", "pseudo-labels", "", "--out", "o"], "is empty, expected a name"),
    (["prepare", "pseudo-labels", "videos", "--out", "o"], "videos: no video in this folder"),
    (["prepare", "pseudo-labels", "t.mp4", "--out", "videos"], "videos: is a folder"),
    (["prepare", "pseudo-labels", "t.mp4", "--out", "t.txt/o"], "t.txt is a file"),
    (["prepare", "pseudo-labels", "t.mp4", "--out", "o"], "o: not written, since no clip has"),
    (["prepare", "pseudo-labels", "t.mp4", "--out", "o", "--longest", "nan"], "--longest nan"),
    (["prepare", "pseudo-labels", "clips.jsonl", "--out", "clips.jsonl", "--overwrite"], "is read"),
    (["prepare", "chat-export", *ASKED, "--out", "clips.jsonl", "--overwrite"], "is what is read"),
    (["prepare", "chat-export", *ASKED, "--out", "videos"], "videos: is a folder, expected a file"),
    (["prepare", "chat-export", *ASKED, "--out", "o", "--recipe", "no.yaml"], "no such recipe"),
    (["prepare", "verl", "clips.jsonl", "--out", "./clips.jsonl", "--overwrite"], "what is read"),
    (["cot", "clips.jsonl", "--out", "clips.jsonl", "--overwrite"], "clips.jsonl: is what is read"),
    (["prepare", "rcs-export", "clips.jsonl", "--num", "2", "--out", "clips.jsonl"], "is read"),
    (["evaluate", "--method", "periodicity", "--data", "clips.jsonl", "--out", "t.txt"], "a file"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), FLAGS)
def test_a_flag(
    line: list[str],
    expected: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read stays as it is, also where nothing was wrong but the name of the output."""
    monkeypatch.setattr("actrep_ray.cli.demo._check_gradio", lambda: None)
    files = {
        "clips.jsonl": row(),
        "t.txt": "hello",
        "t.mp4": "no video",
        "plain.yaml": "data: {path: clips.jsonl}\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    check(line, expected, capsys)
    assert {name: (folder / name).read_text() for name in files} == files


@pytest.mark.parametrize("name", ["nope", "../x:y", "math:sqrt", "json:", ":", "broken_module:f"])
def test_a_reward(
    name: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "broken_module.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(folder)
    check(["check", "--reward", name], f"reward {name!r}", capsys)


# --- whatever hypothesis makes up

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**30), 2**63, 1e300, 1e-300]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["inf", "nan", "1e400", "a\0b", "../..", "https://x", "\ud800", "~"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["learner.lr", "train.num_steps", "seed", "video.fps", "reward.weights", "sampling.bins",
     "model.lora.rank", "run.stop_s", "data", "train", "name", "runs_dir", "rollout.num_workers",
     "placement.learner_labels", "algorithm.preset"],
)  # fmt: skip
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=30)
NEWER: dict[str, list[str]] = {  # the last word is made up
    "demo": ["demo", "--host=localhost", "--port"],
    "serve": ["serve", "m", "--show", "--port"],
    "benchmark": ["benchmark", "quva", "--method", "periodicity", "--data"],
    "headroom": ["headroom", "plain.yaml", "--prompts"],
}
NEWER_PATHS: dict[str, list[str]] = {  # the last word is a path that is made up
    "camera": ["count", "--camera"],
    "pseudo-labels": ["prepare", "pseudo-labels", "--out", "o"],
    "chat-export": ["prepare", "chat-export", "--format", "swift", "--out", "o"],
}
INPUTS = st.one_of(
    st.tuples(st.just("recipe"), st.one_of(st.text(max_size=40), st.binary(max_size=40))),
    st.tuples(st.just("recipe"), VALUES.map(json.dumps)),
    st.tuples(
        st.just("recipe"),
        st.tuples(KEYS, VALUES).map(lambda kv: f"{kv[0].replace('.', ': {')}: {json.dumps(kv[1])}"
                                    + "}" * kv[0].count(".")),
    ),
    st.tuples(st.just("set"), st.tuples(KEYS, st.text(max_size=12)).map("=".join)),
    st.tuples(st.just("set"), st.tuples(KEYS, VALUES.map(json.dumps)).map("=".join)),
    st.tuples(
        st.just("clips"),
        st.dictionaries(st.sampled_from(sorted(ROW)), VALUES, min_size=1, max_size=2).map(
            lambda changes: row(**changes)
        ),
    ),
    st.tuples(st.just("clips"), st.binary(max_size=60)),
    st.tuples(st.just("table"), st.text(max_size=60)),
    st.tuples(st.just("table"), SCALARS.map(lambda v: f"video,count\na.mp4,{v}\n")),
    st.tuples(st.just("path"), WORDS),
    st.tuples(st.sampled_from(sorted({**NEWER, **NEWER_PATHS})), WORDS),
    st.tuples(st.just("calibration"), VALUES.map(json.dumps)),
    st.tuples(
        st.just("calibration"),
        st.dictionaries(st.sampled_from(["points", "num_clips", "sampling"]), VALUES).map(
            lambda changes: json.dumps({"checkpoint": "a", "points": [[0.5, 0.5]], **changes})
        ),
    ),
    st.tuples(st.just("answers"), st.one_of(st.binary(max_size=60), VALUES.map(json.dumps))),
)  # fmt: skip


@pytest.fixture
def world(folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with what the commands of `meet` name; no page is served."""
    monkeypatch.setattr("actrep_ray.cli.demo._check_gradio", lambda: None)
    monkeypatch.setattr("actrep_ray.demo.server.serve", lambda *_, **__: None)
    (folder / "m").symlink_to(tiny)
    (folder / "plain.yaml").write_text("name: plain\n")
    (folder / "one.jsonl").write_text(row(split="test"))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m")


def meet(kind: str, content: str | bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """A command meets an input: it ends well, or with exit code 1 or 2 and words."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    Path("input").write_bytes(data)
    text = content if isinstance(content, str) else ""
    line = {
        "recipe": ["train", "input"],
        "set": ["train", "plain.yaml", f"--set={text}"],
        "clips": ["prepare", "rcs-export", "input", "--num", "2", "--out", "o", "--overwrite"],
        "table": ["prepare", "csv", "input", "--videos", "videos", "--out", "out", "--overwrite"],
        "path": ["count", f"./{text}", "--method", "periodicity"],
        "calibration": ["demo", "--checkpoint", "m", "--calibration", "input"],
        "answers": ["evaluate", "--checkpoint", "m", "--data", "one.jsonl", "--predictions=input"],
        **{name: [*words, text] for name, words in NEWER.items()},
        **{name: [*words, f"./{text}"] for name, words in NEWER_PATHS.items()},
    }[kind]
    if kind == "table":
        line.append("--allow-missing")
    code, err = answer(line, capsys)
    also = {"clips": 0, "table": 1, "demo": 0, "serve": 0}
    assert code in (2, also.get(kind, 2)), err
    assert code == 0 or err.startswith(("actrep: ", "usage: ")), err


PROPERTY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(PROPERTY, max_examples=200)
@given(INPUTS)
@example(("table", "video,count\na.mp4,2\n"))
def test_no_input_ends_in_a_traceback(
    world: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, Any]
) -> None:
    meet(*made, capsys)


@pytest.mark.slow
@settings(PROPERTY, max_examples=2000)
@given(INPUTS)
def test_none_of_two_thousand_ends_in_a_traceback(
    world: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, Any]
) -> None:
    meet(*made, capsys)
