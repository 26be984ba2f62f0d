"""A frozen vision tower is run once for each clip, and every number stays what it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model
from actrep_ray.models.tiny import FAMILIES
from actrep_ray.models.tower import FrozenTower
from tests.numerics.processes import run_ranks

RANK = Path(__file__).with_name("tower_rank.py")
GRPO = (
    "stage=grpo",
    "train.prompts_per_step=4",
    "train.group_size=2",
    "train.max_log_prob_gap=99",
    "algorithm.kl_coef=0.1",
    "learner.lr=1e-2",
    "learner.micro_batch_tokens=400",
)
TRAINED = {
    "frozen": ("model.freeze=[vision_tower]",),
    "frozen with its merger": ("model.freeze=[vision_tower, merger]",),
    "adapters": ("model.lora.rank=4", "model.lora.components=[merger, language_model]"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_each_clip_are_those_of_all_clips(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    """By the library's own forward pass over pixels, with all outputs that decoders read."""
    model = load_model(tiny_model(family), dtype="float32")
    visual = model.model.visual
    if hasattr(visual, "deepstack_visual_indexes"):
        assert visual.deepstack_visual_indexes == [len(visual.blocks) - 1]
        visual.deepstack_visual_indexes = [0]  # as in published models, not the last block's
    tower = FrozenTower(model)
    grids = torch.tensor([[2, 4, 8], [3, 8, 4], [1, 12, 12]])
    sizes = grids.prod(dim=1).tolist()
    width = visual.patch_embed.proj.weight[0].numel()
    pixels = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = visual(pixels, grids)
        clips = zip(pixels.split(sizes), grids, strict=True)
        features = torch.cat([tower.features(one, grid[None]) for one, grid in clips], dim=1)
        with tower.showing(features) as shown:
            found = visual(shown, grids)
        again = visual(pixels, grids)
    assert tower.num_patches == sum(sizes)
    assert torch.equal(again.pooler_output, expected.pooler_output)
    assert found.pooler_output.std() > 0.01
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-6, atol=1e-6)
    taps = getattr(expected, "deepstack_features", [])
    assert len(taps) == len(features) - 1
    for mine, theirs in zip(getattr(found, "deepstack_features", []), taps, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "trained"),
    [*((family, "frozen") for family in FAMILIES), ("qwen3_vl", "adapters"),
     ("qwen2_5_vl", "frozen with its merger")],
)  # fmt: skip
def test_training_is_the_same_and_computes_each_clip_once(
    family: str,
    trained: str,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model = tiny_model(family)
    rows = make_rows(QwenVLInputs(model), 4, 2)
    found, num_patches = {}, {}
    settings = (*GRPO, *TRAINED[trained], f"video.cache_dir={tmp_path / 'frames'}")
    for caches in ("true", "false"):
        recipe = make_recipe(*settings, f"learner.cache_features={caches}")
        worker = make_worker(recipe, model)
        seen = count_patches(worker)
        before = {name: weight.clone() for name, weight in worker.iter_weights()}
        metrics = [worker.update(rows, step) for step in (1, 2)]
        scored = worker.log_probs(rows) + worker.log_probs(rows, reference=True)
        weights = dict(worker.iter_weights())
        found[caches] = (metrics, np.concatenate([v for one in scored for v in one]), weights)
        num_patches[caches] = seen[0]
    grids = {row.plan.hash: worker.encoder.encode(row).grid_thw.prod().item() for row in rows}
    assert len(grids) == 4
    # Each update: the reference, and the policy that trains; then both are scored.
    assert num_patches == {"true": sum(grids.values()), "false": 6 * sum(grids.values())}
    (kept, scores, weights), (plain, expected, expected_weights) = found["true"], found["false"]
    for mine, theirs in zip(kept, plain, strict=True):
        for key in ("loss", "grad_norm", "ref_kl", "entropy"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-6), key
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert weights.keys() == expected_weights.keys() == before.keys()
    moved = {component_of(name) for name, w in weights.items() if not torch.equal(w, before[name])}
    assert moved == {"language_model"} | ({"merger"} if trained == "frozen" else set())
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("fsdp2", marks=pytest.mark.lengthy),
        pytest.param("deepspeed", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_as_one_does_with_pixels(
    strategy: str,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Each rank holds the whole tower, and computes its own rows without the other."""
    model = tiny_model()
    rows = make_rows(QwenVLInputs(model), 4, 2)
    settings = (*GRPO, *TRAINED["frozen"], f"model.path={model}")
    settings = (*settings, f"video.cache_dir={tmp_path / 'frames'}")
    alone = make_worker(make_recipe(*settings, "learner.cache_features=false"), model)
    losses = [alone.update(rows, step)["loss"] for step in (1, 2)]
    expected = {name: weight.clone() for name, weight in alone.iter_weights()}
    split = ("learner.num_workers=2", f"learner.strategy={strategy}")
    zero = ("learner.zero_stage=2",) if strategy == "deepspeed" else ()
    recipe = make_recipe(*settings, *split, *zero)
    job = {"recipe": recipe, "model": str(model), "steps": [rows, rows]}
    run_ranks(RANK, job, tmp_path / "job.pickle", 2)
    found = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    grids = [alone.encoder.encode(row).grid_thw.prod().item() for row in rows]
    assert sum(int(one["patches"]) for one in found) == sum(grids)
    assert min(int(one["patches"]) for one in found) > 0
    assert found[0]["losses"].tolist() == pytest.approx(losses, rel=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(found[0][name], weight, rtol=0, atol=2e-4)


def test_a_question_without_a_clip_lies_beside_features(
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
) -> None:
    """As the text lists of SFT do."""
    model = tiny_model()
    clip, other = make_rows(QwenVLInputs(model), 2, 1)
    rows = [clip, replace(other, plan=None, question="What is this list's total?")]
    losses = []
    for caches in ("true", "false"):
        settings = ("stage=sft", "sft.clips_per_step=2", "model.freeze=[vision_tower]")
        recipe = make_recipe(*settings, f"learner.cache_features={caches}")
        losses.append(make_worker(recipe, model).sft_step(rows)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def count_patches(worker: Any) -> list[int]:
    """How many patches go through first blocks of towers: of the policy and of the reference."""
    seen = [0]
    policies = [worker.policy, worker.reference]
    blocks = {
        id(p.model.model.visual.blocks[0]): p.model.model.visual.blocks[0]
        for p in policies
        if hasattr(p, "model")
    }
    for block in blocks.values():
        block.register_forward_pre_hook(lambda _, args: seen.__setitem__(0, seen[0] + len(args[0])))
    return seen


def test_a_tower_that_is_trained_runs_each_time(
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
) -> None:
    model = tiny_model()
    adapters = ("rank=4", "components=[vision_tower]", "target_modules=[qkv]")
    for settings in ((), tuple(f"model.lora.{setting}" for setting in adapters)):
        worker = make_worker(make_recipe(*GRPO, *settings), model)
        assert worker.encoder.features is None
    [row] = make_rows(QwenVLInputs(model), 1, 1)
    assert len(worker.encoder.encode(row).pixel_values) > 0


def test_a_reference_with_another_tower_is_refused(
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model, other = tiny_model(), tmp_path / "other"
    changed = load_model(model, dtype="float32")
    with torch.no_grad():
        changed.model.visual.blocks[0].norm1.weight[3] += 0.5
    changed.save_pretrained(other)
    for file in model.iterdir():
        if not (other / file.name).exists():
            (other / file.name).write_bytes(file.read_bytes())
    recipe = make_recipe(*GRPO, "model.freeze=[vision_tower]")
    with pytest.raises(ConfigError, match=r"learner\.cache_features: .*differ"):
        make_worker(recipe, other, base_path=model)
