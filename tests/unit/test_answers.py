"""Where answers begin and end: templates that open them, several end tokens, special tokens."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.groups import row_of
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.evaluation.predictors import predictions_of
from actrep_ray.learner.batch.packing import collate, split_row
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import FAMILIES, write_tiny_model
from actrep_ray.records import Prompt, RolloutGroup, RolloutStatus
from actrep_ray.rollout.engine import make_rollout
from actrep_ray.scoring.worker import RewardWorker, make_spec, texts_of
from actrep_ray.sft import SftData
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.cot import render_answer
from data_prep.files import DataError
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan
from rewards.compute_score import compute_score
from tests.chat_templates import (
    BARELY_NOT_THINKING,
    NOT_THINKING,
    OTHER_DIALECT,
    PLAIN,
    THINKING,
    copy_model,
    give_template,
)

pytestmark = pytest.mark.lengthy

IM_END, END_OF_TEXT = 2, 0  # of the small tokenizer
TEMPLATES = {
    "plain": PLAIN,
    "thinking": THINKING,
    "not thinking": NOT_THINKING,
    "barely not thinking": BARELY_NOT_THINKING,
}
WORDS = ("rep1:", "</think>", "<answer>", "12", "\n", " ", "squat", "é", "<|im_start|>", "<think>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by template, with both end tokens; those of the families as they are written."""
    root = tmp_path_factory.mktemp("models")
    found = {family: write_tiny_model(root / family, family=family) for family in FAMILIES}
    for name, template in {**TEMPLATES, "other dialect": OTHER_DIALECT}.items():
        folder = copy_model(found["qwen3_vl"], root / name)
        found[name] = give_template(folder, template, end_tokens=[IM_END, END_OF_TEXT])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"train": 3, "validation": 1}
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, level="easy", num_clips=sizes, seed=0, num_processes=1)


@pytest.fixture(scope="module")
def clip(data: Path) -> Clip:
    return next(read_clips(data))


def recipe_for(model: Path, data: Path, *changes: str) -> Recipe:
    return load_recipe(None, [f"model.path={model}", f"data.path={data}", *changes])


def group_of(clip: Clip, inputs: QwenVLInputs, token_ids: np.ndarray) -> RolloutGroup:
    """What an engine makes of these tokens, twice: a group has more than one answer."""
    plan = FramePlan(clip.video, 1, (0.0, 0.25), 4.0, 32, 32)
    prompt = Prompt("p", clip.id, "How often?", plan)
    answers = tuple(
        make_rollout(
            prompt,
            number,
            token_ids=token_ids.tolist(),
            log_probs=[-1.0] * len(token_ids),
            text=inputs.decode_answer(token_ids),
            is_stopped=inputs.has_ended(token_ids),
            policy_version=0,
        )
        for number in range(2)
    )
    return RolloutGroup(prompt, answers, 10)


def rewards_of(group: RolloutGroup, clip: Clip, recipe: Recipe) -> list[float]:
    labels = labels_of([clip], load_task("counting"))
    worker = RewardWorker(make_spec(recipe), recipe.task)
    (scores,) = worker.score([texts_of(group, labels, recipe)])
    return [float(reward) for reward in scores.rewards]  # type: ignore[union-attr]


# ---------------------------------------------------------------- what the template opened


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        *((family, "") for family in FAMILIES),
        ("plain", ""),
        ("thinking", "<think>\n"),
        ("not thinking", ""),
        ("barely not thinking", ""),
        ("other dialect", "<thinking>\n"),
    ],
)
def test_what_a_template_opens_is_read_from_it(
    models: dict[str, Path], name: str, opened: str
) -> None:
    inputs = QwenVLInputs(models[name])
    assert inputs.opened == opened
    for question in ("How often?", "<|im_start|>assistant\nHow often?"):
        assert inputs.prompt_text(question).endswith(opened)
        assert inputs.opened == opened


def test_the_folders_name_says_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    plain = copy_model(models["plain"], tmp_path / "Qwen3-VL-4B-Thinking")
    assert QwenVLInputs(plain).opened == ""
    thinking = copy_model(models["thinking"], tmp_path / "Qwen3-VL-4B-Instruct")
    assert QwenVLInputs(thinking).opened == "<think>\n"


