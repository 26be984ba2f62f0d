"""What `Engine` promises, asked of every engine: transformers, vLLM, and the simulated one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from simulated_engine import END_ID, SimulatedEngine
from simulated_learner import Latency

from actrep_ray.config import RolloutConfig, VideoConfig
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.pretrain.motion import QUESTIONS
from actrep_ray.records import Prompt, RefusedError, RolloutGroup, RolloutStatus
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.rollout.hf_engine import HfEngine
from actrep_ray.rollout.vllm_engine import VllmEngine

SETTINGS = SamplingSettings(max_tokens=6, group_size=3)
GREEDY = SamplingSettings(max_tokens=6, temperature=0.0)


@dataclass
class Case:
    """An engine, what to ask of it and two sets of weights that it can be given.

    Attributes:
        engine: Started.
        prompts: Four, to which answers can be short.
        weights: Different ones, under the same names.
        end_id: The token that ends an answer.
    """

    engine: Engine
    prompts: list[Prompt]
    weights: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
    end_id: int


@pytest.fixture(scope="module")
def make_case(
    video: VideoConfig, rollout: RolloutConfig, make_prompts: Any
) -> Callable[[str], Case]:
    """A case by the name of its engine.

    The model is the shipped one, which answers the question that it was pretrained on and ends.
    """

    def make(name: str) -> Case:
        folder = base_model_folder()
        inputs = QwenVLInputs(folder)
        asked = [replace(prompt, question=QUESTIONS["how"]) for prompt in make_prompts(inputs)[:4]]
        weights = load_file(folder / "model.safetensors")
        if name == "simulated":
            latency = Latency(group_s=0.004, width=2, update_s=0.0, weights_mib=1)
            return Case(SimulatedEngine(latency, 0), asked, (weights, scaled(weights)), END_ID)
        make_engine = VllmEngine if name == "vllm" else HfEngine
        engine = make_engine(folder, rollout, video, device="cpu", seed=0)
        return Case(engine, asked, (weights, scaled(weights)), inputs.end_ids[0])

    return make


@pytest.fixture(
    scope="module", params=["hf", "simulated", pytest.param("vllm", marks=pytest.mark.engine)]
)
def started(request: pytest.FixtureRequest, make_case: Any) -> Iterator[Case]:
    case = make_case(request.param)
    yield case
    case.engine.shutdown()
    case.engine.shutdown()  # the second time it does nothing


@pytest.fixture
def case(started: Case) -> Case:
    """The engine with nothing to do, and its first weights as version 0."""
    started.engine.clear()
    started.engine.load_weights(started.weights[0], 0)
    return started


def scaled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with every norm, and with that every answer, another one."""
    return {n: w * 1.25 if n.endswith("norm.weight") else w.clone() for n, w in weights.items()}


def finish(engine: Engine) -> list[RolloutGroup]:
    groups = []
    while engine.num_unfinished:
        groups += engine.step()
    return groups


def ids(groups: Sequence[RolloutGroup]) -> list[str]:
    return sorted(group.prompt.prompt_id for group in groups)


def tokens(groups: Sequence[RolloutGroup]) -> list[list[int]]:
    return [answer.token_ids.tolist() for group in groups for answer in group.rollouts]


def versions(groups: Sequence[RolloutGroup]) -> set[tuple[int, int | None]]:
    """Of the first and of the last token of every answer."""
    return {(r.policy_version, r.last_policy_version) for group in groups for r in group.rollouts}


def test_every_method_has_to_be_there() -> None:
    methods = {name: getattr(HfEngine, name) for name in Engine.__abstractmethods__}
    assert {"add", "step", "clear", "replace_weights", "verify_weights", "shutdown"} < set(methods)
    type("Whole", (Engine,), methods)(1024)
    for missing in methods:
        rest = {name: method for name, method in methods.items() if name != missing}
        with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
            type("Partial", (Engine,), rest)(1024)


