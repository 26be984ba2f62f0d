"""Settings of the strategies: DeepSpeed's JSON against the recipe, learning rates of components.

That FSDP2, ZeRO-2, ZeRO-3 and plain PyTorch compute the same is in `test_split.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError, LearnerConfig, Recipe, load_recipe
from actrep_ray.learner.strategies.optimizer import make_optimizer, set_learning_rates
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model
from actrep_ray.planning.deepspeed_settings import deepspeed_settings
from actrep_ray.planning.training import describe_training

GRPO = ("train.prompts_per_step=8", "train.group_size=4", "learner.num_workers=2")
ZERO = (*GRPO, "learner.strategy=deepspeed", "device=cpu")


def _recipe_with(tmp_path: Path, content: dict[str, Any], *settings: str) -> Recipe:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    return load_recipe(None, [*ZERO, f"learner.deepspeed_config={path}", *settings])


def test_settings_of_the_recipe() -> None:
    settings = deepspeed_settings(
        load_recipe(None, [*ZERO, "learner.offload=all", "learner.max_grad_norm=0.5"])
    )
    offloaded = {"device": "cpu", "pin_memory": False}
    assert settings["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": offloaded,
        "offload_param": offloaded,
    }
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"]["enabled"]
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["communication_data_type"] == "fp32"


def test_a_json_of_ones_own_is_completed(tmp_path: Path) -> None:
    mine = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-6, "betas": "auto"}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "offload_param": None},
    }
    settings = deepspeed_settings(_recipe_with(tmp_path, mine))
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["gradient_clipping"] == 1.0
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert not {"optimizer", "train_batch_size"} & settings.keys()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"zero_optimization": {"stage": 2}}, r"stage=2 contradicts learner\.zero_stage.*for 3"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping=0\.5 contradicts learner\.max_grad_norm"),
        ({"train_batch_size": 64}, r"train_batch_size=64 contradicts .*asks for 32"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled=true contradicts model\.dtype=bfloat16"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            r'device="nvme" contradicts learner\.offload=none, which asks for "none"',
        ),
        ({"optimizer": {"params": {"lr": 2e-6}}}, r"lr=2e-06 contradicts learner\.lr.*for 1e-06"),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
            r"=4 x gradient_accumulation_steps=2 x learner\.num_workers=2 = 16 contradicts",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler is set by learner\.schedule"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both(content: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        describe_training(_recipe_with(tmp_path, content))


def test_a_json_that_is_none(tmp_path: Path) -> None:
    recipe = _recipe_with(tmp_path, {})
    (tmp_path / "mine.json").write_text("{'stage': 3}")
    with pytest.raises(ConfigError, match=r"mine\.json:1: not JSON"):
        deepspeed_settings(recipe)
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"expected a JSON object, got list"):
        deepspeed_settings(recipe)
    (tmp_path / "mine.json").unlink()
    with pytest.raises(ConfigError, match=r"deepspeed_config=.* no such file"):
        deepspeed_settings(recipe)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["learner.offload=optimizer"], "FSDP2 offloads all or none"),
        (["learner.deepspeed_config=a.json"], "only with learner.strategy=deepspeed"),
        (
            ["learner.strategy=deepspeed", "learner.zero_stage=2", "learner.offload=all"],
            "only by zero_stage 3",
        ),
        (["model.lora.rank=8", "model.freeze=[language_model]"], "both name language_model"),
    ],
)
def test_settings_that_exclude_each_other(settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_recipe(None, settings)


def test_the_equivalent_batch_size_is_told() -> None:
    batch, learner, _ = describe_training(
        load_recipe(None, [*GRPO, "train.mini_batch_size=16", "train.num_steps=10"])
    )
    assert batch == (
        "batch: 16 answers (4 prompts x 4) an optimiser step over 2 ranks, micro-batches of at "
        "most 16384 tokens; 20 optimiser steps"
    )
    assert learner == "learner: FSDP2, lr 1e-06"
    sft = ["stage=sft", "model.lora.rank=8", "learner.lr_merger=1e-4", "sft.num_steps=7"]
    batch, learner, _ = describe_training(load_recipe(None, [*sft, "learner.strategy=deepspeed"]))
    assert batch.startswith("batch: 32 clips an optimiser step over 1 rank,")
    assert batch.endswith("; 7 optimiser steps")
    assert learner == (
        "learner: DeepSpeed ZeRO-3, LoRA of rank 8 in language_model, "
        "lr 1e-06, 0.0001 in the merger"
    )


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (["train.max_staleness=0"], 0),
        (["train.max_staleness=2"], 1),
        (["train.max_staleness=2", "algorithm.rollout_correction=token_truncate"], 0),
    ],
)
def test_old_answers_without_correction_are_warned_of(settings: list[str], warned: int) -> None:
    lines = describe_training(load_recipe(None, [*GRPO, *settings]))
    assert sum(line.startswith("warning: train.max_staleness=2") for line in lines) == warned


@pytest.mark.parametrize(
    ("settings", "warned", "sent"),
    [
        ([], 0, True),
        (["model.lora.send=merged"], 1, False),
        (["model.lora.send=merged", "model.dtype=float32"], 0, False),
    ],
)
def test_merged_adapters_in_bfloat16_are_warned_of(
    settings: list[str], warned: int, sent: bool
) -> None:
    recipe = load_recipe(None, [*GRPO, "model.lora.rank=8", *settings])
    lines = describe_training(recipe)
    assert sum(line.startswith("warning: model.lora.send=merged") for line in lines) == warned
    assert recipe.sends_adapters == sent
    assert ("sent as adapters" in lines[1]) == sent
    without = load_recipe(None, [*GRPO, *settings, "model.lora.rank=0"])
    assert not without.sends_adapters


def test_adapters_that_vllm_has_no_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.rank=513: vLLM takes adapters of at most 512"):
        load_recipe(None, [*GRPO, "model.lora.rank=513"])
    load_recipe(None, [*GRPO, "model.lora.rank=513", "model.lora.send=merged"])
    load_recipe(None, [*GRPO, "model.lora.rank=513", "rollout.engine=hf"])


def test_groups_of_parameters(tiny_model: Callable[..., Path]) -> None:
    model = load_model(tiny_model(), dtype="float32")
    cfg = LearnerConfig(lr=1.0, lr_vision_tower=0.25, lr_merger=0.5, weight_decay=0.1)
    optimizer = make_optimizer(model, cfg)
    set_learning_rates(optimizer, 0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            expected = {"vision_tower": 0.125, "merger": 0.25, "language_model": 0.5}[
                component_of(name)
            ]
            assert group["lr"] == expected, name
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0), name
    assert seen == set(names.values())


def test_parts_move_as_far_as_their_learning_rates(
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    make_rows: Callable[..., list[Any]],
    tiny_model: Callable[..., Path],
) -> None:
    """AdamW's first step moves every weight by its learning rate, whatever the gradient is."""
    recipe = make_recipe(
        "stage=sft", "learner.lr=1e-3", "learner.lr_merger=3e-4", "learner.lr_vision_tower=1e-4",
        "learner.schedule=linear", "learner.warmup_steps=2",
    )  # fmt: skip
    worker = make_worker(recipe, tiny_model())
    before = dict(worker.iter_weights())
    metrics = worker.sft_step(make_rows(QwenVLInputs(tiny_model()), 3, 2))
    # Half of the peaks: the first of two steps of warm-up.
    rates = {"lr": 5e-4, "lr_merger": 1.5e-4, "lr_vision_tower": 5e-5}
    assert {key: metrics[key] for key in rates} == pytest.approx(rates)
    moved = {"lr": 0.0, "lr_merger": 0.0, "lr_vision_tower": 0.0}
    for name, weight in worker.iter_weights():
        component = component_of(name)
        key = "lr" if component == "language_model" else f"lr_{component}"
        moved[key] = max(moved[key], float((weight - before[name]).abs().max()))
    assert moved == pytest.approx(rates, rel=1e-2)


