"""lmms-eval itself, in an environment of its own: its scorer and a run of it against ours."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import override
from actrep_ray.evaluation.predictions import prediction_of_text
from actrep_ray.evaluation.predictors import predict
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.rollout.hf_engine import HfEngine
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.lmms_eval import LMMS_EVAL, MAX_TOKENS, LmmsEval, without_reasoning
from data_prep.schema import write_clips
from rewards.reference import Reference
from tests.engine.test_served_frames import serving, trained, write_videos
from tests.unit.test_lmms_eval import NUM_ANSWERS, some_answer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(2400)]

RELEASE = ("lmms-eval==0.7.3", "filelock<4")  # it looks into what filelock 4 has moved
TASKS = {"lmms_eval_repcount": "repcount", "lmms_eval_countix": "countix"}
TASKS |= {"lmms_eval_ovr": "ovr_kinetics", "lmms_eval_pushupbench": "pushupbench"}
SCORER = """
import importlib, json, sys
from lmms_eval.api.reasoning import strip_reasoning_tags
asked = json.load(open(sys.argv[1]))
tags = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]  # by default of its command
answers = [(truth, strip_reasoning_tags(text, tags)) for truth, text in asked["answers"]]
found = {}
for task in asked["tasks"]:
    utils = importlib.import_module(f"lmms_eval.tasks.{task}.utils")
    score = getattr(utils, f"{task}_process_results")
    found[task] = [score({"count": truth}, [text]) for truth, text in answers]
    try:
        score({"count": 3}, ["9" * 400])
    except OverflowError:
        continue
    raise SystemExit("a number that no float holds is scored now")
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with lmms-eval in it; the project's is not touched."""
    folder = tmp_path_factory.mktemp("lmms") / "venv"
    uv = str(Path(sys.executable).with_name("uv"))
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    interpreter = folder / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(interpreter), *RELEASE],
    ):
        made = subprocess.run(
            command,
            check=False,
            env=os.environ | {"UV_FIND_LINKS": links},
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"{RELEASE[0]} cannot be installed here: {made.stderr[-500:]}")
    return interpreter


def run(python: Path, *words: str, cwd: Path) -> str:
    """What a program of that environment says."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    done = subprocess.run(
        [str(python), *words],
        check=False,
        cwd=cwd,
        env=kept | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def scored(
    python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[int, str]], dict[str, list[dict[str, Any]]]]:
    """10,000 generated answers, and what lmms-eval makes of each."""
    folder, draw = tmp_path_factory.mktemp("scores"), random.Random(1)
    truths = [draw.randrange(0, 30) for _ in range(NUM_ANSWERS)]
    answers = [(truth, some_answer(draw, truth)) for truth in truths]
    asked = {"tasks": list(TASKS.values()), "answers": answers}
    (folder / "asked.json").write_text(json.dumps(asked))
    run(python, "-c", SCORER, "asked.json", "found.json", cwd=folder)
    return answers, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("task", LMMS_EVAL, ids=lambda task: task.name)
def test_its_own_scorer_judges_ten_thousand_answers_alike(
    task: LmmsEval, scored: tuple[list[tuple[int, str]], dict[str, list[dict[str, Any]]]]
) -> None:
    answers, found = scored
    theirs = found[TASKS[task.name]]
    predictions = [prediction_of_text(str(i), text, task) for i, (_, text) in enumerate(answers)]
    labels = [Reference(count=truth) for truth, _ in answers]
    ours = task.contributions([one.claims or {} for one in predictions], labels)
    error = task.figures[0].name
    key = {"mae_raw": "mae"}.get(error, error)
    if task.name == "lmms_eval_pushupbench":
        exact = [one["exact_match"]["score"] for one in theirs]
        assert ours["exact"].tolist() == exact
        theirs = [{"mae": o["mae"]["mae_value"], "obo": o["obo"]["score"]} for o in theirs]
    assert ours[error].tolist() == pytest.approx([one[key] for one in theirs], rel=1e-12)
    assert ours["obo"].tolist() == [one["obo"] for one in theirs]
    found_by_all = score_predictions(
        predictions, {str(i): label for i, label in enumerate(labels)}, task, num_bootstrap=2
    )
    assert found_by_all[error].value == pytest.approx(sum(one[key] for one in theirs) / NUM_ANSWERS)
    assert 0.1 < found_by_all["obo"].value < 0.9


def test_a_checkpoint_runs_inside_of_it_with_the_figures_that_we_tell(
    python: Path,
    checkpoint: Callable[[str, int, bool], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model, recipe = trained(checkpoint("qwen3_vl", 3, False), tmp_path)
    found = write_videos(tmp_path / "videos", is_even=False)[:20]
    clips = [replace(c, id=f"{i}", split="test", count=i % 7) for i, c in enumerate(found)]
    write_clips(tmp_path / "clips.jsonl", clips)
    out = tmp_path / "lmms"
    words = ["prepare", "lmms-eval", "repcount", str(tmp_path / "clips.jsonl"), "--out", str(out)]
    assert main(words) == 0
    assert main(words) == 2  # it is there
    task = LMMS_EVAL[0]
    recipe = override(recipe, [f"task={task.name}", f"rollout.max_response_tokens={MAX_TOKENS}"])
    inputs = QwenVLInputs(model)
    kept = {  # as our engines do; a model of random weights needs it
        "logit_bias": {str(token): -100 for token in inputs.visual_token_ids},
        "stop_token_ids": list(inputs.end_ids),
    }
    with serving(recipe, model) as url:
        model_args = f"base_url={url},model=served,extra_body={json.dumps(kept)}"
        run(
            python, str(out / "run_lmms_eval.py"), "--model", "actrep",
            "--model_args", model_args, "--include_path", str(out),
            "--tasks", "actrep_repcount", "--batch_size", "1", "--log_samples",
            "--output_path", str(out / "results"), cwd=out,
        )  # fmt: skip
    [results] = (out / "results").rglob("*_results.json")
    theirs = json.loads(results.read_text())["results"]["actrep_repcount"]
    [samples] = (out / "results").rglob("*_samples_actrep_repcount.jsonl")
    answers = answers_of(samples)

    engine = HfEngine(model, recipe.rollout, recipe.video, device="cpu", seed=0)
    ours = predict(clips, engine, inputs, recipe)
    assert len({one.text for one in ours}) > len(clips) // 5  # frames are looked at
    assert [answers[i].rstrip("\ufffd") for i in range(len(clips))] == [
        without_reasoning(one.text).rstrip("\ufffd") for one in ours
    ]
    figures = score_predictions(ours, labels_of(clips, task), task, num_bootstrap=2)
    assert theirs["mae_norm,none"] == pytest.approx(figures["mae_norm"].value)
    assert theirs["obo,none"] == pytest.approx(figures["obo"].value)


def answers_of(path: Path) -> dict[int, str]:
    """The answer to each row of the task."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return {int(row["doc_id"]): str(row["filtered_resps"]).strip() for row in rows}
