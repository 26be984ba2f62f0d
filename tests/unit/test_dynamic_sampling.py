"""Dynamic sampling: groups without a gradient are replaced from their own count stratum."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.groups import drop_reason, split_trainable
from actrep_ray.driver.phases import GrpoData, Phases
from actrep_ray.driver.pools import Pools
from actrep_ray.driver.sampling import CountSampler
from actrep_ray.driver.synchronous import SynchronousDriver
from actrep_ray.evaluation.step_forecast import ProbedGroups, forecast_step
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, Refusal, RolloutGroup, RolloutStatus
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.run.profile import Timeline
from data_prep.rows import clips_among
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan
from rewards.reference import Reference

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)


def scored(totals: Sequence[float], **fields: Any) -> RolloutGroup:
    values = np.array(totals, np.float32)
    given = {"prompt": Prompt("p", "c", "?", PLAN, "1-5"), "rollouts": (), "num_prompt_tokens": 3}
    return RolloutGroup(**{**given, "rewards": values, "totals": values, **fields})


@dataclass
class Workers:
    """Answers and scores; a prompt's answers differ in reward unless `fails` says so."""

    fails: Callable[[Prompt], bool]
    calls: list[list[Prompt]] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        self.calls.append(list(prompts))
        groups = [
            RolloutGroup(
                prompt,
                tuple(
                    make_rollout(
                        prompt,
                        i,
                        token_ids=[1],
                        log_probs=[-1.0],
                        text="",
                        is_stopped=True,
                        policy_version=0,
                    )
                    for i in range(settings.group_size)
                ),
                num_prompt_tokens=3,
            )
            for prompt in prompts
        ]
        return groups, []

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        return {}

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        found = []
        for group in groups:
            assert labels[group.prompt.clip_id]
            values = np.array([0.0, 1.0], np.float32) * (not self.fails(group.prompt))
            found.append(replace(group, rewards=values, totals=values))
        return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("run")
    sizes = {"train": 24}
    data = write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    settings = {
        "model.path": folder / "model",
        "data.path": data,
        "train.prompts_per_step": 8,
        "train.group_size": 2,
        "sampling.bins": "[2, 5]",
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def collect(
    recipe: Recipe, folder: Path, factor: float, fails: Callable[[Prompt], bool]
) -> tuple[Workers, list[RolloutGroup], SynchronousDriver]:
    changed = {"train": recipe.train.model_copy(update={"max_refill_factor": factor})}
    workers: Any = Workers(fails)
    data, inputs = GrpoData.load(recipe), QwenVLInputs(recipe.model.path)
    pools = Pools(workers, workers, workers, workers)
    phases = Phases(recipe.model_copy(update=changed), pools, data, inputs)
    driver = SynchronousDriver(phases)
    with MetricLogger(folder) as logger:
        groups, labels, *_ = driver.collect(1, logger)
    assert {group.prompt.clip_id for group in groups} == set(labels)
    return workers, groups, driver


def strata(groups: Sequence[RolloutGroup]) -> Counter[str]:
    return Counter(group.prompt.stratum for group in groups)


def test_reasons_to_drop_a_group_by_hand() -> None:
    window = load_recipe(None, ["train.pass_rate_window=[0.2, 0.8]"])
    assert drop_reason(scored([0, 0]), window) == "all_wrong"
    assert drop_reason(scored([1, 1]), window) == "all_right"
    assert drop_reason(scored([0.5, 0.5]), window) == "all_equal"
    assert drop_reason(scored([0, 0.3]), window) == "too_hard"
    assert drop_reason(scored([1, 0.9]), window) == "too_easy"
    assert drop_reason(scored([0, 1]), window) is None
    assert drop_reason(scored([0, 0.3]), load_recipe(None)) is None
    _, dropped = split_trainable([scored([0, 0.3]), scored([0, 1])], window)
    assert dropped == {"too_hard": 1}


def test_a_pass_rate_is_of_what_answers_earned_and_not_of_what_is_compared() -> None:
    """`reward.combine: per_reward` centres rewards: 0 on average, and all 0 where all are right."""
    recipe = load_recipe(None, ["reward.combine=per_reward", "train.pass_rate_window=[0.2, 0.8]"])
    centred = np.array([-0.7, 0.7], np.float32)
    assert drop_reason(scored([1, 1], rewards=np.zeros(2, np.float32)), recipe) == "all_right"
    assert drop_reason(scored([0, 0], rewards=np.zeros(2, np.float32)), recipe) == "all_wrong"
    assert drop_reason(scored([0.3, 0.9], rewards=centred), recipe) is None
    assert drop_reason(scored([0.9, 1.0], rewards=centred), recipe) == "too_easy"
    assert drop_reason(scored([0.0, 0.1], rewards=centred), recipe) == "too_hard"


def test_the_bonus_of_the_contrast_is_no_part_of_the_pass_rate() -> None:
    recipe = load_recipe(None, ["train.pass_rate_window=[0.2, 0.8]"])
    with_bonus = np.array([0.9, 1.2], np.float32)
    assert drop_reason(scored([0.6, 0.9], rewards=with_bonus), recipe) is None
    bonus = np.full(2, 0.3, np.float32)
    assert drop_reason(scored([0, 0], rewards=bonus), recipe) == "all_wrong"


def test_a_group_is_tied_where_its_estimator_sees_no_difference() -> None:
    best = load_recipe(None, ["algorithm.advantage=grpo_passk"])
    assert drop_reason(scored([1, 1, 0]), best) == "tied_best"
    assert drop_reason(scored([1, 0, 0]), best) is None
    assert drop_reason(scored([1, 1, 0]), load_recipe(None)) is None

    gdpo = load_recipe(None, ["algorithm.advantage=gdpo", "reward.weights={obo: 3, format: 1}"])
    parts = {"obo": [0.9, 1.0, 1.0], "format": [0.6, 0.3, 0.3], "temporal": [np.nan] * 3}
    arrays = {name: np.array(values, np.float32) for name, values in parts.items()}
    differ = scored([0.825, 0.825, 0.825], reward_parts=arrays)
    assert drop_reason(differ, gdpo) is None  # the parts differ, though their sums do not
    assert drop_reason(differ, load_recipe(None)) == "all_equal"
    even = load_recipe(None, ["algorithm.advantage=gdpo", "reward.weights={obo: 1, format: 1}"])
    assert drop_reason(scored([0.75, 0.65, 0.65], reward_parts=arrays), even) == "all_equal"


def test_answers_that_are_masked_leave_nothing_to_train_on() -> None:
    masked = "algorithm.mask_truncated=true"
    cut = (RolloutStatus.TRUNCATED, RolloutStatus.STOPPED)
    prompt = Prompt("p", "c", "?", PLAN, "1-5")
    answers = [
        make_rollout(
            prompt, i, token_ids=[1], log_probs=[-1.0], text="", is_stopped=i == 1, policy_version=0
        )
        for i in range(2)
    ]
    assert tuple(answer.status for answer in answers) == cut
    both, first = (answers[0], answers[0]), tuple(answers)
    assert (
        drop_reason(scored([0, 1], rollouts=both), load_recipe(None, [masked])) == "all_truncated"
    )
    assert drop_reason(scored([0, 1], rollouts=both), load_recipe(None)) is None
    assert drop_reason(scored([1, 0], rollouts=first), load_recipe(None, [masked])) is None
    best = load_recipe(None, [masked, "algorithm.advantage=grpo_passk"])
    assert drop_reason(scored([1, 0], rollouts=first), best) == "best_truncated"
    assert drop_reason(scored([0, 1], rollouts=first), best) is None


def test_no_refill_by_default(recipe: Recipe, tmp_path: Path) -> None:
    workers, groups, _ = collect(recipe, tmp_path, 0.0, lambda prompt: True)
    assert [len(call) for call in workers.calls] == [8]
    assert len(groups) == 8


def test_a_dropped_group_is_replaced_within_its_stratum(recipe: Recipe, tmp_path: Path) -> None:
    """Every first attempt fails: what is trained on has the strata of the first draw."""
    workers, groups, driver = collect(recipe, tmp_path, 1.0, lambda prompt: prompt.num_refills == 0)
    trainable, dropped = split_trainable(groups, recipe)
    assert [len(call) for call in workers.calls] == [8, 8]
    assert [p.stratum for p in workers.calls[1]] == [p.stratum for p in workers.calls[0]]
    assert strata(trainable) == strata(groups[:8])
    assert dropped == {"all_wrong": 8}
    assert len({group.prompt.prompt_id for group in groups}) == 16
    assert {key: n for key, n in driver.phases.sampler.histogram.items() if n} == strata(groups)


def test_a_stratum_that_fails_keeps_its_share(recipe: Recipe, tmp_path: Path) -> None:
    """Half of the hard stratum fails once; without refill, its share would be halved."""
    first = collect(recipe, tmp_path / "a", 0.0, lambda prompt: False)[1]
    hard = first[0].prompt.stratum

    def fails(prompt: Prompt) -> bool:
        return (
            prompt.stratum == hard
            and prompt.num_refills == 0
            and int(prompt.prompt_id[10]) % 2 == 0
        )

    _, groups, _ = collect(recipe, tmp_path / "b", 1.0, fails)
    assert len(groups) > 8
    assert strata(split_trainable(groups, recipe)[0]) == strata(first)


def test_the_refill_is_bounded(recipe: Recipe, tmp_path: Path) -> None:
    workers, groups, _ = collect(recipe, tmp_path, 1.5, lambda prompt: True)
    assert [len(call) for call in workers.calls] == [8, 8, 4]  # 1.5 times 8 at most
    assert [group.prompt.num_refills for group in groups] == [0] * 8 + [1] * 8 + [2] * 4
    assert split_trainable(groups, recipe)[0] == []


def test_a_step_is_as_it_was_forecast(recipe: Recipe, tmp_path: Path) -> None:
    """What `actrep headroom` plays through with probed groups, against the loop itself.

    Half of the clips fail, whenever they are asked; refills reach two thirds of a step.
    """

    def fails(prompt: Prompt) -> bool:
        return crc32(prompt.clip_id.encode()) % 2 == 0

    _, _, driver = collect(recipe, tmp_path / "a", 0.67, fails)
    real = []
    with MetricLogger(tmp_path / "b") as logger:
        for step in range(2, 152):
            groups, *_ = driver.collect(step, logger)
            useful, _ = split_trainable(groups, recipe)
            real.append((len(useful), len(groups)))
    num_useful, num_asked = np.mean(real, axis=0)
    drawn = CountSampler(clips_among(driver.phases.data.train), recipe.sampling, seed=9).take(400)
    is_useful = [crc32(sampled.clip.id.encode()) % 2 != 0 for sampled in drawn]
    shape = (len(drawn), 1)
    probed = ProbedGroups(
        strata=np.unique([sampled.stratum for sampled in drawn], return_inverse=True)[1],
        is_useful=np.reshape(is_useful, shape),
        response_tokens=np.ones(shape, int),
        prompt_tokens=np.ones(shape, int),
    )
    step_forecast = forecast_step(probed, prompts_per_step=8, max_refills=5, seed=0)
    assert 0.2 < np.mean(is_useful) < 0.8
    assert num_useful > 8 * np.mean(is_useful) + 1  # the refills are no small matter
    assert step_forecast.useful_groups.value == pytest.approx(num_useful, rel=0.06)
    assert step_forecast.issued_groups == pytest.approx(num_asked, rel=0.06)


def test_a_window_that_is_none() -> None:
    for window in ("[0.8, 0.2]", "[1.2, 2.0]", "[-1.0, 0.0]"):
        with pytest.raises(ConfigError, match=r"train.pass_rate_window=\[.*0 <= low < high <= 1"):
            load_recipe(None, [f"train.pass_rate_window={window}"])
