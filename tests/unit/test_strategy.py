"""A strategy that lacks a method cannot be made; `numerics/test_strategy_contract.py` runs each."""

import inspect
from typing import Any

import pytest

from actrep_ray.learner.strategies.base import Strategy

METHODS = sorted(name for name, _ in inspect.getmembers(Strategy, inspect.isfunction))


def _strategy_without(missing: str | None) -> type[Any]:
    body = {name: lambda self: None for name in METHODS if name != missing}
    return type("Incomplete", (Strategy,), body)


def test_every_public_method_is_asked_for() -> None:
    assert {"forward", "backward", "step", "gradients", "moments"} <= set(METHODS)
    assert set(METHODS) == set(Strategy.__abstractmethods__)


@pytest.mark.parametrize("method", METHODS)
def test_a_strategy_without_a_method_cannot_be_made(method: str) -> None:
    assert _strategy_without(None)() is not None
    with pytest.raises(TypeError, match=rf"abstract method '?{method}'?"):
        _strategy_without(method)()
