"""A model whose template opens `<think>`, from what SFT teaches to what is scored and counted.

A twin of the small model with the template and the end tokens of Qwen3-VL-*-Thinking learns a few
answers by heart, is saved by the learner and then asked, by each engine.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe, RolloutConfig, VideoConfig
from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.evaluation.predictors import evaluate
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, Rollout, RolloutStatus
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.rollout.worker import start_engine
from actrep_ray.scoring.worker import RewardWorker, make_spec, texts_of
from actrep_ray.sft import row_of
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.cot import render_answer
from data_prep.schema import Clip
from tests.chat_templates import THINKING, give_template

IM_END, END_OF_TEXT = 2, 0
GREEDY = SamplingSettings(max_tokens=160, temperature=0.0)
MAX_STEPS = 200
MAX_GAP = 1e-4


@dataclass
class Taught:
    """What was taught, and where the model lies.

    Attributes:
        model: Folder that the learner saved.
        source: Folder that it started from.
        recipe: Of SFT.
        rows: Question and plan of each answer: of the clips, one that ends at the other end token,
            one with a special token in it.
        clips: Of the first rows.
    """

    model: Path
    source: Path
    recipe: Recipe
    rows: list[LearnerRow]
    clips: list[Clip]


def prompt_of(row: LearnerRow) -> Prompt:
    assert row.plan is not None
    return Prompt(row.row_id, row.row_id, row.question, row.plan)


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory,
    clips: list[Clip],
    video: VideoConfig,
    rollout: RolloutConfig,
) -> Taught:
    root = tmp_path_factory.mktemp("taught")
    source = write_tiny_model(root / "source")
    give_template(source, THINKING, end_tokens=[IM_END, END_OF_TEXT])
    recipe = Recipe.model_validate(
        {
            "stage": "sft",
            "device": "cpu",
            "runs_dir": str(root / "runs"),
            "model": {"path": str(source), "dtype": "float32"},
            "video": {"fps": 2.0, "max_pixels": 1024, "cache_dir": video.cache_dir},
            "learner": {"lr": 3e-3, "warmup_steps": 10},
            "rollout": {**rollout.model_dump(), "engine": "hf", "max_response_tokens": 160},
        }
    )
    inputs = QwenVLInputs(source)
    # Written out, as a model of that kind goes on; `row_of` has to say the same.
    rows = [
        _with(
            row_of(clip, render_answer(clip), recipe, inputs),
            inputs,
            render_answer(clip).removeprefix("<think>\n"),
        )
        for clip in clips
    ]
    rows.append(_with(rows[0], inputs, "It moves.</think>", "Say it.", END_OF_TEXT))
    rows.append(_with(rows[0], inputs, "It <|im_start|>moves.</think>", "Say junk."))
    learner = LearnerWorker(recipe, str(source), rank=0, world_size=1, total_steps=MAX_STEPS)
    learner.setup("127.0.0.1", 0)
    for _ in range(MAX_STEPS):
        if learner.sft_step(rows)["loss"] < 0.01:
            break
    learner.save_model(root / "model")
    learner.shutdown()
    (root / "model" / "recipe.json").write_text(recipe.model_dump_json())
    return Taught(root / "model", source, recipe, rows, clips)


def _with(
    row: LearnerRow, inputs: QwenVLInputs, text: str, question: str = "", end: int = IM_END
) -> LearnerRow:
    """A row that teaches exactly these tokens, perhaps to another question."""
    tokens = np.array([*inputs.tokenizer(text)["input_ids"], end], np.int32)
    row = replace(row, responses=(tokens,))
    return replace(row, row_id=question, question=question) if question else row


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest, taught: Taught) -> Iterator[Engine]:
    rollout = taught.recipe.rollout.model_copy(update={"engine": request.param})
    engine = start_engine(taught.recipe.model_copy(update={"rollout": rollout}), taught.model)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def answers(engine: Engine, taught: Taught) -> dict[str, Rollout]:
    """The engine's answer to each row, by its id."""
    prompts = [prompt_of(row) for row in taught.rows]
    groups = engine.generate(prompts, GREEDY)
    return {group.prompt.prompt_id: group.rollouts[0] for group in groups}


def test_sft_teaches_what_the_template_leaves_to_write(taught: Taught) -> None:
    inputs = QwenVLInputs(taught.source)
    for clip, row in zip(taught.clips, taught.rows, strict=False):
        own = row_of(clip, render_answer(clip), taught.recipe, inputs)
        np.testing.assert_array_equal(own.responses[0], row.responses[0])


def test_what_was_taught_is_said_whole(taught: Taught, answers: dict[str, Rollout]) -> None:
    for clip in taught.clips:
        assert answers[clip.id].text == render_answer(clip)
        assert answers[clip.id].token_ids[-1] == IM_END
        assert answers[clip.id].status is RolloutStatus.STOPPED


def test_a_perfect_answer_earns_everything(
    engine: Engine, taught: Taught, answers: dict[str, Rollout]
) -> None:
    prompts = [prompt_of(row) for row in taught.rows[:2]]
    groups = engine.generate(prompts, GREEDY)
    labels = labels_of(taught.clips, load_task("counting"))
    worker = RewardWorker(make_spec(taught.recipe), taught.recipe.task)
    doubled = [replace(group, rollouts=group.rollouts * 2) for group in groups]
    for scores in worker.score([texts_of(group, labels, taught.recipe) for group in doubled]):
        assert scores.rewards.tolist() == [1.0, 1.0]  # type: ignore[union-attr]