def test_a_template_of_another_kind_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_model(models["plain"], tmp_path / "model")
    give_template(folder, "{{ messages[0].content[1].text }} ASSISTANT: ")
    with pytest.raises(ConfigError, match=r"ends a prompt with .*ASSISTANT: ', expected the line"):
        QwenVLInputs(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        QwenVLInputs(folder)


@pytest.mark.parametrize("name", [*FAMILIES, *TEMPLATES])
def test_a_perfect_answer_earns_everything_under_every_template(
    models: dict[str, Path], data: Path, clip: Clip, name: str
) -> None:
    inputs, recipe = QwenVLInputs(models[name]), recipe_for(models[name], data)
    answer = render_answer(clip)
    written = inputs.encode_answer(answer)
    prompt = inputs.prompt_text("How often?")
    whole = prompt + inputs.tokenizer.decode(written)
    assert whole.endswith(f"{answer}<|im_end|>")  # the tag is there once, whoever wrote it
    assert (
        whole.count("<think>") - whole.count("<think></think>") - whole.count("<think>\n\n</think>")
        == 1
    )
    group = group_of(clip, inputs, written)
    assert group.rollouts[0].text == answer
    assert rewards_of(group, clip, recipe) == [1.0, 1.0]
    single = replace(group, rollouts=group.rollouts[:1])
    (prediction,) = predictions_of(single, load_task("counting"), recipe.data.dialect)
    assert (prediction.reading, prediction.text) == (clip.count, answer)
    assert prediction.cycles
    assert not prediction.is_truncated


def test_an_answer_that_opens_its_reasoning_again_is_not_perfect(
    models: dict[str, Path], data: Path, clip: Clip
) -> None:
    inputs, recipe = QwenVLInputs(models["thinking"]), recipe_for(models["thinking"], data)
    doubled = inputs.tokenizer(f"{render_answer(clip)}<|im_end|>")["input_ids"]
    assert rewards_of(group_of(clip, inputs, np.array(doubled)), clip, recipe)[0] < 1.0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=8).map("".join),
    name=st.sampled_from(["plain", "thinking"]),
)
def test_an_answer_survives_its_tokens(models: dict[str, Path], words: str, name: str) -> None:
    inputs = inputs_at(models[name])
    answer = inputs.opened + words
    written = inputs.encode_answer(answer)
    assert inputs.has_ended(written)
    assert inputs.decode_answer(written) == answer
    assert inputs.decode_answer(written[:-1]) == answer


@cache
def inputs_at(path: Path) -> QwenVLInputs:
    """Of a checkpoint, read once for all examples."""
    return QwenVLInputs(path)


def test_a_taught_answer_may_leave_out_space_but_not_the_tag(models: dict[str, Path]) -> None:
    inputs = QwenVLInputs(models["thinking"])
    expected = inputs.encode_answer("<think>\nA person squats.</think>").tolist()
    for text in ("<think>A person squats.</think>", "\n <think>\nA person squats.</think>"):
        assert inputs.encode_answer(text).tolist() == expected
    with pytest.raises(DataError, match=r"'A person squats.' does not begin with '<think>'"):
        inputs.encode_answer("A person squats.")


def test_sft_teaches_what_is_left_to_write(models: dict[str, Path], data: Path) -> None:
    inputs = QwenVLInputs(models["thinking"])
    for name in ("thinking", "plain", "not thinking"):
        rows = SftData.load(recipe_for(models[name], data), models[name]).train
        assert len(rows) == 3
        for row in rows:
            text = inputs.tokenizer.decode(row.responses[0])
            assert text.count("<think>") == (0 if name == "thinking" else 1)
            assert text.count("</think>") == 1
            assert text.endswith("</answer><|im_end|>")


def test_answers_of_a_teacher_go_on_from_what_is_open(
    models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    clips = [clip for clip in read_clips(data) if clip.split == "train"]
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({"id": c.id, "text": render_answer(c)}) + "\n" for c in read_clips(data))
    )
    recipe = recipe_for(models["thinking"], data, f"data.answers={path}")
    inputs = QwenVLInputs(models["thinking"])
    texts = [
        inputs.decode_answer(row.responses[0])
        for row in SftData.load(recipe, models["thinking"]).train
    ]
    assert texts == [render_answer(clip) for clip in clips]


