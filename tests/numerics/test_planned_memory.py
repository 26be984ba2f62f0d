"""The memory plan against the peak of a real learner step, counted tensor by tensor on the CPU."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from noise import noise_rows
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from actrep_ray.config import Recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.architecture import read_architecture
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_random_model
from actrep_ray.planning import activations
from actrep_ray.planning.learner_memory import plan_learner
from actrep_ray.planning.prompts import PromptSize
from data_prep.schema import Clip

NUM_ROWS, ANSWER = 2, 150


class PeakBytes(TorchDispatchMode):
    """Largest sum of the bytes of all storages that were alive after an operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak = 0
        self._storages: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        tensor = value._local_tensor if isinstance(value, DTensor) else value
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, out)):
            self.add(value)
        alive = {key: ref() for key, ref in self._storages.items()}
        self._storages = {k: self._storages[k] for k, storage in alive.items() if storage}
        self.peak = max(self.peak, sum(s.nbytes() for s in alive.values() if s))
        return out


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for layers to matter: 256 x 1024, 6 layers, 7 million parameters."""
    config = json.loads((tiny_model("qwen3_vl") / "config.json").read_bytes())
    config["text_config"] |= {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
    }
    config["vision_config"]["out_hidden_size"] = 256
    return write_random_model(tmp_path_factory.mktemp("wide"), config)


@pytest.mark.parametrize(
    ("dtype", "checkpointing", "group_size"),
    [("float32", False, 2), ("bfloat16", True, 4)],
)
def test_the_plan_holds_the_measured_peak_and_at_most_a_fifth_more(
    model: Path,
    clips: list[Clip],
    make_recipe: Callable[..., Recipe],
    make_worker: Callable[..., LearnerWorker],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    checkpointing: bool,
    group_size: int,
) -> None:
    recipe = make_recipe(
        f"model.path={model}",
        f"model.dtype={dtype}",
        f"learner.gradient_checkpointing={checkpointing}",
        f"rollout.max_response_tokens={ANSWER}",
        f"train.prompts_per_step={NUM_ROWS}",
        f"train.group_size={group_size}",
        "learner.micro_batch_tokens=1500",
    )
    worker = make_worker(recipe, model)
    rows = noise_rows(
        worker.inputs,
        clips[-1],
        recipe.video,
        num_rows=NUM_ROWS,
        group_size=group_size,
        answer_tokens=ANSWER,
    )
    counted = PeakBytes()
    for parameter in worker.policy.model.parameters():
        counted.add(parameter)
    with counted:
        worker.update(rows, 1)  # the optimiser makes its state, which stays
        counted.peak = 0
        worker.update(rows, 2)

    encoded = worker.encoder.encode(rows[0])
    num_visual = int((encoded.input_ids == worker.inputs.video_pad_id).sum())
    prompt = PromptSize(num_visual, len(encoded.input_ids) - num_visual)
    monkeypatch.setattr(activations, "SHORT_ANSWER", ANSWER)  # all answers here are of one length
    plan = plan_learner(recipe, read_architecture(str(model)), prompt)
    assert 0.95 < plan.num_bytes / counted.peak < 1.2


def test_inputs_agree_with_the_planned_grid(model: Path, clips: list[Clip]) -> None:
    """The architecture's pixels and patches are those of the processor."""
    inputs, sizes = QwenVLInputs(model), read_architecture(str(model))
    assert sizes.frame_factor == inputs.factor
    assert sizes.temporal_patch_size == inputs.temporal_patch_size
