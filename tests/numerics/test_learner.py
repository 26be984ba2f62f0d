"""The learner on one rank: training, clipping, KL, refusals, export, saving and going on."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError, LearnerConfig, Recipe
from actrep_ray.learner.optimizer_step import LearnerError
from actrep_ray.learner.saving import Snapshot
from actrep_ray.learner.strategies.optimizer import freeze, learning_rates, make_optimizer
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models import lora
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model

MakeRecipe = Callable[..., Recipe]
TinyModel = Callable[..., Path]
GRPO = ("stage=grpo", "learner.lr=2e-3", "train.group_size=4", "train.prompts_per_step=3")


@pytest.fixture
def rows(tiny_model: TinyModel, make_rows: Callable[..., list[Any]]) -> list[Any]:
    return make_rows(QwenVLInputs(tiny_model()), 3, 4)


def test_sft_learns_what_it_is_shown(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe("stage=sft", "learner.lr=3e-3"), tiny_model(), 30)
    before = worker.sft_loss(rows)
    steps = [worker.sft_step(rows) for _ in range(15)]
    after = worker.sft_loss(rows)
    assert steps[0]["loss"] == pytest.approx(before["loss"], abs=1e-5)
    assert after["loss"] < 0.7 * before["loss"]
    assert steps[0]["num_response_tokens"] == sum(len(r) for row in rows for r in row.responses)


def test_loss_is_that_of_scoring(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe("stage=sft"), tiny_model())
    values = np.concatenate([v for row in worker.log_probs(rows) for v in row])
    assert worker.sft_loss(rows)["loss"] == pytest.approx(-values.mean(), abs=1e-5)


@pytest.mark.parametrize("beside", [True, False], ids=["beside clips", "alone"])
def test_of_a_text_without_a_clip_the_marked_tokens_are_learned(
    beside: bool, make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Its log-probabilities are the plain model's on the chat without a video."""
    worker = make_worker(make_recipe("stage=sft", "learner.lr=1e-9"), tiny_model())
    learned = [np.arange(len(r)) % 2 == 0 for r in rows[0].responses]
    text = replace(rows[0], row_id="text", plan=None, learned=tuple(learned))
    inputs, model = QwenVLInputs(tiny_model()), load_model(tiny_model(), dtype="float32").eval()
    for response, found in zip(text.responses, worker.log_probs([text])[0], strict=True):
        chat = inputs.tokenizer.apply_chat_template(
            [{"role": "user", "content": text.question}], tokenize=False, add_generation_prompt=True
        )
        prompt = torch.tensor(inputs.tokenizer(chat, add_special_tokens=False)["input_ids"])
        ids = torch.cat([prompt, torch.from_numpy(response).long()])[None]
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        logits: Any = model(input_ids=ids, position_ids=positions).logits[0, len(prompt) - 1 : -1]
        logits[:, list(inputs.visual_token_ids)] = -1e9
        wanted = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert found == pytest.approx(wanted.detach().numpy(), abs=1e-4)
    batch = [*rows, text] if beside else [text]
    values = [v for row in worker.log_probs(batch[:-1]) for v in row] if beside else []
    values += [v[m] for v, m in zip(worker.log_probs([text])[0], learned, strict=True)]
    loss = worker.sft_step(batch)
    expected = -np.concatenate(values)
    assert loss["num_response_tokens"] == len(expected)
    assert loss["loss"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_temperature_divides_logits_in_grpo(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    values = []
    for temperature in (1.0, 100.0):
        recipe = make_recipe(*GRPO, f"rollout.temperature={temperature}")
        values.append(make_worker(recipe, tiny_model()).log_probs(rows)[0][0])
    tokenizer = QwenVLInputs(tiny_model())
    # At 100 all allowed tokens are about as likely.
    vocabulary = load_model(tiny_model(), dtype="float32").lm_head.out_features
    allowed = vocabulary - len(set(tokenizer.visual_token_ids))
    np.testing.assert_allclose(values[1], -np.log(allowed), atol=0.02)
    assert np.abs(values[0] + np.log(allowed)).max() > 0.05


def test_clipping_acts_with_two_updates(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO, "train.num_updates_per_batch=2"), tiny_model())
    rows = [
        replace(row, rollout_log_probs=values)
        for row, values in zip(rows, worker.log_probs(rows), strict=True)
    ]
    metrics = worker.update(rows, 1)
    assert metrics["clip_fraction"] > 0.01
    assert abs(metrics["approx_kl"]) > 1e-4
    assert metrics["num_optimizer_steps"] == 2
    assert metrics["log_prob_gap_max"] < 1e-5  # scored before the first optimiser step
    assert worker.update(rows, 2)["log_prob_gap_mean"] > 1e-3  # the weights have moved since


def test_the_first_update_of_a_batch_clips_nothing(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    shifted = [
        replace(row, rollout_log_probs=tuple(v + 0.5 for v in values))
        for row, values in zip(rows, worker.log_probs(rows), strict=True)
    ]
    metrics = worker.update(shifted, 1)
    assert metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert metrics["log_prob_gap_mean"] == pytest.approx(0.5, abs=1e-5)
    # The ratio is 1, so the loss is minus the mean advantage of all tokens.
    lengths = np.array([[len(response) for response in row.responses] for row in rows])
    weighted = (np.array([row.advantages for row in rows]) * lengths).sum()
    assert metrics["loss"] == pytest.approx(-weighted / metrics["num_response_tokens"], abs=1e-5)


def test_an_update_raises_the_better_answer(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    advantages = np.array([1.0, -1.0, 0.0, 0.0], np.float32)
    rows = [replace(row, advantages=advantages) for row in rows]
    before = worker.log_probs(rows)
    for step in range(3):
        worker.update(rows, step)
    after = worker.log_probs(rows)
    for new, old in zip(after, before, strict=True):
        assert (new[0] - old[0]).mean() > 0.1
        assert (new[1] - old[1]).mean() < -0.1


@pytest.mark.parametrize("kl_type", ["k1", "k2", "k3"])
def test_reference_kl_is_zero_at_the_start(
    kl_type: str, make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    settings = ("algorithm.kl_coef=0.1", f"algorithm.kl_type={kl_type}")
    worker = make_worker(make_recipe(*GRPO, *settings), tiny_model())
    frozen = worker.log_probs(rows, reference=True)
    assert worker.update(rows, 1)["ref_kl"] == pytest.approx(0, abs=1e-6)
    moved = worker.update(rows, 2)["ref_kl"]
    assert abs(moved) > 1e-4
    assert kl_type == "k1" or moved > 0  # the other two are never negative
    again = worker.log_probs(rows, reference=True)
    np.testing.assert_array_equal(np.concatenate(again[0]), np.concatenate(frozen[0]))


def test_no_reference_without_kl(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    with pytest.raises(ValueError, match="no reference policy"):
        worker.log_probs(rows, reference=True)


def test_a_loss_that_is_not_finite_changes_nothing(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    before = dict(worker.iter_weights())
    rows[1] = replace(rows[1], row_id="bad-row")
    worker.encoder.encode(rows[1]).pixel_values[3, 5] = torch.nan
    with pytest.raises(LearnerError, match=r"loss is not finite.*Rows: bad-row\."):
        worker.update(rows, 1)
    after = dict(worker.iter_weights())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert worker.num_optimizer_steps == 0
    assert np.isfinite(worker.update([rows[0], rows[2]], 2)["loss"])


def test_a_gradient_that_is_not_finite_changes_nothing(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    huge = replace(rows[1], advantages=np.array([3e37, 0, 0, 0], np.float32))
    with pytest.raises(LearnerError, match=r"gradient norm is not finite.*row-0, row-1, row-2"):
        worker.update([rows[0], huge, rows[2]], 1)
    assert worker.num_optimizer_steps == 0
    assert all(p.grad is None for p in worker.policy.parameters())


def test_rows_that_cannot_be_trained_on_are_refused(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    pad = np.array([worker.inputs.video_pad_id], np.int32)
    with pytest.raises(ValueError, match="row-0: answer 2 holds the visual token"):
        worker.update([replace(rows[0], responses=(*rows[0].responses[:2], pad, pad))], 1)
    with pytest.raises(ValueError, match=r"row-1: the prompt is \d+ tokens in the learner and 9 "):
        worker.update([replace(rows[1], num_prompt_tokens=9)], 1)
    with pytest.raises(ValueError, match="row-2: 4 answers and 1 advantages"):
        worker.update([replace(rows[2], advantages=np.ones(1, np.float32))], 1)
    with pytest.raises(ValueError, match=r"row-0: advantages=.* expected finite"):
        worker.update([replace(rows[0], advantages=np.full(4, np.nan, np.float32))], 1)
    with pytest.raises(ValueError, match="no group"):
        worker.update([], 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_export_and_save(
    family: str,
    tied: bool,
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    make_rows: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    source = tiny_model(family, tied=tied)
    worker = make_worker(make_recipe("stage=sft", "learner.lr=1e-2"), source)
    files = load_file(source / "model.safetensors")
    exported = dict(worker.iter_weights())
    assert exported.keys() == files.keys()
    assert ("lm_head.weight" in exported) == (not tied)
    assert all(torch.equal(exported[name], weight) for name, weight in files.items())

    rows = make_rows(worker.inputs, 2, 1)
    worker.sft_step(rows)
    expected = worker.log_probs(rows)
    worker.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == files.keys()
    assert not torch.equal(saved[next(iter(saved))], files[next(iter(saved))])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    again = make_worker(make_recipe("stage=sft"), tmp_path / "saved")
    for a, b in zip(again.log_probs(rows), expected, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == family


def test_going_on_is_exact(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    settings = ("stage=sft", "learner.lr=1e-3", "learner.schedule=cosine", "learner.warmup_steps=2")
    worker: LearnerWorker = make_worker(make_recipe(*settings), tiny_model(), 6)
    metrics = []
    for step in range(6):
        if step == 3:
            worker.save_model(tmp_path / "model")
            worker.save_state(tmp_path / "state")
        metrics.append(worker.sft_step(rows))
    again: LearnerWorker = make_worker(make_recipe(*settings), tmp_path / "model", 6)
    again.load_state(tmp_path / "state")
    for step in (3, 4, 5):
        found = again.sft_step(rows)
        for key in ("loss", "grad_norm", "lr"):
            assert found[key] == metrics[step][key], (step, key)


def test_a_state_of_another_model_is_refused(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    worker = make_worker(make_recipe("stage=sft"), tiny_model(tied=False))
    worker.sft_step(rows)
    worker.save_state(tmp_path / "state")
    other = make_worker(make_recipe("stage=sft"), tiny_model(tied=True))
    with pytest.raises(ValueError, match=r"'lm_head\.weight', which the model does not have"):
        other.load_state(tmp_path / "state")
    with pytest.raises(ValueError, match=r"learner\.json: no such file"):
        other.load_state(tmp_path)


@pytest.mark.parametrize("component", ["vision_tower", "merger", "language_model"])
def test_frozen_components_do_not_move(
    component: str,
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
) -> None:
    recipe = make_recipe("stage=sft", "learner.lr=1e-2", f"model.freeze=[{component}]")
    worker = make_worker(recipe, tiny_model())
    before = dict(worker.iter_weights())
    worker.sft_step(rows)
    for name, weight in worker.iter_weights():
        assert torch.equal(weight, before[name]) == (component_of(name) == component), name


def test_everything_frozen_is_refused(tiny_model: TinyModel) -> None:
    model = load_model(tiny_model(), dtype="float32")
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model, ("vision_tower", "merger", "language_model"))


def test_norms_and_biases_do_not_decay(tiny_model: TinyModel) -> None:
    model = load_model(tiny_model(), dtype="float32")
    decays, rest = make_optimizer(model, LearnerConfig(weight_decay=0.1)).param_groups
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in rest["params"])
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decays["params"])
    assert len(decays["params"]) + len(rest["params"]) == len(names)


def test_learning_rate_by_hand() -> None:
    cfg = LearnerConfig(lr=1.0, warmup_steps=2, schedule="cosine", min_lr_ratio=0.2)
    rates = [learning_rates(step, cfg, 6)["lr"] for step in range(7)]
    # cosine from step 2 to 6: 1, 0.8536, 0.5, 0.1464, 0 of what lies above 0.2
    expected = [0.5, 1.0, 1.0, 0.882843, 0.6, 0.317157, 0.2]
    assert rates == pytest.approx(expected, abs=1e-6)
    linear = LearnerConfig(lr=1.0, schedule="linear")
    assert [learning_rates(s, linear, 4)["lr"] for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    constant = LearnerConfig(lr=0.3, warmup_steps=3)
    rates = [learning_rates(s, constant, 4)["lr"] for s in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    apart = LearnerConfig(lr=1.0, lr_merger=0.5, lr_vision_tower=0.25, schedule="linear")
    of_each = {"lr": 0.75, "lr_merger": 0.375, "lr_vision_tower": 0.1875}
    assert learning_rates(1, apart, 4) == of_each


def test_lower_precision_and_checkpointing_train_too(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    exact = make_worker(make_recipe("stage=sft"), tiny_model()).sft_loss(rows)["loss"]
    settings = ("model.dtype=bfloat16", "learner.gradient_checkpointing=true", "learner.lr=1e-3")
    worker = make_worker(make_recipe("stage=sft", *settings), tiny_model())
    steps = [worker.sft_step(rows)["loss"] for _ in range(4)]
    assert steps[0] == pytest.approx(exact, abs=0.05)
    assert steps[-1] < steps[0]
    assert {weight.dtype for _, weight in worker.iter_weights()} == {torch.bfloat16}
    worker.save_state(tmp_path / "state")  # holds the float32 weights, which bfloat16 would lose
    whole = load_file(tmp_path / "state" / "learner.safetensors")
    name = "model.language_model.norm.weight"
    assert whole[f"weight/{name}"].dtype == torch.float32
    assert not torch.equal(whole[f"weight/{name}"].bfloat16().float(), whole[f"weight/{name}"])


def test_a_model_is_saved_as_transformers_saves_it(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    """Byte by byte, for every family's names and layouts."""
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        worker = make_worker(make_recipe("stage=sft"), tiny_model(family))
        worker.save_model(tmp_path / family / "ours")
        whole = worker.strategy.whole
        merged = lora.merged_weights(worker.policy.model, whole, whole)
        weights = {name: weight.clone() for name, weight in merged}
        ours, theirs = tmp_path / family / "ours", tmp_path / family / "theirs"
        worker.policy.model.save_pretrained(theirs, state_dict=weights)
        for name in ("config.json", "model.safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), (family, name)
        source = tiny_model(family)
        assert {path.name for path in source.iterdir()} <= {path.name for path in ours.iterdir()}
        for name in ("generation_config.json", "tokenizer.json"):
            assert (ours / name).read_bytes() == (source / name).read_bytes(), (family, name)


def test_what_is_written_in_the_background_is_what_there_was_when_it_began(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ("stage=sft", "learner.lr=1e-2", "learner.ema_decay=0.9")
    worker: LearnerWorker = make_worker(make_recipe(*settings), tiny_model())
    worker.sft_step(rows)
    worker.save_model(tmp_path / "before")
    worker.save_state(tmp_path / "before" / "training")
    gate, write = threading.Event(), Snapshot.write

    def wait(snapshot: Snapshot, folder: Path) -> list[Path]:
        assert gate.wait(60)
        return write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", wait)
    (tmp_path / "begun").mkdir()
    assert worker.begin_save(tmp_path / "begun") == 1
    losses = [worker.sft_step(rows)["loss"] for _ in range(2)]
    assert losses[0] != losses[1]
    assert not worker.is_saved()
    assert list((tmp_path / "begun").iterdir()) == []
    gate.set()
    worker.finish_save()
    assert worker.is_saved()
    (tmp_path / "begun" / "files-00000.json").unlink()
    found, expected = (files_in(tmp_path / name) for name in ("begun", "before"))
    assert found == expected


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of all files by path."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
