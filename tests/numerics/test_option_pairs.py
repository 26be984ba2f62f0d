"""No recipe is accepted that learns nothing: a GRPO step under every pair of options.

Options are found by introspection of the settings: a new one is refused here until it is given
values, or is named among those that do not change a gradient. Every pair of values of two options
is a recipe. It is refused with a reason, or a step on groups whose answers differ moves the
weights. What takes the step is the project's own: composition of rewards, contrast, dropping,
advantages, rows, packing, correction, KL, loss, optimiser steps. Only the model is a small one, a
table of the next token, and what samples from it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from actrep_ray.config import (
    AlgorithmConfig,
    ConfigError,
    LearnerConfig,
    Recipe,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
    load_recipe,
)
from actrep_ray.driver.groups import drop_reason, row_of, split_trainable
from actrep_ray.driver.phases import source_for
from actrep_ray.learner.batch.loader import MicroBatchLoader
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.grpo import GrpoUpdate
from actrep_ray.learner.loss.algorithms import compute_advantages
from actrep_ray.learner.optimizer_step import OptimizerSteps
from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.strategies.base import Moments, Strategy
from actrep_ray.learner.strategies.ema import Ema
from actrep_ray.learner.strategies.optimizer import make_optimizer, set_learning_rates
from actrep_ray.models.qwen_vl import EncodedPrompt, QwenVLInputs
from actrep_ray.planning.training import optimizer_steps_per_step
from actrep_ray.records import LearnerRow, Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.rollout.hf_engine import nucleus
from actrep_ray.scoring.dispatch import with_scores
from actrep_ray.scoring.worker import GroupScores, GroupTexts, RewardWorker, make_spec
from data_prep.video import FramePlan
from rewards.compose import RewardSpec, Score, group_rewards
from rewards.grammar.write import Response, render
from rewards.reference import Reference

Settings = Mapping[str, Any]

SECTIONS: dict[str, type[BaseModel]] = {
    "algorithm": AlgorithmConfig,
    "rollout": RolloutConfig,
    "reward": RewardConfig,
    "train": TrainConfig,
    "learner": LearnerConfig,
}
# Values of options that are not a choice among a few; those of the others are found.
VALUES: dict[str, tuple[Any, ...]] = {
    "algorithm.clip_low": (0.2, 3e-4, 1.0),
    "algorithm.clip_high": (0.2, 4e-4, 4.0),
    "algorithm.dual_clip": (3.0, 1.01, None),
    "algorithm.sapo_tau": ([1.0, 1.05], [0.1, 20.0]),
    "algorithm.cov_fraction": (2e-4, 0.5, 1.0),
    "algorithm.clip_cov_range": ([1.0, 5.0], [-100.0, 100.0]),
    "algorithm.kl_cov_coef": (1.0, 0.01),
    "algorithm.loss_scale_tokens": (None, 100),
    "algorithm.kl_coef": (0.0, 0.04),
    "algorithm.kl_target": (None, 0.01),
    "algorithm.kl_horizon": (10000, 1),
    "algorithm.entropy_coef": (0.0, 0.01),
    "algorithm.temporal_contrast.weight": (0.0, 0.3),
    "algorithm.temporal_contrast.margin": (0.0, 0.9),
    "algorithm.rollout_correction_threshold": (2.0, 1.05),
    "rollout.temperature": (1.0, 0.5),
    "rollout.top_p": (1.0, 0.9, 0.3),
    "reward.weights": ({"obo": 0.5, "cycles": 0.4, "format": 0.1}, {"exact": 1.0}),
    "train.mini_batch_size": (None, 4),
    "train.num_updates_per_batch": (1, 2),
    "train.max_staleness": (None, 1),
    "train.pass_rate_window": (None, [0.1, 0.9]),
    "learner.lr": (1e-3, 1e-6),
    "learner.min_lr_ratio": (0.0, 1.0),
    "learner.warmup_steps": (0, 50),
    "learner.weight_decay": (0.0, 0.1),
    "learner.betas": ([0.9, 0.999], [0.0, 0.0]),
    "learner.max_grad_norm": (1.0, 1e-3),
    "learner.ema_decay": (None, 0.9),
    "learner.micro_batch_tokens": (16384, 80),
}
# What an option needs in order to act; the other option of a pair may say otherwise.
COMPANIONS: dict[str, Settings] = {
    "algorithm.sapo_tau": {"algorithm.loss": "sapo"},
    "algorithm.cov_fraction": {"algorithm.loss": "kl_cov"},
    "algorithm.clip_cov_range": {"algorithm.loss": "clip_cov"},
    "algorithm.kl_cov_coef": {"algorithm.loss": "kl_cov"},
    "algorithm.loss_scale_tokens": {"algorithm.aggregation": "seq-mean-token-sum-norm"},
    "algorithm.kl_in": {"algorithm.kl_coef": 0.04, "algorithm.kl_type": "k1"},
    "algorithm.kl_type": {"algorithm.kl_coef": 0.04},
    "algorithm.kl_target": {"algorithm.kl_coef": 0.04},
    "algorithm.kl_horizon": {"algorithm.kl_coef": 0.04, "algorithm.kl_target": 0.01},
    "algorithm.temporal_contrast.margin": {"algorithm.temporal_contrast.weight": 0.3},
    "algorithm.rollout_correction_threshold": {"algorithm.rollout_correction": "token_truncate"},
}
# What the rest say is how, where and for how long something is computed.
NO_GRADIENT: dict[str, str] = {
    "rollout": "engine num_workers tensor_parallel_size num_cpus num_threads enforce_eager "
    "gpu_memory_utilization kv_cache_gib max_images max_num_seqs max_model_len max_response_tokens "
    "max_in_flight max_workers max_restarts timeout_s vllm",
    "reward": "num_workers num_cpus timeout_s max_restarts max_failures",
    "train": "num_steps prompts_per_step group_size max_refill_factor max_log_prob_gap "
    "on_log_prob_gap max_untrained_steps on_untrained alarm_steps",
    "learner": "strategy zero_stage offload reduce_dtype reshard_after_forward deepspeed_config "
    "num_workers num_cpus num_threads lr_vision_tower lr_merger attention gradient_checkpointing "
    "cache_features prompt_cache_gib feature_cache_gib max_restarts timeout_s",
}
NUM_PROMPTS, GROUP_SIZE, VOCABULARY = 2, 4, 24
BASE = {
    "train.prompts_per_step": NUM_PROMPTS,
    "train.group_size": GROUP_SIZE,
    "learner.lr": 1e-3,
    "runs_dir": "/nowhere",
}

# ------------------------------------------------------------------------ options and their pairs


def options() -> dict[str, tuple[Any, ...]]:
    """Dotted name of every option that bears on a gradient, and the values that are tried."""
    found: dict[str, tuple[Any, ...]] = {}
    for section, model in SECTIONS.items():
        left_out = NO_GRADIENT.get(section, "").split()
        assert set(left_out) <= set(model.model_fields), "a setting that is no more"
        for name, values in _of_section(section, model):
            if name.split(".")[1] not in left_out:
                assert values, f"{name} is new: give it VALUES, or say why it bears on no gradient"
                found[name] = values
    assert set(VALUES) | set(COMPANIONS) <= set(found), "an option that is no more"
    return found


def _of_section(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for field, info in model.model_fields.items():
        name, kind = f"{prefix}.{field}", info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _of_section(name, kind)
        else:
            yield name, VALUES.get(name) or _choices(kind)


def _choices(kind: Any) -> tuple[Any, ...]:
    """All values of a choice among a few."""
    if kind is bool:
        return (False, True)
    if get_origin(kind) is Literal:
        return get_args(kind)
    found: list[Any] = []
    for part in get_args(kind):
        if part is type(None):
            found.append(None)
        elif get_origin(part) is Literal:
            found += get_args(part)
        else:
            return ()
    return tuple(found)


def pairs() -> Iterator[dict[str, Any]]:
    """Every pair of values of two options."""
    of = options()
    for a, b in combinations(of, 2):
        for x, y in product(of[a], of[b]):
            yield {a: x, b: y}


def recipe_of(pair: Settings) -> Recipe:
    """The recipe of a pair, and of what its options need in order to act.

    Raises:
        ConfigError: if it is refused.
    """
    given: dict[str, Any] = dict(BASE)
    for name in pair:
        given |= COMPANIONS.get(name, {})
    given |= pair
    if given.get("algorithm.loss") in ("sapo", "geo_mean"):
        given.setdefault("algorithm.aggregation", "seq-mean-token-mean")
    tree: dict[str, Any] = {}
    for name, value in given.items():
        *sections, field = name.split(".")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[field] = value
    try:
        return Recipe.model_validate(tree)  # five times faster than what a user's goes through
    except ValueError:
        load_recipe(None, [f"{name}={json.dumps(value)}" for name, value in given.items()])
        raise


# ------------------------------------------------------------------------------ a step by hand

PLAN = FramePlan("a.mp4", 1, (0, 1), 2.0, 28, 28)
CYCLES = ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0))
LABELS = {"clip": Reference(count=3, cycles=CYCLES, duration_s=4.0, label="wave")}
RIGHT = render(Response("A hand waves.", "to and fro", CYCLES, "evenly spaced", 3, 3))
NEARLY = render(Response("A hand waves.", "to and fro", CYCLES[:2], "evenly spaced", 2, 2))
TEXTS = (RIGHT, NEARLY, "<answer>9</answer>", "A hand waves, and")
PROMPT = EncodedPrompt(
    input_ids=torch.arange(4),
    position_ids=torch.arange(4).expand(3, -1),
    next_position=4,
    pixel_values=torch.zeros(4, 2),
    grid_thw=torch.tensor([[1, 2, 2]]),
)


class Table(nn.Module):
    """Logits of the next token by the one before it."""

    def __init__(self, seed: int, near: "Table | None" = None, distance: float = 0.2) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(VOCABULARY, VOCABULARY, generator=random)
        self.weight = nn.Parameter(noise)
        if near is not None:
            self.weight.data.mul_(distance).add_(near.weight.data)

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Policy.forward`."""
        before = batch.input_ids.flatten()[batch.predictors]
        log_all = (self.weight[before] / temperature).log_softmax(dim=-1)
        log_probs = log_all.gather(-1, batch.targets[..., None])[..., 0]
        spread = log_all if with_entropy_grad else log_all.detach()
        entropy = -(spread.exp() * spread).sum(dim=-1)
        return log_probs * batch.target_mask, entropy * batch.target_mask