def test_evaluation_counts_and_writes_the_whole_answer(
    engine: Engine, taught: Taught, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jsonl"
    inputs = QwenVLInputs(taught.model)
    metrics = evaluate(taught.clips, engine, inputs, taught.recipe, path).as_dict("eval")
    assert metrics["eval/obz"] == metrics["eval/parse_rate"] == 1.0
    predictions = read_predictions(path, load_task("counting"))
    assert [p.reading for p in predictions] == [clip.count for clip in taught.clips]
    assert [p.text for p in predictions] == [render_answer(clip) for clip in taught.clips]
    assert all(len(p.cycles) == p.reading for p in predictions)


def test_either_end_token_stops_and_is_trained_on_but_is_not_text(
    taught: Taught, answers: dict[str, Rollout]
) -> None:
    answer = answers["Say it."]
    assert answer.status is RolloutStatus.STOPPED
    np.testing.assert_array_equal(answer.token_ids, taught.rows[2].responses[0])
    assert answer.token_ids[-1] == END_OF_TEXT
    assert answer.text == "<think>\nIt moves.</think>"


def test_a_sampled_special_token_can_be_read(taught: Taught, answers: dict[str, Rollout]) -> None:
    answer = answers["Say junk."]
    assert answer.status is RolloutStatus.STOPPED
    assert answer.text == "<think>\nIt <|im_start|>moves.</think>"


def test_engine_and_learner_read_the_same_tokens(
    engine: Engine, taught: Taught, make_reference: Any
) -> None:
    reference = make_reference(taught.model)
    prompts = [prompt_of(row) for row in taught.rows]
    sampled = replace(GREEDY, group_size=3, temperature=1.0)
    groups = engine.generate(prompts, sampled)
    assert reference.gap(groups) < MAX_GAP
    assert {int(r.token_ids[-1]) for g in groups for r in g.rollouts} == {IM_END, END_OF_TEXT}


def test_the_learner_saves_template_and_end_tokens_as_they_were(taught: Taught) -> None:
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (taught.model / name).read_bytes() == (taught.source / name).read_bytes()
    assert QwenVLInputs(taught.model).end_ids == (IM_END, END_OF_TEXT)


def test_count_says_what_the_model_counted(
    taught: Taught, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = taught.clips[0]
    assert main(["count", clip.video, "--checkpoint", str(taught.model), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"].startswith("<think>\n")
    assert record["text"].count("<think>") == 1
    assert record["count"] == clip.count
    assert record["claims"] == dict.fromkeys(("answer", "total", "list"), clip.count)
    assert record["consistent"] is True
    assert len(record["cycles"]) == clip.count


def test_several_answers_and_windows_of_a_model(
    taught: Taught, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = taught.clips[0]
    words = ["count", clip.video, "--checkpoint", str(taught.model), "--json"]
    assert main([*words, "--samples", "5", "--set", "rollout.temperature=0.1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["answers"] == [clip.count] * 5
    assert (record["agreement"], record["consistent_share"]) == (1.0, 1.0)
    assert record["confidence"] == pytest.approx(6 / 7, abs=1e-3)

    asked = "--set=data.question=How many times is {action} done? List each repetition."
    main([*words, asked, "--actions", "squat,lunge"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["action"] for one in told] == ["squat", "lunge"]

    code = main([*words, "--window", "4", "--srt", str(tmp_path / "a.srt")])
    record = json.loads(capsys.readouterr().out)
    assert code == (3 if record["reason"] else 0)
    assert len(record["windows"]) > 1
    counts = [window["count"] for window in record["windows"] if window["count"] is not None]
    assert record["count"] == (sum(counts) if counts else None)
    assert [record["windows"][0]["start_s"], record["windows"][-1]["end_s"]] == [
        0.0,
        pytest.approx(clip.duration_s, abs=0.2),
    ]
    assert (tmp_path / "a.srt").read_text().count("-->") == len(record["cycles"])


@pytest.mark.engine
def test_both_engines_count_alike_and_a_bad_file_leaves_the_others_done(
    taught: Taught, tmp_path: Path
) -> None:
    videos = [clip.video for clip in taught.clips]
    (tmp_path / "text.mp4").write_text("no video")
    told = []
    for engine in ("hf", "vllm"):
        words = [*videos, str(tmp_path / "text.mp4"), "--checkpoint", str(taught.model), "--json"]
        words += ["--set", f"rollout.engine={engine}"]
        # A process of its own: vLLM wants a real standard output, and must write nothing to it.
        run = subprocess.run(
            [sys.executable, "-m", "actrep_ray", "count", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 1, run.stderr
        told.append([json.loads(line) for line in run.stdout.splitlines()])
        most = f"{len(videos)} of {len(videos) + 1} videos counted, consistent 1.00 of 1, 1 failed"
        assert most in run.stderr
        assert "text.mp4: cannot be opened as a video" in run.stderr
    assert told[0] == told[1]
    assert [record.get("count") for record in told[0]] == [
        *(clip.count for clip in taught.clips), None,
    ]  # fmt: skip