def test_a_dialect_that_the_template_contradicts_is_refused_before_anything_starts(
    models: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = recipe_for(
        models["thinking"], data, "data.dialect=thinking", f"runs_dir={tmp_path / 'runs'}"
    )
    told = r"data\.dialect=thinking: the chat template of .* begins an answer with '<think>'"
    with pytest.raises(ConfigError, match=told):
        SftData.load(wrong, models["thinking"])
    with pytest.raises(ConfigError, match=told):
        prepare_grpo(wrong)
    for command in (["evaluate", "--data", str(data), "--split", "train"], ["count", "x.mp4"]):
        video = next(read_clips(data)).video
        command = [video if part == "x.mp4" else part for part in command]
        where = ["--checkpoint", str(models["thinking"]), "--set", "data.dialect=thinking"]
        assert main([*command, *where]) == 2
        assert "begins an answer with '<think>'" in capsys.readouterr().err
    right = recipe_for(models["other dialect"], data, "data.dialect=thinking")
    assert len(SftData.load(right, models["other dialect"]).train) == 3


# ---------------------------------------------------------------- end tokens and special tokens


def test_every_end_token_ends_an_answer_and_is_not_text(models: dict[str, Path]) -> None:
    inputs = QwenVLInputs(models["thinking"])
    assert inputs.end_ids == (IM_END, END_OF_TEXT)
    tokens = inputs.tokenizer("3")["input_ids"]
    for end in inputs.end_ids:
        assert inputs.has_ended([*tokens, end])
        assert inputs.decode_answer([*tokens, end]) == "<think>\n3"
    assert inputs.decode_answer([*tokens, END_OF_TEXT, IM_END]) == "<think>\n3<|endoftext|>"
    assert not inputs.has_ended(tokens)
    assert not inputs.has_ended([])


def test_the_token_that_ended_an_answer_is_trained_on(models: dict[str, Path], clip: Clip) -> None:
    inputs = QwenVLInputs(models["thinking"])
    written = inputs.encode_answer(render_answer(clip))
    written[-1] = END_OF_TEXT
    row = row_of(group_of(clip, inputs, written))
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    assert row.plan is not None
    prompt = inputs.encode(row.question, row.plan, frames)
    assert inputs.tokenizer.decode(prompt.input_ids).endswith("assistant\n<think>\n")
    packed = split_row(0, "a", prompt, row.responses, budget=4096, shares_prefix=True)
    batch = collate(packed)
    assert batch.targets[batch.target_mask].tolist() == written.tolist() * 2
    assert row.is_truncated.tolist() == [False, False]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (IM_END, (IM_END,)),
        ([END_OF_TEXT], (IM_END, END_OF_TEXT)),
        ([IM_END, END_OF_TEXT, 7], (IM_END, END_OF_TEXT, 7)),
        (None, (IM_END,)),
        ([], (IM_END,)),
    ],
)
def test_end_tokens_are_the_tokenizers_and_those_of_the_generation_settings(
    models: dict[str, Path], tmp_path: Path, given: object, found: tuple[int, ...]
) -> None:
    folder = copy_model(models["plain"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
    assert QwenVLInputs(folder).end_ids == found
    (folder / "generation_config.json").unlink()
    assert QwenVLInputs(folder).end_ids == (IM_END,)


@pytest.mark.parametrize("given", ["<|im_end|>", [True], [-1], [10**6], [1.5], {"a": 1}])
def test_end_tokens_that_are_none_are_refused(
    models: dict[str, Path], tmp_path: Path, given: object
) -> None:
    folder = copy_model(models["plain"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id=.* expected tok"):
        QwenVLInputs(folder)


@pytest.mark.parametrize("junk", ["<|im_start|>", "<|endoftext|>", "<|im_end|>"])
def test_a_sampled_special_token_does_not_look_clean(
    models: dict[str, Path], data: Path, clip: Clip, junk: str
) -> None:
    inputs = QwenVLInputs(models["plain"])
    answer = render_answer(clip)
    clean = inputs.encode_answer(answer).tolist()
    (token,) = inputs.tokenizer(junk)["input_ids"]
    for reward, most in (("strict_format", 0.0), ("think_answer", 0.0), ("format", 0.9)):
        recipe = recipe_for(models["plain"], data, f"reward.weights={{{reward}: 1.0}}")
        assert rewards_of(group_of(clip, inputs, np.array(clean)), clip, recipe) == [1.0, 1.0]
        for place in (3, len(clean) // 2, len(clean) - 1):
            dirty = np.array([*clean[:place], token, *clean[place:]])
            group = group_of(clip, inputs, dirty)
            assert junk in group.rollouts[0].text
            assert group.rollouts[0].status is RolloutStatus.STOPPED
            assert max(rewards_of(group, clip, recipe)) <= most + 1e-6


# ---------------------------------------------------------------- verl


def test_rows_for_verl_say_what_the_template_opens(
    models: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = next(read_clips(data)), tmp_path / "rows.parquet"
    for name in ("thinking", "plain", "not thinking"):
        command = ["prepare", "verl", str(data), "--out", str(out), "--overwrite"]
        assert main([*command, "--set", f"model.path={models[name]}"]) == 0
        assert "no model" not in capsys.readouterr().out
        row = pd.read_parquet(out).iloc[0]
        inputs = QwenVLInputs(models[name])
        written = inputs.tokenizer.decode(  # as verl does
            inputs.encode_answer(render_answer(clip)), skip_special_tokens=True
        )
        truth = row["reward_model"]["ground_truth"]
        assert compute_score("x", written, truth, row["extra_info"])["score"] == 1.0
        assert ("opened" in row["extra_info"]) == (name == "thinking")
    assert main([*command, "--set", "model.path=models/absent"]) == 0
    assert "opened=" in capsys.readouterr().out
    assert "opened" not in pd.read_parquet(out).iloc[0]["extra_info"]
    behind = render_answer(clip).removeprefix("<think>\n")
    assert compute_score("x", behind, truth)["score"] < 0.05
    assert compute_score("x", behind, truth, opened="<think>\n")["score"] == 1.0
    doubled = compute_score("x", render_answer(clip), truth, {"opened": "<think>\n"})
    assert doubled["score"] < 1.0
    with pytest.raises(ValueError, match="x: opened=3, expected text"):
        compute_score("x", behind, truth, {"opened": 3})
