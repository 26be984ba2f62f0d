"""How much of a small change of adapters in bfloat16 reaches an engine, in log-probabilities.

The engine computes in float32 with what a learner in bfloat16 sends, so that only what is sent
matters: in bfloat16 a first step's change is smaller than the noise of computing. It is compared
with stock transformers and the adapter that the learner saves in float32, through peft.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from actrep_ray.config import Recipe, RolloutConfig, VideoConfig
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.pretrain.motion import QUESTIONS
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.worker import start_engine
from data_prep.schema import Clip

SETTINGS = SamplingSettings(max_tokens=32, group_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped base with weights that bfloat16 holds exactly."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(base_model_folder(), folder)
    file = folder / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def recipe(model: Path, rollout: RolloutConfig, video: VideoConfig) -> Recipe:
    """As the LoRA recipes have it: `model.lora.send` is not set."""
    return Recipe.model_validate(
        {
            "device": "cpu",
            "model": {"path": str(model), "lora": {"rank": 8, "alpha": 16}},
            "train": {"prompts_per_step": 4, "group_size": SETTINGS.group_size},
            "learner": {"lr": 1e-5},
        }
    ).model_copy(
        update={
            "rollout": rollout.model_copy(update={"engine": "hf"}),
            "video": video.model_copy(update={"fps": 4.0, "max_pixels": 4096}),
        }
    )


@pytest.fixture(scope="module")
def prompts(model: Path, recipe: Recipe, clips: list[Clip]) -> list[Prompt]:
    inputs = QwenVLInputs(model)
    return [
        Prompt(f"{kind}-{clip.id}", clip.id, QUESTIONS[kind], inputs.plan(clip, recipe.video))
        for kind in ("how", "at")
        for clip in clips
    ]


def with_section(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    changed = getattr(recipe, section).model_copy(update=changes)
    return recipe.model_copy(update={section: changed})


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=pytest.mark.engine)])
def test_all_of_the_first_step_reaches_an_engine(
    name: str,
    recipe: Recipe,
    prompts: list[Prompt],
    make_reference: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    recipe = with_section(recipe, "rollout", engine=name)
    share = share_after_one_step(recipe, prompts, make_reference, tmp_path)
    assert share == pytest.approx(1, abs=0.01)


def test_merged_weights_lose_most_of_the_first_step(
    recipe: Recipe, prompts: list[Prompt], make_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    lora = recipe.model.lora.model_copy(update={"send": "merged"})
    recipe = with_section(recipe, "model", lora=lora)
    assert share_after_one_step(recipe, prompts, make_reference, tmp_path) < 0.5


def share_after_one_step(
    recipe: Recipe,
    prompts: Sequence[Prompt],
    make_reference: Callable[[Path], Any],
    folder: Path,
) -> float:
    """<engine's change, true change> / <true change, true change> of log-probabilities."""
    base = Path(recipe.model.path)
    learner = LearnerWorker(recipe, str(base), rank=0, world_size=1, total_steps=10)
    learner.setup("127.0.0.1", 0)
    engine = start_engine(with_section(recipe, "model", dtype="float32"), base)
    try:
        engine.load_weights(dict(learner.iter_weights()), 0)
        before = engine.generate(prompts, SETTINGS)
        learner.update(rows_of(before), 1)
        engine.load_weights(dict(learner.iter_weights()), 1)
        after = engine.generate(prompts, SETTINGS)
        learner.save_state(folder / "state")
    finally:
        engine.shutdown()
        learner.shutdown()
    reference = make_reference(base)
    old = [reference.log_probs(group) for group in before]
    adapted: Any = PeftModel.from_pretrained(reference.model, str(folder / "state" / "adapter"))
    reference.model = adapted.merge_and_unload().eval()
    new = [reference.log_probs(group) for group in before]
    found, expected = [], []
    for i, (group, again) in enumerate(zip(before, after, strict=True)):
        for k, (answer, other) in enumerate(zip(group.rollouts, again.rollouts, strict=True)):
            num = num_equal(answer.token_ids, other.token_ids)
            found.append(other.rollout_log_probs[:num] - answer.rollout_log_probs[:num])
            expected.append(new[i][k][:num] - old[i][k][:num])
    engine_change, change = np.concatenate(found), np.concatenate(expected)
    assert len(change) > 200  # the draws are the same: hardly an answer has become another
    assert 1e-3 < np.sqrt(np.mean(change**2)) < 0.1
    return float(engine_change @ change / (change @ change))


def num_equal(first: np.ndarray, second: np.ndarray) -> int:
    """Tokens until the first that differs."""
    num = min(len(first), len(second))
    differs = np.flatnonzero(first[:num] != second[:num])
    return int(differs[0]) if len(differs) else num


def rows_of(groups: Sequence[RolloutGroup]) -> list[LearnerRow]:
    signs = np.where(np.arange(SETTINGS.group_size) % 2, -1.0, 1.0).astype(np.float32)
    return [row_of(replace(group, advantages=signs)) for group in groups]
