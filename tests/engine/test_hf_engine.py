"""The transformers engine: the same protocol, the same log-probabilities, nothing shared but it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import ConfigError, LoraConfig, RolloutConfig, VideoConfig, load_recipe
from actrep_ray.counting.by_model import ModelCounter
from actrep_ray.counting.votes import Vote
from actrep_ray.models.lora import adapter_weights, add_adapters, merged_weights
from actrep_ray.models.qwen_vl import load_model
from actrep_ray.models.tiny import FAMILIES
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.hf_engine import HfEngine, nucleus
from data_prep.schema import Clip

MAX_GAP = 1e-4
SETTINGS = SamplingSettings(max_tokens=8, group_size=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_one_full_forward(
    family: str,
    checkpoint: Any,
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Any,
    make_image_prompts: Any,
    make_reference: Any,
) -> None:
    is_tied = family != "qwen2_vl"
    paths = [checkpoint(family, seed, is_tied) for seed in (0, 1)]
    engine = HfEngine(paths[0], rollout, video, device="cpu", seed=0)
    clips, images = make_prompts(engine.inputs), make_image_prompts(engine.inputs)
    prompts = [*clips, *images]
    prompts += [  # an image before an image, and before a clip
        replace(last, prompt_id=f"several-{i}", plan=replace(last.plan, before=(images[i].plan,)))
        for i, last in enumerate((images[1], clips[3]))
    ]
    for version, path in enumerate(paths):
        if version:
            engine.load_weights(load_file(path / "model.safetensors"), policy_version=version)
        groups = engine.generate(prompts, SETTINGS)
        assert [group.prompt for group in groups] == prompts
        for group in groups:
            assert make_reference(path).gap([group]) < MAX_GAP
            assert {answer.policy_version for answer in group.rollouts} == {version}


def test_a_checkpoint_is_asked_without_the_adapters_of_its_recipe(
    checkpoint: Any, video: VideoConfig, clips: list[Clip]
) -> None:
    """They are merged into it; and another model may lack the layers that the recipe names."""
    settings = ["stage=grpo", "rollout.engine=hf", "rollout.max_response_tokens=8", "device=cpu"]
    settings += ["model.dtype=float32", f"video.cache_dir={video.cache_dir}"]
    lora = ["model.lora.rank=4", "model.lora.target_modules=[elsewhere]"]
    model, found = checkpoint("qwen3_vl", 0, True), []
    for more in ([], lora):
        with ModelCounter(model, load_recipe(None, [*settings, *more])) as counter:
            found += counter.votes(clips[:1])
    assert found[0] == found[1]
    assert isinstance(found[0], Vote)
    assert found[0].shown.text


def test_adapters_alone_are_the_merged_model(
    checkpoint: Any, rollout: RolloutConfig, video: VideoConfig, make_prompts: Any
) -> None:
    path = checkpoint("qwen3_vl", 0, True)
    cfg = LoraConfig(rank=4, alpha=8, components=("merger", "language_model"), send="adapter",
                     target_modules=("q_proj", "down_proj", "linear_fc1"))  # fmt: skip
    model = load_model(path, dtype="float32")
    add_adapters(model, cfg)
    torch.manual_seed(0)
    adapter = {
        name: torch.randn_like(weight) * 0.1 for name, weight in adapter_weights(model, torch.clone)
    }
    model.load_state_dict(adapter, strict=False)
    with torch.no_grad():
        merged = dict(merged_weights(model, torch.clone, torch.clone))
    plain = HfEngine(path, rollout, video, device="cpu", seed=0)
    engine = HfEngine(path, rollout, video, device="cpu", seed=0, lora=cfg)
    prompts = make_prompts(engine.inputs)[:3]
    base, before = plain.generate(prompts, SETTINGS), engine.generate(prompts, SETTINGS)
    engine.load_weights(adapter, policy_version=1)
    plain.load_weights(merged, policy_version=1)
    expected, found = plain.generate(prompts, SETTINGS), engine.generate(prompts, SETTINGS)
    for wanted, groups in ((base, before), (expected, found)):
        for a, b in zip(wanted, groups, strict=True):
            for i in range(2):
                np.testing.assert_allclose(
                    a.rollouts[i].rollout_log_probs, b.rollouts[i].rollout_log_probs, atol=MAX_GAP
                )
    with pytest.raises(ValueError, match=r"expected adapters alone"):
        engine.load_weights(merged, policy_version=2)
    with pytest.raises(ValueError, match=r"1 weights were not given"):
        engine.load_weights(dict(list(adapter.items())[1:]), policy_version=2)


def test_batching_and_order_do_not_change_greedy_answers(
    checkpoint: Any, rollout: RolloutConfig, video: VideoConfig, make_prompts: Any
) -> None:
    path = checkpoint("qwen3_vl", 0, True)
    engine = HfEngine(path, rollout, video, device="cpu", seed=0)
    one_by_one = HfEngine(
        path, rollout.model_copy(update={"max_num_seqs": 1}), video, device="cpu", seed=0
    )
    prompts = make_prompts(engine.inputs)[2:]
    greedy = SamplingSettings(max_tokens=8, temperature=0.0)
    together = engine.generate(prompts, greedy)
    alone = one_by_one.generate(prompts[::-1], greedy)[::-1]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.rollouts[0].token_ids, b.rollouts[0].token_ids)


def test_refuses_wrong_weights(checkpoint: Any, rollout: RolloutConfig, video: VideoConfig) -> None:
    path = checkpoint("qwen3_vl", 0, True)
    engine = HfEngine(path, rollout, video, device="cpu", seed=0)
    weights = load_file(path / "model.safetensors")
    name = "model.language_model.norm.weight"
    with pytest.raises(ValueError, match="no such weight"):
        engine.load_weights(weights | {"model.language_model.other": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match=r"1 weights were not given.*norm"):
        engine.load_weights({n: w for n, w in weights.items() if n != name}, 1)
    with pytest.raises(ValueError, match=r"norm.weight: got shape \(2,\)"):
        engine.load_weights(weights | {name: torch.zeros(2)}, 1)
    assert engine.policy_version == 0


def test_refuses_more_than_one_device(
    checkpoint: Any, rollout: RolloutConfig, video: VideoConfig
) -> None:
    two = rollout.model_copy(update={"tensor_parallel_size": 2})
    with pytest.raises(ConfigError, match="tensor_parallel_size=2"):
        HfEngine(checkpoint("qwen3_vl", 0, True), two, video, device="cpu", seed=0)


def test_nucleus_keeps_the_likeliest_tokens() -> None:
    # Probabilities 0.5, 0.3, 0.15, 0.05: 0.75 is reached by the first two, 0.8 as well.
    logits = torch.log(torch.tensor([[0.05, 0.5, 0.15, 0.3]]))
    assert torch.isfinite(nucleus(logits, 0.75)).tolist() == [[False, True, False, True]]
    assert torch.isfinite(nucleus(logits, 0.4)).tolist() == [[False, True, False, False]]
    assert torch.isfinite(nucleus(logits, 0.99)).tolist() == [[True, True, True, True]]
    assert torch.equal(nucleus(logits, 1.0), logits)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        replace(SETTINGS, max_tokens=0)
    with pytest.raises(ValueError, match=r"top_p=1.5"):
        replace(SETTINGS, top_p=1.5)
    with pytest.raises(ValueError, match="answers would be equal"):
        replace(SETTINGS, temperature=0.0)
