"""LoRA on one rank: what is trained, what is exported, the reference, saving and going on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError, LoraConfig, Recipe
from actrep_ray.models import lora
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model

MakeRecipe = Callable[..., Recipe]
TinyModel = Callable[..., Path]
LORA = ("learner.lr=1e-2", "model.lora.rank=4", "model.lora.alpha=16")
GRPO = ("stage=grpo", "train.group_size=4", "train.prompts_per_step=3", "algorithm.kl_coef=0.1")


@pytest.fixture
def rows(tiny_model: TinyModel, make_rows: Callable[..., list[Any]]) -> list[Any]:
    return make_rows(QwenVLInputs(tiny_model()), 3, 4)


def _flat(values: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    return np.concatenate([answer for row in values for answer in row])


def test_only_adapters_train_and_merged_weights_are_the_policy(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    worker = make_worker(make_recipe("stage=sft", *LORA), tiny_model())
    before = {
        n: worker.strategy.whole(p).clone() for n, p in worker.policy.model.named_parameters()
    }
    base = _flat(worker.log_probs(rows))
    loss = [worker.sft_step(rows)["loss"] for _ in range(4)]
    assert loss[-1] < loss[0]
    for name, parameter in worker.policy.model.named_parameters():
        is_same = torch.equal(worker.strategy.whole(parameter), before[name])
        assert is_same != lora.is_adapter(name), name
        assert parameter.requires_grad == lora.is_adapter(name), name

    moved = _flat(worker.log_probs(rows))
    assert np.abs(moved - base).max() > 0.1
    files = load_file(tiny_model() / "model.safetensors")
    exported = dict(worker.iter_weights())
    assert exported.keys() == files.keys()
    changed = {name for name, weight in exported.items() if not torch.equal(weight, files[name])}
    assert changed == {f"{name.partition('.base_layer')[0]}.weight" for name in before
                       if ".base_layer" in name}  # fmt: skip
    assert all(component_of(name) == "language_model" for name in changed)

    worker.save_model(tmp_path / "merged")
    plain = make_worker(make_recipe("stage=sft"), tmp_path / "merged")
    np.testing.assert_allclose(_flat(plain.log_probs(rows)), moved, atol=2e-6)


def test_the_reference_is_the_policy_without_adapters(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    plain = make_worker(make_recipe(*GRPO), tiny_model())
    base = _flat(plain.log_probs(rows))
    worker = make_worker(make_recipe(*GRPO, *LORA), tiny_model())
    np.testing.assert_allclose(_flat(worker.log_probs(rows)), base, atol=1e-6)
    assert worker.update(rows, 1)["ref_kl"] == pytest.approx(0, abs=1e-6)
    assert worker.update(rows, 2)["ref_kl"] > 1e-3
    np.testing.assert_allclose(_flat(worker.log_probs(rows, reference=True)), base, atol=1e-6)
    assert np.abs(_flat(worker.log_probs(rows)) - base).max() > 0.05  # adapters are on again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_going_on_with_dropout(
    dtype: str,
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    recipe = make_recipe(
        "stage=sft", *LORA, "model.lora.dropout=0.2", f"model.dtype={dtype}",
        "learner.gradient_checkpointing=true",
    )  # fmt: skip
    worker = make_worker(recipe, tiny_model())
    worker.sft_step(rows)
    worker.save_model(tmp_path / "model")
    worker.save_state(tmp_path / "state")
    expected = worker.sft_step(rows)
    assert worker.sft_loss(rows) == worker.sft_loss(rows)  # nothing is dropped while scoring

    again = make_worker(recipe, tmp_path / "model", base_path=tiny_model())
    again.load_state(tmp_path / "state")
    found = again.sft_step(rows)
    for key in ("loss", "grad_norm", "lr"):
        assert found[key] == expected[key], key
    other = make_worker(recipe, tmp_path / "model")  # as if the merged model were the base
    with pytest.raises(ConfigError, match=r"its adapter belongs to .*set model.path"):
        other.load_state(tmp_path / "state")


def test_the_adapter_is_one_of_peft(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    from peft import PeftModel

    worker = make_worker(make_recipe("stage=sft", *LORA), tiny_model())
    worker.sft_step(rows)
    worker.save_state(tmp_path / "state")
    exported = dict(worker.iter_weights())
    model: Any = PeftModel.from_pretrained(
        load_model(tiny_model(), dtype="float32"), str(tmp_path / "state" / "adapter")
    )
    merged = dict(model.merge_and_unload().named_parameters())
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(exported[name], load_file(tiny_model() / "model.safetensors")[name])
    torch.testing.assert_close(merged[name].detach(), exported[name], rtol=1e-5, atol=1e-6)


def test_layers_are_found_by_part(tiny_model: TinyModel) -> None:
    model = load_model(tiny_model("qwen2_5_vl"), dtype="float32")
    # The vision tower of Qwen2.5-VL has layers of these names too.
    lora.add_adapters(model, LoraConfig(rank=2, target_modules=("gate_proj",)))
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found
    assert all(component_of(name) == "language_model" and ".gate_proj." in name for name in found)
    with pytest.raises(ConfigError, match=r"target_modules=\['nothing'\]: no such linear layer"):
        lora.add_adapters(model, LoraConfig(rank=2, target_modules=("nothing",)))
