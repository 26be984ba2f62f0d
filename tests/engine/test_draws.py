"""What is drawn follows from seed, prompt, answer and position: both engines draw the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from actrep_ray.config import RolloutConfig, VideoConfig
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.pretrain.motion import QUESTIONS
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import QwenVLEngine, SamplingSettings
from actrep_ray.rollout.hf_engine import HfEngine
from actrep_ray.rollout.vllm_engine import VllmEngine

pytestmark = pytest.mark.engine

SETTINGS = SamplingSettings(max_tokens=24, group_size=3)
MAX_GAP = 1e-4  # of log-probabilities: batches of another size round otherwise


@pytest.fixture(scope="module")
def folder() -> Path:
    return base_model_folder()


@pytest.fixture(scope="module")
def vllm(folder: Path, rollout: RolloutConfig, video: VideoConfig) -> Any:
    engine = VllmEngine(folder, rollout, video, device="cpu", seed=3)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def prompts(vllm: VllmEngine, make_prompts: Any) -> list[Prompt]:
    """48 of them, more tokens than one batch of vLLM's takes: some are computed in parts."""
    asked = make_prompts(vllm.inputs)
    return [
        replace(prompt, prompt_id=f"{i:02d}-{prompt.prompt_id}", question=QUESTIONS["how"])
        for i in range(8)
        for prompt in asked
    ]


def tokens(groups: Sequence[RolloutGroup]) -> list[list[int]]:
    return [answer.token_ids.tolist() for group in groups for answer in group.rollouts]


def check_equal(first: Sequence[RolloutGroup], second: Sequence[RolloutGroup]) -> None:
    """Equal tokens, and log-probabilities but for rounding."""
    assert tokens(first) == tokens(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.rollouts, other.rollouts, strict=True):
            np.testing.assert_allclose(a.rollout_log_probs, b.rollout_log_probs, atol=MAX_GAP)


def check_nearly_equal(first: Sequence[RolloutGroup], second: Sequence[RolloutGroup]) -> None:
    """Equal tokens but in one answer: a draw may lie between two roundings of the same sum.

    From there on that answer is other text; up to there it is held to what the others are.
    """
    pairs = [
        (a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.rollouts, other.rollouts, strict=True)
    ]
    parted = 0
    for a, b in pairs:
        length = min(len(a.token_ids), len(b.token_ids))
        is_same = a.token_ids[:length] == b.token_ids[:length]
        same = length if is_same.all() else int(is_same.argmin())
        parted += same < length
        np.testing.assert_allclose(
            a.rollout_log_probs[:same], b.rollout_log_probs[:same], atol=MAX_GAP
        )
    assert parted <= 1


def test_one_at_a_time_as_all_together(vllm: VllmEngine, prompts: list[Prompt]) -> None:
    groups = vllm.generate(prompts, SETTINGS)
    assert sum(group.num_prompt_tokens for group in groups) > 4096
    assert len({tuple(answer) for answer in tokens(groups)}) > 100  # hardly any two are equal
    vllm.forget_prompts()
    alone = [vllm.generate([prompt], SETTINGS)[0] for prompt in prompts[::-4]]
    check_equal(alone, groups[::-4])
    one_answer = replace(SETTINGS, group_size=1)
    for group, first in zip(groups, vllm.generate(prompts, one_answer), strict=True):
        assert tokens([first]) == tokens([group])[:1]


def test_the_other_engine_draws_the_same(
    vllm: VllmEngine,
    folder: Path,
    rollout: RolloutConfig,
    video: VideoConfig,
    prompts: list[Prompt],
) -> None:
    hf = HfEngine(folder, rollout, video, device="cpu", seed=3)
    for settings in (SETTINGS, replace(SETTINGS, temperature=0.7), replace(SETTINGS, top_p=0.6)):
        of_hf, of_vllm = hf.generate(prompts[:12], settings), vllm.generate(prompts[:12], settings)
        check_nearly_equal(of_hf, of_vllm)


@pytest.mark.parametrize("name", ["vllm", "hf"])
def test_other_ids_and_other_seeds_have_other_draws(
    name: str,
    vllm: VllmEngine,
    folder: Path,
    rollout: RolloutConfig,
    video: VideoConfig,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hf = HfEngine(folder, rollout, video, device="cpu", seed=3)
    engine: QwenVLEngine = vllm if name == "vllm" else hf
    first = tokens(engine.generate(prompts[:4], SETTINGS))
    renamed = [replace(prompt, prompt_id=f"x-{prompt.prompt_id}") for prompt in prompts[:4]]
    others = [tokens(engine.generate(renamed, SETTINGS))]
    monkeypatch.setattr(engine, "_seed", 4)
    others.append(tokens(engine.generate(prompts[:4], SETTINGS)))
    for other in others:
        assert sum(a == b for a, b in zip(first, other, strict=True)) <= 1
    monkeypatch.undo()
    again = [replace(prompt, attempt=2) for prompt in prompts[:4]]
    assert tokens(engine.generate(again, SETTINGS)) == first


def test_answers_go_on_with_their_draws_when_weights_are_replaced(
    vllm: VllmEngine, folder: Path, prompts: list[Prompt]
) -> None:
    """vLLM computes what was at work again; the same weights must then give the same answers."""
    weights = load_file(folder / "model.safetensors")
    undisturbed = vllm.generate(prompts, SETTINGS)
    vllm.add(prompts, SETTINGS)
    groups = []
    for number in range(400):
        groups += vllm.step()
        if number in (3, 8, 15):
            vllm.load_weights(weights, number)
        if not vllm.num_unfinished:
            break
    assert max(r.last_policy_version or 0 for g in groups for r in g.rollouts) == 15
    by_id = {group.prompt.prompt_id: group for group in groups}
    check_equal([by_id[prompt.prompt_id] for prompt in prompts], undisturbed)


def test_tokens_are_as_frequent_as_they_are_probable(
    checkpoint: Any, rollout: RolloutConfig, video: VideoConfig, make_prompts: Any
) -> None:
    """First tokens of 4,096 answers to one question: chi-square over those to be expected often."""
    engine = HfEngine(checkpoint("qwen3_vl", 0, True), rollout, video, device="cpu", seed=0)
    [prompt] = make_prompts(engine.inputs)[4:5]
    asked = [replace(prompt, prompt_id=f"p-{i}") for i in range(64)]
    groups = engine.generate(asked, SamplingSettings(max_tokens=1, group_size=64, temperature=0.5))
    answers = [answer for group in groups for answer in group.rollouts]
    found = Counter(int(answer.token_ids[0]) for answer in answers)
    probability = {int(a.token_ids[0]): np.exp(a.rollout_log_probs[0]) for a in answers}
    expected = {token: len(answers) * p for token, p in probability.items()}
    often = [token for token, number in expected.items() if number >= 8]
    assert len(often) > 20
    chi_square = sum((found[token] - expected[token]) ** 2 / expected[token] for token in often)
    assert abs(chi_square - len(often)) < 3 * np.sqrt(2 * len(often))
