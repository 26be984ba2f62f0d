"""The limits of `train.max_log_prob_gap`: what a healthy run measures, and what a fault does.

The shipped small model answers a question that it was pretrained on, so that its answers depend on
frames and positions; of random weights they hardly do, and a fault would hide. The gap is the
learner's own metric, the mean over sampled tokens:

    dtype     engine        healthy           temperature  a place late  a frame early  a step old
    float32   transformers  below 1e-6        0.111        0.147         0.096          0.44, 0.31
    bfloat16  transformers  0.0075 to 0.0096  0.081        0.183         0.065          0.45, 0.30
    bfloat16  vLLM          0.0068 to 0.0099  0.089        0.186         0.086          0.50, 0.22

(sampled at 0.8; answers one position later; frames shown one too early; weights from before a step)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.config import LOG_PROB_GAP_LIMITS, Recipe, RolloutConfig, VideoConfig, VllmConfig
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.pretrain.motion import QUESTIONS
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.rollout.worker import start_engine
from data_prep.schema import Clip

SETTINGS = SamplingSettings(max_tokens=48, group_size=4)
NUM_STEPS = 2


@dataclass
class Pair:
    """An engine and a learner of one dtype, and what to ask."""

    recipe: Recipe
    engine: Engine
    learner: LearnerWorker
    prompts: list[Prompt]

    @property
    def limit(self) -> float:
        return LOG_PROB_GAP_LIMITS[self.recipe.model.dtype]


@pytest.fixture
def cache_dtype(request: pytest.FixtureRequest) -> str:
    """Of the KV cache."""
    return str(getattr(request, "param", "auto"))


@pytest.fixture(
    params=[
        ("hf", "float32"),
        ("hf", "bfloat16"),
        pytest.param(("vllm", "bfloat16"), marks=pytest.mark.engine),
    ],
    ids=" ".join,
)
def pair(
    request: pytest.FixtureRequest,
    clips: list[Clip],
    video: VideoConfig,
    rollout: RolloutConfig,
    cache_dtype: str,
) -> Iterator[Pair]:
    name, dtype = request.param
    folder = base_model_folder()
    recipe = Recipe.model_validate(
        {
            "device": "cpu",
            "model": {"path": str(folder), "dtype": dtype},
            "train": {"prompts_per_step": 4, "group_size": SETTINGS.group_size},
            "learner": {"lr": 1e-4},
        }
    ).model_copy(
        update={
            "rollout": rollout.model_copy(
                update={
                    "engine": name,
                    "vllm": VllmConfig.model_validate({"kv_cache_dtype": cache_dtype}),
                }
            ),
            "video": video.model_copy(update={"fps": 4.0, "max_pixels": 4096}),
        }
    )
    engine = start_engine(recipe, folder)
    learner = learner_of(recipe)
    inputs = QwenVLInputs(folder)
    plans = [inputs.plan(clip, recipe.video) for clip in clips]
    prompts = [
        Prompt(f"{kind}-{i}", f"clip-{i}", QUESTIONS[kind], plan)
        for kind in ("how", "away")
        for i, plan in enumerate(plans)
    ]
    yield Pair(recipe, engine, learner, prompts)
    engine.shutdown()
    learner.shutdown()


def learner_of(recipe: Recipe) -> LearnerWorker:
    """The only rank, with the checkpoint's weights."""
    learner = LearnerWorker(recipe, recipe.model.path, rank=0, world_size=1, total_steps=10)
    learner.setup("127.0.0.1", 0)
    return learner


def rows_of(groups: Sequence[RolloutGroup]) -> list[LearnerRow]:
    signs = np.where(np.arange(SETTINGS.group_size) % 2, -1.0, 1.0).astype(np.float32)
    return [row_of(replace(group, advantages=signs)) for group in groups]


