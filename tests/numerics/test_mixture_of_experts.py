"""Qwen3-VL-MoE in the learner: saved and sent in the layout of the published checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model

DOWN = "model.language_model.layers.1.mlp.experts.down_proj"
GATE_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"


def test_what_is_saved_and_sent_is_as_published(
    make_worker: Any, make_recipe: Any, tiny_model: Callable[..., Path], make_rows: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """[experts, in, out]; transformers computes with [experts, out, in] and saves that."""
    model = tiny_model("qwen3_vl_moe", tied=False)
    rows = make_rows(QwenVLInputs(model), 3, 4)
    worker = make_worker(make_recipe("stage=sft", "learner.lr=1e-2"), model)
    worker.sft_step(rows)
    worker.save_model(tmp_path / "saved")
    before, after = (load_file(p / "model.safetensors") for p in (model, tmp_path / "saved"))
    assert before[DOWN].shape == (8, 96, 64)  # 96 wide, 64 hidden: not square
    assert before[GATE_UP].shape == (8, 64, 2 * 96)
    assert {n: w.shape for n, w in after.items()} == {n: w.shape for n, w in before.items()}
    own: Any = dict(worker.policy.model.named_parameters())
    assert torch.equal(after[DOWN][5], own[DOWN].full_tensor()[5].T)
    assert not torch.equal(after[DOWN], before[DOWN])
    for _ in range(2):
        sent = dict(worker.iter_weights())
        assert sent.keys() == after.keys()
        assert all(torch.equal(sent[name], weight) for name, weight in after.items())
    expected = worker.log_probs(rows)
    again = make_worker(make_recipe("stage=sft"), tmp_path / "saved").log_probs(rows)
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), atol=1e-6)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["text_config"]["norm_topk_prob"] is True  # vLLM asks for it


def test_square_experts_are_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    for path in tiny_model("qwen3_vl_moe", tied=False).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["moe_intermediate_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="hidden_size=64 and moe_intermediate_size=64: experts"):
        load_model(tmp_path, dtype="float32")