def test_groups_are_whole_and_in_order(case: Case) -> None:
    groups = case.engine.generate(case.prompts, SETTINGS)
    assert [group.prompt for group in groups] == case.prompts
    for group in groups:
        assert [answer.rollout_id for answer in group.rollouts] == [
            f"{group.prompt.prompt_id}/{i}" for i in range(SETTINGS.group_size)
        ]
        assert group.num_prompt_tokens > 0
        for answer in group.rollouts:
            assert answer.token_ids.dtype == np.int32
            assert answer.rollout_log_probs.dtype == np.float32
            assert answer.token_ids.shape == answer.rollout_log_probs.shape
            assert np.isfinite(answer.rollout_log_probs).all()
            assert (answer.rollout_log_probs <= 0).all()
            assert 1 <= len(answer.token_ids) <= SETTINGS.max_tokens


@pytest.mark.parametrize("max_tokens", [1, 6, 160])
def test_status_says_how_an_answer_ended(case: Case, max_tokens: int) -> None:
    settings = replace(SETTINGS, max_tokens=max_tokens)
    groups = case.engine.generate(case.prompts, settings)
    answers = [answer for group in groups for answer in group.rollouts]
    for answer in answers:
        ends = (answer.token_ids == case.end_id).nonzero()[0].tolist()
        is_stopped = answer.status is RolloutStatus.STOPPED
        assert ends == ([len(answer.token_ids) - 1] if is_stopped else [])
        assert is_stopped or len(answer.token_ids) == max_tokens
    if max_tokens == 160:
        assert any(answer.status is RolloutStatus.STOPPED for answer in answers)
    elif not isinstance(case.engine, SimulatedEngine):  # whose answers are never cut off
        assert any(answer.status is RolloutStatus.TRUNCATED for answer in answers)


def test_answers_carry_the_version_of_their_weights(case: Case) -> None:
    before = case.engine.generate(case.prompts[:2], GREEDY)
    assert versions(before) == {(0, None)}
    case.engine.load_weights(case.weights[1], 5)
    assert case.engine.policy_version == 5
    after = case.engine.generate(case.prompts[:2], GREEDY)
    assert versions(after) == {(5, None)}
    if not isinstance(case.engine, SimulatedEngine):  # whose answers depend on nothing
        for old, new in zip(before, after, strict=True):
            gap = old.rollouts[0].rollout_log_probs[0] - new.rollouts[0].rollout_log_probs[0]
            assert abs(gap) > 1e-3


def test_prompts_and_weights_may_come_while_others_are_answered(case: Case) -> None:
    engine = case.engine
    engine.add(case.prompts[:2], SETTINGS)
    assert engine.num_unfinished == 2
    early = engine.step()
    engine.add(case.prompts[2:], SETTINGS)
    assert engine.num_unfinished == len(case.prompts) - len(early)
    assert versions(early) <= {(0, None)}
    engine.load_weights(case.weights[1], 3)
    late = finish(engine)
    assert ids(early + late) == [prompt.prompt_id for prompt in case.prompts]
    assert versions(late) <= {(0, 3), (3, None)}


def test_nothing_to_do_is_no_error(case: Case) -> None:
    assert case.engine.generate([], SETTINGS) == []
    case.engine.add([], SETTINGS)
    assert case.engine.num_unfinished == 0
    assert case.engine.step() == []


def test_what_is_cleared_is_forgotten(case: Case) -> None:
    case.engine.add(case.prompts, replace(SETTINGS, max_tokens=160))
    early = case.engine.step()
    case.engine.clear()
    assert case.engine.num_unfinished == 0
    assert case.engine.step() == []
    again = [prompt for prompt in case.prompts if prompt.prompt_id not in ids(early)]
    assert [group.prompt for group in case.engine.generate(again, SETTINGS)] == again


def test_answers_repeat_whatever_else_is_asked_and_in_whatever_order(case: Case) -> None:
    for settings in (GREEDY, SETTINGS, replace(SETTINGS, top_p=0.8)):
        first = case.engine.generate(case.prompts, settings)
        assert tokens(case.engine.generate(case.prompts, settings)) == tokens(first)
        for prompt, group in list(zip(case.prompts, first, strict=True))[::-1]:
            assert tokens(case.engine.generate([prompt], settings)) == tokens([group])


def test_a_weight_that_did_not_arrive_is_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_weights = case.engine.replace_weights
    case.engine.load_weights(case.weights[0], 4)
    with monkeypatch.context() as patch:
        patch.setattr(case.engine, "replace_weights", lambda w: replace_weights(scaled(w)))
        with pytest.raises(
            RuntimeError, match=r"(magnitude|located sum) .* in the engine after loading"
        ):
            case.engine.load_weights(case.weights[0], 5)
    with pytest.raises(RuntimeError, match="no weight"):
        case.engine.verify_weights({})
    assert case.engine.policy_version == 4


