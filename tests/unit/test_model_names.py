"""A published model by its name: where it is looked for, when it is fetched, what `--root` does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from actrep_ray.cli.main import main
from actrep_ray.cli.validate import view_of
from actrep_ray.config import ConfigError, is_hub_name, load_recipe, under_root
from actrep_ray.run.model_folder import download_model, model_folder
from tests.unit.test_careless_input import row

NAME, COMMIT = "Owner/Small", "a" * 40
ORDER = f"{Path(__file__).parents[1] / 'tasks' / 'order.py'}:Order"


def write_model(folder: Path, family: str = "qwen3_vl") -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    weights = {"model.visual.blocks.0.mlp.linear_fc1.weight": np.zeros(1, np.float32)}
    save_file(weights, folder / "model.safetensors")


def entry_of(file: Path) -> dict[str, str | int]:
    """A file in the hub's list of a tree."""
    digest = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest}


class Hub(BaseHTTPRequestHandler):
    """What a client asks of a hub that has one model: its list of files, and each of them."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = sorted(self.folder.iterdir())
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{NAME}/revision/"):
            listed = [{"rfilename": file.name} for file in files]
            self._answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": listed}).encode())
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self._answer(json.dumps([entry_of(file) for file in files]).encode())
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            self._answer((self.folder / Path(path).name).read_bytes())
        else:
            self._answer(b"{}", status=404)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    write_model(tmp_path / "published")
    handler = type("OneModel", (Hub,), {"folder": tmp_path / "published"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def actrep(line: list[str], folder: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the hub's library reads its settings when imported."""
    outside = {name: os.environ[name] for name in os.environ if "HF_" not in name}
    known = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(folder / "hub"), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "actrep_ray", *line],
        cwd=folder,
        env={**outside, **known, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.lengthy
def test_a_model_is_fetched_where_that_is_asked_for(tmp_path: Path, hub: str) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    line = ["count", "a.mp4", "--checkpoint", NAME]
    refused = actrep(line, tmp_path, hub)
    assert refused.returncode == 2
    assert f"get it with: hf download {NAME}" in refused.stderr
    assert not (tmp_path / "hub").exists()
    for more in (["--download"], []):  # fetched, and then found
        met = actrep([*line, *more], tmp_path, hub)
        assert met.returncode == 2
        assert "a.mp4: cannot be opened as a video" in met.stderr, met.stderr
    absent = actrep(["count", "a.mp4", "--checkpoint", "Owner/None", "--download"], tmp_path, hub)
    assert absent.returncode == 2
    assert "--download: Owner/None cannot be fetched: " in absent.stderr, absent.stderr


@pytest.mark.lengthy
def test_no_hub_that_answers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text(row())
    recipe = f"stage: sft\ndata: {{path: clips.jsonl}}\nmodel: {{path: {NAME}}}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    met = actrep(["sft", "r.yaml", "--download"], tmp_path, "http://127.0.0.1:9")
    assert met.returncode == 2, met.stderr
    assert f"--download: {NAME} cannot be fetched: " in met.stderr
    assert "Traceback" not in met.stderr


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a published model in the hub cache; another folder is the current one."""
    known = tmp_path / "hub" / "models--Owner--Small"
    write_model(known / "snapshots" / COMMIT)
    (known / "refs").mkdir()
    (known / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return known / "snapshots" / COMMIT


def test_a_cached_model_is_found_wherever_a_recipe_is_read(cached: Path) -> None:
    assert model_folder(NAME) == cached
    _, note = view_of(load_recipe(None, [f"model.path={NAME}"]))
    assert note == f"patches of {COMMIT}"


@pytest.mark.parametrize(
    ("path", "factor", "note"),
    [
        ("", 32, "patches of Qwen3-VL, as model.path is not set"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 28, "patches of Qwen2.5-VL-3B-Instruct"),
        ("Owner/None", 32, "patches of Qwen3-VL, since model.path='Owner/None': no such folder"),
    ],
)
def test_validate_says_whose_patches_it_counts(
    path: str, factor: int, note: str, cached: Path
) -> None:
    view, told = view_of(load_recipe(None, [f"model.path={path}"] if path else []))
    assert view.factor == factor
    assert told.startswith(note)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "model.path is not set"),
        ("Owner/None", "get it with: hf download Owner/None"),
    ],
)
def test_rows_for_verl_say_which_model_is_missing(
    path: str, told: str, cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clips.jsonl").write_text(row())
    line = ["prepare", "verl", "clips.jsonl", "--out", "o.parquet"]
    assert main([*line, *([f"--set=model.path={path}"] if path else [])]) == 0
    printed = capsys.readouterr().out
    assert told in printed
    assert "the rows do not say what the model's chat template opens" in printed


def test_every_path_is_below_the_root_and_no_name_is(tmp_path: Path) -> None:
    given = [
        "runs_dir=runs", "data.path=data/c.jsonl", "data.answers=cot.jsonl",
        "data.allow_outside=[videos, /disk]", "model.path=models/m", f"task={ORDER}",
        "learner.strategy=deepspeed", "learner.deepspeed_config=ds.json",
    ]  # fmt: skip
    recipe = under_root(load_recipe(None, given), "/shared")
    assert recipe.runs_dir == "/shared/runs"
    assert recipe.data.path == "/shared/data/c.jsonl"
    assert recipe.data.answers == "/shared/cot.jsonl"
    assert recipe.data.allow_outside == ("/shared/videos", "/disk")
    assert recipe.model.path == "/shared/models/m"
    assert recipe.learner.deepspeed_config == "/shared/ds.json"
    assert recipe.task == ORDER
    named = under_root(load_recipe(None, [f"model.path={NAME}"]), tmp_path)
    assert (named.model.path, named.task) == (NAME, "counting")
    assert named.learner.deepspeed_config is None
    (tmp_path / "Owner").mkdir()  # then it is a path
    assert not is_hub_name(NAME, tmp_path)
    assert under_root(named, tmp_path).model.path == str(tmp_path / NAME)


def test_a_failure_without_words_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("") from ConnectionError()

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConfigError, match="Owner/Model cannot be fetched: ConnectionError"):
        download_model("Owner/Model")
