"""Rollout engine and learner compute the same policy, before and after every weight push."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actrep_ray.config import ConfigError, RolloutConfig, VideoConfig
from actrep_ray.models.tiny import FAMILIES
from actrep_ray.records import Prompt, RefusedError, RolloutGroup, RolloutStatus
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.vllm_engine import VllmEngine

pytestmark = pytest.mark.engine

MAX_GAP = 1e-4
SETTINGS = SamplingSettings(max_tokens=12, group_size=2)
CASES = [(family, is_tied) for family in FAMILIES for is_tied in (True, False)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(
    request: pytest.FixtureRequest, checkpoint: Any, rollout: RolloutConfig, video: VideoConfig
) -> Iterator[tuple[Callable[[int], Path], VllmEngine]]:
    """Checkpoints by seed, and an engine that holds the one of seed 0."""
    family, is_tied = request.param
    takes_both = rollout.model_copy(update={"takes_images": True, "max_images": 2})
    engine = VllmEngine(checkpoint(family, 0, is_tied), takes_both, video, device="cpu", seed=0)
    yield lambda seed: checkpoint(family, seed, is_tied), engine
    engine.shutdown()


def test_agrees_before_and_after_every_push(
    case: Any, make_reference: Any, make_prompts: Any
) -> None:
    checkpoint, engine = case
    prompts = make_prompts(engine.inputs)
    assert {prompt.plan.num_frames % 2 for prompt in prompts} == {0, 1}
    references = [make_reference(checkpoint(seed)) for seed in (0, 1)]
    for version, seed in enumerate((0, 1, 0)):
        if version:
            push(engine, checkpoint(seed), version)
        groups = engine.generate(prompts, SETTINGS)
        check_groups(groups, prompts, version)
        for group in groups:
            assert references[seed].gap([group]) < MAX_GAP
        # The comparison can fail: other weights and other frames give other log-probabilities.
        assert references[1 - seed].gap(groups) > 100 * MAX_GAP
        assert references[seed].gap([with_frozen_video(groups[1])]) > 10 * MAX_GAP


def test_agrees_about_images_beside_videos(
    case: Any, make_reference: Any, make_prompts: Any, make_image_prompts: Any
) -> None:
    checkpoint, engine = case
    push(engine, checkpoint(0), 3)
    images = make_image_prompts(engine.inputs)
    prompts = [images[0], make_prompts(engine.inputs)[0], *images[1:]]
    groups = engine.generate(prompts, SETTINGS)
    check_groups(groups, prompts, 3)
    reference = make_reference(checkpoint(0))
    for group in groups:
        assert reference.gap([group]) < MAX_GAP
    # The comparison can fail: another image of the same size gives other log-probabilities.
    swapped = replace(groups[0].prompt, plan=images[2].plan)
    assert reference.gap([replace(groups[0], prompt=swapped)]) > 10 * MAX_GAP


def test_agrees_about_several_in_one_prompt(
    case: Any, make_reference: Any, make_prompts: Any, make_image_prompts: Any
) -> None:
    """Two images; an image before a video."""
    checkpoint, engine = case
    push(engine, checkpoint(0), 3)
    wide, tall, other = (prompt.plan for prompt in make_image_prompts(engine.inputs))
    clip = make_prompts(engine.inputs)[3]
    prompts = [
        Prompt("two", "two", "Which is wide?", replace(wide, before=(tall,))),
        replace(clip, prompt_id="both", plan=replace(clip.plan, before=(wide,))),
        clip,
    ]
    groups = engine.generate(prompts, SETTINGS)
    check_groups(groups, prompts, 3)
    reference = make_reference(checkpoint(0))
    for group in groups:
        assert reference.gap([group]) < MAX_GAP
    # The comparison can fail: other images before them give other log-probabilities.
    for group, plan in (
        (groups[0], replace(tall, before=(wide,))),  # the same two the other way round
        (groups[1], replace(clip.plan, before=(other,))),
    ):
        changed = replace(group, prompt=replace(group.prompt, plan=plan))
        assert reference.gap([changed]) > 10 * MAX_GAP
    with pytest.raises(ConfigError, match=r"'two' shows 3 .*room for 2 .*rollout\.max_images=3"):
        engine.request(replace(prompts[0], plan=replace(wide, before=(tall, other))))


def test_follows_the_sampling_settings(case: Any, make_reference: Any, make_prompts: Any) -> None:
    checkpoint, engine = case
    push(engine, checkpoint(0), 3)
    prompts = make_prompts(engine.inputs)[3:5]
    reference = make_reference(checkpoint(0))
    cool = engine.generate(prompts, replace(SETTINGS, temperature=0.5))
    assert reference.gap(cool, temperature=0.5) < MAX_GAP
    greedy = SamplingSettings(max_tokens=12, temperature=0.0)
    first, second = engine.generate(prompts, greedy), engine.generate(prompts, greedy)
    assert texts(first) == texts(second)
    assert texts(engine.generate(prompts, SETTINGS)) == texts(engine.generate(prompts, SETTINGS))
    for group in [*cool, *first]:
        for answer in group.rollouts:
            assert not set(answer.token_ids.tolist()) & set(engine.inputs.visual_token_ids)
            has_ended = answer.token_ids[-1] == engine.inputs.end_ids[0]
            assert (answer.status is RolloutStatus.STOPPED) == has_ended


def test_refuses_what_does_not_fit(case: Any, make_prompts: Any) -> None:
    _, engine = case
    prompts = make_prompts(engine.inputs)
    with pytest.raises(RefusedError, match=r"clip .* exceed rollout.max_model_len=1024"):
        engine.generate(prompts[:1], SamplingSettings(max_tokens=1020))
    assert len(engine.generate(prompts[:1], SETTINGS)) == 1


def test_refuses_incomplete_weights(case: Any, make_reference: Any, make_prompts: Any) -> None:
    checkpoint, engine = case
    weights = load_file(checkpoint(1) / "model.safetensors")
    norm = next(name for name in weights if name.endswith("layers.0.input_layernorm.weight"))
    partial = {name: weight for name, weight in weights.items() if name != norm}
    with pytest.raises(ValueError, match=r"1 weights .*input_layernorm"):
        engine.load_weights(partial, policy_version=8)
    engine.load_weights(weights, policy_version=9)
    groups = engine.generate(make_prompts(engine.inputs)[:2], SETTINGS)
    check_groups(groups, make_prompts(engine.inputs)[:2], 9)
    assert make_reference(checkpoint(1)).gap(groups) < MAX_GAP


def push(engine: VllmEngine, checkpoint: Path, version: int) -> None:
    engine.load_weights(load_file(checkpoint / "model.safetensors"), policy_version=version)
    assert engine.policy_version == version


def check_groups(groups: list[RolloutGroup], prompts: list[Prompt], version: int) -> None:
    assert [group.prompt for group in groups] == prompts
    for group in groups:
        assert len(group.rollouts) == SETTINGS.group_size
        assert {answer.policy_version for answer in group.rollouts} == {version}


def with_frozen_video(group: RolloutGroup) -> RolloutGroup:
    """The same answers to a clip that shows its first frame all the time."""
    plan = group.prompt.plan
    frozen = replace(plan, times_s=plan.times_s[:1] * plan.num_frames)
    return replace(group, prompt=replace(group.prompt, plan=frozen))


def texts(groups: list[RolloutGroup]) -> list[list[int]]:
    return [answer.token_ids.tolist() for group in groups for answer in group.rollouts]