@pytest.mark.parametrize("setting", ["learner.offload=all", "learner.reshard_after_forward=false"])
def test_settings_of_fsdp2_change_nothing(
    setting: str,
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    make_rows: Callable[..., list[Any]],
    tiny_model: Callable[..., Path],
) -> None:
    rows = make_rows(QwenVLInputs(tiny_model()), 3, 2)
    weights = []
    for settings in ((), (setting,)):
        worker = make_worker(make_recipe("stage=sft", "learner.lr=1e-3", *settings), tiny_model())
        worker.sft_step(rows)
        weights.append(dict(worker.iter_weights()))
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_scoring_before_saving_loses_nothing(
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    make_rows: Callable[..., list[Any]],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """FSDP2 leaves whole copies in the dtype of computation where nothing is split."""
    rows = make_rows(QwenVLInputs(tiny_model()), 3, 2)
    recipe = make_recipe("stage=sft", "learner.lr=1e-3", "model.dtype=bfloat16")
    worker = make_worker(recipe, tiny_model())
    worker.sft_step(rows)
    worker.save_state(tmp_path / "expected")
    worker.sft_loss(rows)
    worker.save_state(tmp_path / "found")
    files = [load_file(tmp_path / n / "learner.safetensors") for n in ("expected", "found")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
