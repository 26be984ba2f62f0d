"""What `Strategy` promises, asked of FSDP2, ZeRO-2 and ZeRO-3 with one rank in float32.

That they compute the same numbers, on more ranks too, is in `test_split.py`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.packing import PackedBatch, collate, split_row
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.strategies.base import Moments, Strategy
from actrep_ray.learner.strategies.factory import make_strategy
from actrep_ray.learner.strategies.fsdp import Fsdp2
from actrep_ray.learner.strategies.optimizer import freeze
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model
from data_prep.video import read_frames

ZERO = "learner.strategy=deepspeed"
SETTINGS = {"fsdp2": (), "zero2": (ZERO, "learner.zero_stage=2"), "zero3": (ZERO,)}
FROZEN = "vision_tower"
LR = 1e-3


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """The only rank; one process group for all strategies, as DeepSpeed keeps hold of it."""
    with pytest.MonkeyPatch.context() as patch:  # DeepSpeed's import sets both
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        found = Ranks(0, 1, torch.device("cpu"))
        found.join("127.0.0.1", 0, 120)
        yield found
        found.leave()


@pytest.fixture(scope="module")
def batch(tiny_model: Callable[..., Path], make_rows: Callable[..., list[Any]]) -> PackedBatch:
    """A prompt with three answers."""
    inputs = QwenVLInputs(tiny_model())
    [row] = make_rows(inputs, 1, 3)
    prompt = inputs.encode(row.question, row.plan, read_frames(row.plan))
    return collate(split_row(0, "r", prompt, row.responses, budget=9999, shares_prefix=True))


@pytest.fixture(scope="module", params=SETTINGS)
def make(
    request: pytest.FixtureRequest,
    ranks: Ranks,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], tuple[Strategy, dict[str, torch.nn.Parameter]]]:
    """`make()` gives a strategy of a new policy, its vision tower frozen, and its parameters."""
    # With decay, the optimiser has two groups of parameters.
    settings = [*SETTINGS[request.param], f"learner.lr={LR}", "learner.weight_decay=0.01"]
    if request.param == "zero3":  # else it keeps weights as small as these whole
        path = tmp_path_factory.mktemp("zero3") / "zero3.json"
        zero = {"stage3_param_persistence_threshold": 0}
        path.write_text(json.dumps({"zero_optimization": zero}))
        settings.append(f"learner.deepspeed_config={path}")
    recipe = make_recipe(*settings)

    def one() -> tuple[Strategy, dict[str, torch.nn.Parameter]]:
        model = load_model(tiny_model(), dtype="float32")
        freeze(model, (FROZEN,))
        policy = Policy(model, QwenVLInputs(tiny_model()).visual_token_ids)
        strategy = make_strategy(policy, ranks.mesh, recipe)
        return strategy, dict(policy.model.named_parameters())

    return one


Make = Callable[[], tuple[Strategy, dict[str, torch.nn.Parameter]]]


def _backward(strategy: Strategy, batch: PackedBatch, scale: float = 1.0) -> None:
    log_probs, _ = strategy.forward(batch, temperature=1.0)
    strategy.backward(-log_probs.sum() * scale, is_last=True)


def _trained(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in parameters.items() if component_of(name) != FROZEN}


def _masters(
    strategy: Strategy, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    return {name: strategy.whole_master(p).clone() for name, p in parameters.items()}


def test_it_computes_what_the_policy_does(
    make: Make, batch: PackedBatch, tiny_model: Callable[..., Path]
) -> None:
    strategy, parameters = make()
    plain = Policy(
        load_model(tiny_model(), dtype="float32"), QwenVLInputs(tiny_model()).visual_token_ids
    )
    with torch.no_grad():
        expected = plain(batch, temperature=0.7)
        found = strategy.forward(batch, temperature=0.7)
    strategy.reshard()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for name, weight in plain.model.named_parameters():
        for whole in (strategy.whole(parameters[name]), strategy.whole_master(parameters[name])):
            assert whole.dtype == torch.float32
            torch.testing.assert_close(whole, weight.detach(), rtol=0, atol=0, msg=name)
        rounded = strategy.whole(parameters[name], torch.bfloat16)  # before it travels, if at all
        assert rounded.dtype == (torch.bfloat16 if isinstance(strategy, Fsdp2) else torch.float32)
        assert torch.equal(rounded.bfloat16(), weight.detach().bfloat16()), name


def test_gradients_add_up_over_micro_batches_and_are_gone_after_the_step(
    make: Make, batch: PackedBatch
) -> None:
    strategy, parameters = make()
    assert all(strategy.moments(p) is None for p in parameters.values())
    _backward(strategy, batch)
    once = {name: gradient.clone() for name, gradient in strategy.gradients()}
    assert once.keys() == _trained(parameters).keys()
    norm = float(torch.cat([g.flatten() for g in once.values()]).norm())
    assert strategy.step(0.0) == pytest.approx(norm, rel=1e-4)  # nothing moves
    for is_last in (False, True):
        log_probs, _ = strategy.forward(batch, temperature=1.0)
        strategy.backward(-log_probs.sum() / 2, is_last=is_last)
    for name, gradient in strategy.gradients():
        torch.testing.assert_close(gradient, once[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_step_moves_what_is_trained_by_the_learning_rate(make: Make, batch: PackedBatch) -> None:
    strategy, parameters = make()
    before = _masters(strategy, parameters)
    _backward(strategy, batch)
    strategy.step(0.5)
    after = _masters(strategy, parameters)
    for name in parameters:
        moved = float((after[name] - before[name]).abs().max())
        is_trained = name in _trained(parameters)
        assert moved == (pytest.approx(0.5 * LR, rel=0.05) if is_trained else 0.0), name
        torch.testing.assert_close(strategy.whole(parameters[name]), after[name], rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_changes_nothing(make: Make, batch: PackedBatch) -> None:
    strategy, parameters = make()
    before = _masters(strategy, parameters)
    _backward(strategy, batch, scale=float("nan"))
    assert not torch.isfinite(torch.tensor(strategy.step(1.0)))
    for name, weight in _masters(strategy, parameters).items():
        assert torch.equal(weight, before[name]), name
    _backward(strategy, batch)
    assert torch.isfinite(torch.tensor(strategy.step(1.0)))


def test_masters_are_set_and_written(make: Make) -> None:
    strategy, parameters = make()
    parameter = parameters["model.language_model.norm.weight"]
    value = torch.linspace(-1, 1, strategy.whole_master(parameter).numel())
    strategy.set_master(parameter, value)
    assert torch.equal(strategy.whole(parameter), value)
    assert torch.equal(strategy.whole_master(parameter), value)
    strategy.write_master(parameter, 2 * value)
    assert torch.equal(strategy.whole_master(parameter), 2 * value)


def test_local_shards_are_the_masters_themselves(make: Make) -> None:
    strategy, parameters = make()
    before = _masters(strategy, parameters)
    shards = strategy.local_shards()
    num_trained = sum(before[name].numel() for name in _trained(parameters))
    assert sum(shard.numel() for shard in shards) == pytest.approx(num_trained, rel=0.01)  # padded
    for shard, again in zip(shards, strategy.local_shards(), strict=True):
        assert shard.dtype == torch.float32
        assert shard.data_ptr() == again.data_ptr()
        shard.mul_(2)
    after = _masters(strategy, parameters)
    for name in parameters:
        factor = 2 if name in _trained(parameters) else 1
        assert torch.equal(after[name], factor * before[name]), name


def test_moments_go_on_in_another_one(make: Make, batch: PackedBatch) -> None:
    strategy, parameters = make()
    _backward(strategy, batch)
    strategy.step(1.0)
    strategy.reshard()
    saved: dict[str, Moments] = {}
    for name, parameter in parameters.items():
        moments = strategy.moments(parameter)
        assert (moments is not None) == (name in _trained(parameters)), name
        if moments is not None:
            assert moments.step == 1
            assert moments.exp_avg.shape == strategy.whole(parameter).shape
            saved[name] = moments
    masters = _masters(strategy, parameters)

    other, its = make()
    for name, moments in saved.items():
        other.set_master(its[name], masters[name])
        other.set_moments(its[name], moments)
    for one in (strategy, other):
        _backward(one, batch)
        one.step(1.0)
    expected = _masters(strategy, parameters)
    for name, weight in _masters(other, its).items():
        assert torch.equal(weight, expected[name]), name