class Whole(Strategy):
    """A table on one rank, stepped as FSDP2 steps a model."""

    def __init__(self, table: Table, cfg: LearnerConfig) -> None:
        self.table = table
        self.optimizer = make_optimizer(table, cfg)
        self.max_norm = cfg.max_grad_norm

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = self.table(
            batch, temperature=temperature, with_entropy_grad=with_entropy_grad
        )
        return found

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self, lr_factor: float) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.table.parameters(), self.max_norm))
        if np.isfinite(norm):
            set_learning_rates(self.optimizer, lr_factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def reshard(self) -> None:
        pass

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError

    def num_elements(self, parameter: torch.Tensor) -> int:
        raise NotImplementedError

    def whole(self, parameter: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return parameter.detach()

    def whole_master(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.detach()

    def set_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        raise NotImplementedError

    def write_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        raise NotImplementedError

    def local_shards(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self.table.parameters()]

    def moments(self, parameter: torch.Tensor) -> Moments | None:
        raise NotImplementedError

    def set_moments(self, parameter: torch.Tensor, moments: Moments) -> None:
        raise NotImplementedError


class Alone(Ranks):
    """The only rank, without a process group."""

    def __init__(self) -> None:
        super().__init__(0, 1, torch.device("cpu"))

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        return dict(values)

    def max(self, value: float) -> float:
        return value


class Encoder:
    """One prompt for every row."""

    def encode(self, row: LearnerRow) -> EncodedPrompt:
        return PROMPT


class Engine:
    """Samples from a table; the texts that are scored are the same for every group.

    A group of each prompt has answers that are right, nearly right, wrong and cut off.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        return [self._group(prompt, settings) for prompt in prompts], []

    def _group(self, prompt: Prompt, settings: SamplingSettings) -> RolloutGroup:
        texts = TEXTS[: settings.group_size]
        if prompt.prompt_id.endswith("shuffled"):
            texts = TEXTS[2:]  # nothing is right without the order
        rollouts = []
        for i, text in enumerate(texts):
            tokens, log_probs = _sampled(
                self.seed, (prompt.prompt_id, i), settings.temperature, settings.top_p
            )
            rollouts.append(
                make_rollout(
                    prompt,
                    i,
                    token_ids=tokens,
                    log_probs=log_probs,
                    text=text,
                    is_stopped=i != len(TEXTS) - 1,
                    policy_version=0,
                )
            )
        return RolloutGroup(prompt, tuple(rollouts), 4)


def policy_of(seed: int) -> Table:
    """The policy that is trained (0), or one a step older (1)."""
    return Table(0) if seed == 0 else Table(seed, Table(0), distance=0.01)


@cache
def _sampled(
    seed: int, name: tuple[str, int], temperature: float, top_p: float
) -> tuple[list[int], list[float]]:
    """An answer of 25 to 40 tokens, and the engine's log-probabilities of them."""
    table = policy_of(seed)
    random = np.random.default_rng([*name[0].encode(), name[1]])
    with torch.no_grad():
        log_all = nucleus(table.weight / temperature, top_p).log_softmax(dim=-1).double().numpy()
    tokens, last = [], int(PROMPT.input_ids[-1])
    log_probs = []
    for _ in range(int(random.integers(25, 40))):
        chances = np.exp(log_all[last])
        token = int(random.choice(VOCABULARY, p=chances / chances.sum()))
        log_probs.append(float(log_all[last, token]))
        tokens.append(token)
        last = token
    return tokens, log_probs


class Scorer:
    """A reward worker, called in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self.worker = RewardWorker(make_spec(recipe), recipe.task)
        self.known = _scores_known(recipe.reward.model_dump_json())

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        found = []
        for group in groups:
            size = len(group.rollouts)
            texts = GroupTexts(
                tuple(map(str, range(size))),
                tuple(rollout.text for rollout in group.rollouts),
                (labels[group.prompt.clip_id],) * size,
            )
            if texts not in self.known:
                [self.known[texts]] = self.worker.score([texts])
            scores = self.known[texts]
            assert isinstance(scores, GroupScores), scores
            found.append(with_scores(group, scores))
        return found


@cache
def _scores_known(reward: str) -> dict[GroupTexts, Any]:
    """Scores by texts: the same ones come back thousands of times."""
    return {}


def rows_of(recipe: Recipe) -> list[LearnerRow]:
    """What a step gives its learner: answered, scored, dropped or not, compared."""
    engine: Any = Engine(0 if recipe.train.max_staleness is None else 1)
    scorer: Any = Scorer(recipe)
    source = source_for(recipe, engine, scorer)
    prompts = [Prompt(f"{i:06d}-0000-clip", "clip", "?", PLAN) for i in range(NUM_PROMPTS)]
    answered, _ = source.generate(prompts)
    groups = source.score(answered, LABELS)
    assert all(np.ptp(group.rewards) > 0.1 for group in groups)
    trainable, _ = split_trainable(groups, recipe)
    compared = compute_advantages(trainable, recipe.algorithm, recipe.reward.part_weights)
    return [row_of(group) for group in compared]


def moved_by(recipe: Recipe) -> tuple[float, dict[str, float]]:
    """Largest change of a weight in one step of the loop, and the step's metrics."""
    rows = rows_of(recipe)
    if not rows:
        return 0.0, {"num_optimizer_steps": 0.0, "grad_norm": 0.0}
    table, ranks, encoder = policy_of(0), Alone(), Encoder()
    strategy = Whole(table, recipe.learner)
    loader = MicroBatchLoader(encoder, ranks, recipe.learner)  # type: ignore[arg-type]
    decay = recipe.learner.ema_decay
    ema = None if decay is None else Ema(strategy, decay)
    policy: Any = Model(table)
    steps = OptimizerSteps(recipe, ranks, policy, strategy, ema, loader)
    reference = Table(2, table) if recipe.algorithm.kl_coef > 0 else None
    update = GrpoUpdate(recipe, ranks, loader, strategy.forward, reference, steps)
    before = table.weight.detach().clone()
    metrics, _ = update.run(rows, recipe.algorithm.kl_coef, 4 * optimizer_steps_per_step(recipe))
    metrics["num_optimizer_steps"] = steps.num_taken
    return float((table.weight.detach() - before).abs().max()), metrics


class Model:
    """What `OptimizerSteps` wants of a policy."""

    def __init__(self, table: Table) -> None:
        self.model = table


def by_rewards_alone(recipe: Recipe) -> Recipe:
    """Without the terms that move weights whatever the rewards are; a KL in the reward stays."""
    cfg, changes = recipe.algorithm, {"entropy_coef": 0.0}
    if cfg.kl_in == "loss":
        changes["kl_coef"] = 0.0
    learner = recipe.learner.model_copy(update={"weight_decay": 0.0})
    algorithm = cfg.model_copy(update=changes)
    return recipe.model_copy(update={"algorithm": algorithm, "learner": learner})


def complaint(recipe: Recipe, run: Callable[[Recipe], tuple[float, dict[str, float]]]) -> str:
    """What is wrong with a step; empty if it moves the weights as far as it should.

    AdamW moves a weight by the learning rate whatever the size of its gradient, so the gradient's
    norm is compared as well: an engine correction may not take most of it.
    """
    moved, metrics = run(recipe)
    planned = optimizer_steps_per_step(recipe)
    if metrics["num_optimizer_steps"] < planned:
        return f"{metrics['num_optimizer_steps']:g} of {planned} optimiser steps: {metrics}"
    if not moved > 0.01 * recipe.learner.lr:
        return f"moves weights by {moved:g} at a learning rate of {recipe.learner.lr:g}"
    if recipe.algorithm.rollout_correction != "off":
        off = recipe.algorithm.model_copy(update={"rollout_correction": "off"})
        _, expected = run(recipe.model_copy(update={"algorithm": off}))
        share = metrics["grad_norm"] / expected["grad_norm"]
        if not share > 0.1:
            return f"the correction leaves {share:.2%} of the gradient"
    return ""


@pytest.mark.slow
def test_every_pair_of_options_moves_the_weights_or_is_refused(
    record_property: Callable[[str, object], None],
) -> None:
    run = OncePerRecipe(moved_by)
    num_pairs, refused, idle = 0, Counter[str](), dict[str, str]()
    for pair in pairs():
        num_pairs += 1
        try:
            recipe = recipe_of(pair)
        except ConfigError as error:
            refused[" + ".join(sorted(_keys_of(str(error))))] += 1
            continue
        wrong = complaint(by_rewards_alone(recipe), run) or complaint(recipe, run)
        if wrong:
            idle[str(pair)] = wrong
    record_property("pairs", num_pairs)
    record_property("refused", dict(refused))
    record_property("recipes", run.num_computed)
    print(f"{num_pairs} pairs, {run.num_computed} recipes, {refused.total()} refused: {refused}")
    assert not idle, f"{len(idle)} of {num_pairs} pairs learn nothing: {idle}"
    assert num_pairs > 5000
    assert all(refused)  # each by the settings that are named in its reason
    assert refused.total() < num_pairs / 20


@pytest.mark.parametrize(
    "changed",
    [
        {"rollout": {"top_p": 0.9}, "algorithm": {"rollout_correction": "sequence_reject"}},
        {"rollout": {"top_p": 0.9}, "algorithm": {"rollout_correction": "sequence_truncate"}},
        {
            "rollout": {"top_p": 0.9},
            "algorithm": {
                "rollout_correction": "token_reject",
                "rollout_correction_threshold": 1.01,
            },
        },
        {
            "algorithm": {
                "loss": "clip_cov",
                "cov_fraction": 1.0,
                "clip_cov_range": (-100.0, 100.0),
            }
        },
    ],
)
def test_what_is_refused_learns_next_to_nothing(changed: Mapping[str, Settings]) -> None:
    """And the test above would say so."""
    recipe = recipe_of({})
    for name, changes in changed.items():
        section = getattr(recipe, name).model_copy(update=changes)
        recipe = recipe.model_copy(update={name: section})
    with pytest.raises(ValueError, match=r"rollout_correction|clip_cov"):
        Recipe.model_validate(recipe.model_dump())
    assert complaint(recipe, moved_by)


def test_a_new_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(VALUES, "algorithm.clip_low")
    with pytest.raises(AssertionError, match=r"algorithm.clip_low is new: give it VALUES"):
        options()


@settings(max_examples=150)
@given(
    points=st.lists(
        st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.sampled_from([0, 0.5, 1])),
        min_size=2,
        max_size=6,
    ),
    advantage=st.sampled_from(_choices(AlgorithmConfig.model_fields["advantage"].annotation)),
    combine=st.sampled_from(_choices(RewardConfig.model_fields["combine"].annotation)),
)
def test_a_group_is_kept_where_its_advantages_tell_answers_apart(
    points: list[tuple[float, float]], advantage: str, combine: str
) -> None:
    weights = {"obo": 0.6, "format": 0.4}
    recipe = Recipe.model_validate(
        {
            "algorithm": {"advantage": advantage},
            "reward": {"weights": weights, "combine": combine},
        }
    )
    scores = [Score(0.6 * a + 0.4 * b, {"obo": a, "format": b}) for a, b in points]
    spec = RewardSpec.from_mapping(weights, combine=combine)
    prompt = Prompt("p", "clip", "?", PLAN)
    rollouts = tuple(
        make_rollout(
            prompt, i, token_ids=[1], log_probs=[0.0], text="", is_stopped=True, policy_version=0
        )
        for i in range(len(points))
    )
    group = RolloutGroup(
        prompt,
        rollouts,
        4,
        rewards=group_rewards(scores, spec).astype(np.float32),
        totals=np.array([one.total for one in scores], np.float32),
        reward_parts={
            name: np.array([one.parts[name] for one in scores], np.float32) for name in weights
        },
    )
    [compared] = compute_advantages([group], recipe.algorithm, weights)
    largest = float(np.abs(compared.advantages).max())
    if drop_reason(group, recipe) is None:
        assert largest > 1e-3
    elif combine == "sum" and advantage != "gdpo":  # else rounding may be left of what cancels
        assert largest < 1e-3


def test_some_pairs_train_a_real_model(
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
) -> None:
    """A sample of the pairs of what an algorithm is, through the learner itself."""
    started = make_recipe("stage=grpo", "learner.lr=1e-3", "algorithm.kl_coef=0.04")
    worker = make_worker(started, tiny_model())
    real = make_rows(QwenVLInputs(tiny_model()), NUM_PROMPTS, GROUP_SIZE)
    of_algorithm = [pair for pair in pairs() if all(name.startswith("algorithm.") for name in pair)]
    random, num_trained = np.random.default_rng(0), 0
    for number in random.choice(len(of_algorithm), 16, replace=False):
        try:
            recipe = recipe_of(of_algorithm[number])
        except ConfigError:
            continue
        reference = worker.reference if recipe.algorithm.kl_coef > 0 else None
        worker.grpo = GrpoUpdate(
            recipe, worker.ranks, worker.loader, worker.strategy.forward, reference, worker.steps
        )
        rows = [
            replace(
                row,
                question=a.question,
                plan=a.plan,
                num_prompt_tokens=0,
                responses=tuple(response + 7 for response in row.responses),
            )
            for row, a in zip(rows_of(recipe), real, strict=True)
        ]
        before = worker.log_probs(rows)
        sampled = [replace(r, rollout_log_probs=v) for r, v in zip(rows, before, strict=True)]
        metrics = worker.update(sampled, 1)
        assert metrics["num_optimizer_steps"] == 1, of_algorithm[number]
        assert metrics["grad_norm"] > 0, of_algorithm[number]
        moved = worker.log_probs(rows)[0][0] - before[0][0]
        assert np.abs(moved).max() > 1e-4, of_algorithm[number]
        num_trained += 1
    assert num_trained > 12


class OncePerRecipe:
    """A function of a recipe that is computed once for recipes of equal settings."""

    def __init__(self, function: Callable[[Recipe], Any]) -> None:
        self._function = function
        self._found: dict[str, Any] = {}

    def __call__(self, recipe: Recipe) -> Any:
        key = recipe.model_copy(
            update={"algorithm": recipe.algorithm.model_copy(update={"preset": None})}
        ).model_dump_json()
        if key not in self._found:
            self._found[key] = self._function(recipe)
        return self._found[key]

    @property
    def num_computed(self) -> int:
        return len(self._found)


def _keys_of(message: str) -> set[str]:
    words = message.replace("=", " ").replace(":", " ").replace(",", " ").split()
    return {w for w in words if w.partition(".")[0] in SECTIONS and "." in w}