def test_a_missing_weight_is_refused(case: Case) -> None:
    name = min(name for name in case.weights[0] if name.endswith("norm.weight"))
    rest = {other: weight for other, weight in case.weights[0].items() if other != name}
    with pytest.raises(ValueError, match=r"1 weights .*not given, among them"):
        case.engine.load_weights(rest, 5)
    assert case.engine.policy_version == 0


def test_what_does_not_fit_is_refused_and_nothing_is_left(case: Case) -> None:
    limit = case.engine.max_model_len
    with pytest.raises(RefusedError, match=rf"clip .* exceed rollout.max_model_len={limit}"):
        case.engine.generate(case.prompts, replace(SETTINGS, max_tokens=limit))
    assert case.engine.num_unfinished == 0
    assert len(case.engine.generate(case.prompts[:1], SETTINGS)) == 1


def test_clips_at_fault_are_refused_and_the_others_of_the_call_are_answered(case: Case) -> None:
    """A video that is gone, and a question that makes a prompt too long: vLLM's own refusal."""
    if isinstance(case.engine, SimulatedEngine):
        pytest.skip("it reads neither clips nor questions")
    first, second, *_ = case.prompts
    plan = replace(first.plan, video="/nowhere/a.mp4")
    gone = replace(first, prompt_id="gone", plan=plan)
    long = replace(first, prompt_id="long", question="How many? " * 2000)
    expected = tokens(case.engine.generate([first, second], GREEDY))
    case.engine.add([gone, first, long, second], GREEDY)
    groups = []
    while case.engine.num_unfinished:
        groups += case.engine.step()
    by_id = {group.prompt.prompt_id: group for group in groups}
    assert tokens([by_id[first.prompt_id], by_id[second.prompt_id]]) == expected
    refused = {one.prompt.prompt_id: one for one in case.engine.take_refused()}
    assert {name: one.reason for name, one in refused.items()} == {
        "gone": "unreadable_video",
        "long": "prompt_too_long",
    }
    assert refused["gone"].message.startswith("/nowhere/a.mp4: no such video")
    assert refused["long"].message.startswith(f"clip {long.clip_id!r}: ")
    assert case.engine.take_refused() == []


def test_weights_survive_sleep(case: Case) -> None:
    before = case.engine.generate(case.prompts, GREEDY)
    case.engine.sleep()
    case.engine.wake()
    assert tokens(case.engine.generate(case.prompts, GREEDY)) == tokens(before)


def test_clips_are_decoded_beside_the_work(case: Case) -> None:
    threads = [
        threading.Thread(target=case.engine.prefetch, args=(prompt.plan,))
        for prompt in case.prompts
    ]
    for thread in threads:
        thread.start()
    groups = case.engine.generate(case.prompts, GREEDY)
    for thread in threads:
        thread.join(timeout=60)
    assert [group.prompt for group in groups] == case.prompts


@pytest.mark.parametrize("name", ["hf", "simulated"])
def test_shutdown_with_work_at_hand(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    case.engine.add(case.prompts, SETTINGS)
    case.engine.shutdown()
    case.engine.shutdown()
    assert case.engine.num_unfinished == 0


@pytest.mark.engine
def test_what_vllm_refuses_for_its_own_reasons_is_refused_alone(
    make_case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that its model does not have; a setting that it refuses is no prompt's fault."""
    case = make_case("vllm")
    engine: Any = case.engine
    try:
        odd = replace(case.prompts[0], prompt_id="odd")
        request = engine.request
        unknown = {"prompt_token_ids": [10**6]}
        monkeypatch.setattr(
            engine, "request", lambda one: unknown if one.prompt_id == "odd" else request(one)
        )
        engine.add([odd, case.prompts[1]], GREEDY)
        [answered] = finish(engine)
        assert answered.prompt.prompt_id == case.prompts[1].prompt_id
        [refused] = engine.take_refused()
        assert (refused.prompt.prompt_id, refused.reason) == ("odd", "prompt_refused")
        assert "out of vocabulary" in refused.message
    finally:
        engine.shutdown()