def gap(learner: LearnerWorker, rows: Sequence[LearnerRow]) -> float:
    """Mean |learner - engine| over the tokens of all answers, without an update."""
    learned = learner.log_probs(rows)
    differences = [
        np.abs(expected - found)
        for values, row in zip(learned, rows, strict=True)
        for expected, found in zip(values, row.rollout_log_probs, strict=True)
    ]
    return float(np.concatenate(differences).mean())


def test_the_limit_lies_between_health_and_faults(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of(pair.engine.generate(pair.prompts, SETTINGS))
    rows, healthy, stale = first, [], []
    for step in range(1, NUM_STEPS + 1):
        healthy.append(pair.learner.update(rows, step)["log_prob_gap_mean"])
        stale.append(gap(pair.learner, rows_of(pair.engine.generate(pair.prompts, SETTINGS))))
        pair.engine.load_weights(dict(pair.learner.iter_weights()), step)
        rows = rows_of(pair.engine.generate(pair.prompts, SETTINGS))
    healthy.append(gap(pair.learner, rows))
    cool = replace(SETTINGS, temperature=0.8)
    faults = {
        "temperature": gap(pair.learner, rows_of(pair.engine.generate(pair.prompts, cool))),
        "frames": gap(pair.learner, [one_frame_later(row) for row in rows]),
        "flat positions": gap_with(pair.recipe, first, flat, monkeypatch),
        "answer one place later": gap_with(pair.recipe, first, one_later, monkeypatch),
    }
    print(pair.recipe.rollout.engine, pair.recipe.model.dtype, healthy, stale, faults)
    assert max(healthy) < 0.5 * pair.limit
    assert min(stale) > 2 * pair.limit
    assert min(faults["frames"], faults["flat positions"]) > 2 * pair.limit
    assert min(faults.values()) > 1.2 * pair.limit


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("pair", [("vllm", "bfloat16")], indirect=True, ids=" ".join)
@pytest.mark.parametrize("cache_dtype", ["fp8"], indirect=True)
def test_pushes_reach_an_engine_whose_kv_cache_is_rounded(pair: Pair, cache_dtype: str) -> None:
    """Its gap is above the limit of other engines, and below that of weights from before a step."""
    rows = rows_of(pair.engine.generate(pair.prompts, SETTINGS))
    gaps, stale = [gap(pair.learner, rows)], []
    for step in range(1, NUM_STEPS + 1):
        pair.learner.update(rows, step)
        stale.append(gap(pair.learner, rows_of(pair.engine.generate(pair.prompts, SETTINGS))))
        weights = dict(pair.learner.iter_weights())
        pair.engine.load_weights(weights, step)
        pair.engine.verify_weights(weights)
        rows = rows_of(pair.engine.generate(pair.prompts, SETTINGS))
        gaps.append(gap(pair.learner, rows))
    print(cache_dtype, gaps, stale)
    assert min(gaps) > pair.limit
    assert all(after < 0.7 * before for after, before in zip(gaps[1:], stale, strict=True))


def one_frame_later(row: LearnerRow) -> LearnerRow:
    assert row.plan is not None
    times_s = row.plan.times_s
    return replace(row, plan=replace(row.plan, times_s=times_s[1:] + times_s[-1:]))


Positions = tuple[torch.Tensor, int]


def flat(positions: torch.Tensor, next_position: int) -> Positions:
    """Those of text: every token one further in all three coordinates."""
    return torch.arange(positions.shape[1]).expand(3, -1).clone(), positions.shape[1]


def one_later(positions: torch.Tensor, next_position: int) -> Positions:
    return positions, next_position + 1


def gap_with(
    recipe: Recipe,
    rows: Sequence[LearnerRow],
    change: Callable[[torch.Tensor, int], Positions],
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    """As `gap`, of the checkpoint's weights, by a learner with other positions."""
    right = QwenVLInputs.positions

    def wrong(self: QwenVLInputs, *where: Any) -> Positions:
        return change(*right(self, *where))

    with monkeypatch.context() as patch:
        patch.setattr(QwenVLInputs, "positions", wrong)
        return gap(learner_of(recipe), rows)
