"""What a token of a listed repetition is paid for, by hand, with the small model's tokenizer."""

from dataclasses import replace

import numpy as np
import pytest

from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.credit import with_credit
from actrep_ray.driver.groups import row_of
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.records import Prompt, Rollout, RolloutGroup, RolloutStatus
from data_prep.video import FramePlan
from rewards.reference import Reference

PLAN = FramePlan("clip.mp4", 1, (0.0,), 1.0, 32, 32)
MARKS = Reference(count=2, cycles=((1.0, 2.0), (2.0, 3.0)), duration_s=5.0)
RIGHT = "rep1: 1.0-2.0s\nrep2: 2.0-3.0s\n"  # 1 and 1
LATE = "rep1: 1.5-2.0s\n"  # the half of the first: 0.5
ADVANTAGES = np.array([0.7, -0.7], np.float32)


@pytest.fixture(scope="module")
def inputs() -> QwenVLInputs:
    return QwenVLInputs(base_model_folder())


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(None, ["algorithm.credit=repetition"])


def group_of(inputs: QwenVLInputs, *lists: str) -> RolloutGroup:
    """Answers with the given lists, of the right count."""
    rollouts = []
    for number, lines in enumerate(lists):
        text = f"<think>\nA person squats.\n{lines}Total: 2\n</think>\n<answer>2</answer>"
        ids = inputs.encode_answer(text)
        log_probs = np.zeros(len(ids), np.float32)
        rollouts.append(Rollout(f"p-{number}", ids, log_probs, text, RolloutStatus.STOPPED, 0))
    prompt = Prompt("p", "clip", "?", PLAN)
    return RolloutGroup(prompt, tuple(rollouts), 4, advantages=ADVANTAGES)


def test_tokens_of_a_repetition_have_its_own_advantage(
    inputs: QwenVLInputs, recipe: Recipe
) -> None:
    """Of 1, 1 and 0.5 the mean is 5/6 and the deviation sqrt(1/12)."""
    [group] = with_credit([group_of(inputs, RIGHT, LATE)], {"clip": MARKS}, recipe, inputs)
    row = row_of(group)
    deviation = np.sqrt(1 / 12) + 1e-6
    for number, (lines, fit) in enumerate([(RIGHT, 1.0), (LATE, 0.5)]):
        values = row.token_advantages(number)
        own = np.isclose(values, (fit - 5 / 6) / deviation)
        assert np.array_equal(values[~own], np.full((~own).sum(), ADVANTAGES[number]))
        assert inputs.tokenizer.decode(row.responses[number][own]) == lines


def test_without_marks_or_with_equal_lists_answers_are_paid_whole(
    inputs: QwenVLInputs, recipe: Recipe
) -> None:
    group = group_of(inputs, RIGHT, LATE)
    [unmarked] = with_credit([group], {"clip": replace(MARKS, cycles=None)}, recipe, inputs)
    [equal] = with_credit([group_of(inputs, RIGHT, RIGHT)], {"clip": MARKS}, recipe, inputs)
    [unlisted] = with_credit([group_of(inputs, "", "")], {"clip": MARKS}, recipe, inputs)
    [off] = with_credit([group], {"clip": MARKS}, load_recipe(None, []), inputs)
    for one in (unmarked, equal, unlisted, off):
        row = row_of(one)
        for number, advantage in enumerate(ADVANTAGES):
            assert set(row.token_advantages(number).tolist()) == {float(advantage)}


def test_an_answer_without_a_list_is_paid_whole_beside_one_with_it(
    inputs: QwenVLInputs, recipe: Recipe
) -> None:
    lists = "rep1: 1.0-2.0s\nrep2: 2.5-3.0s\n", ""
    [group] = with_credit([group_of(inputs, *lists)], {"clip": MARKS}, recipe, inputs)
    row = row_of(group)
    assert set(row.token_advantages(1).tolist()) == {float(ADVANTAGES[1])}
    found = sorted(set(row.token_advantages(0).tolist()))
    expected = np.sort([(1 - 0.75) / np.sqrt(0.125), (0.5 - 0.75) / np.sqrt(0.125), 0.7])
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_characters_that_a_token_writes(inputs: QwenVLInputs) -> None:
    text = "<think>\nA naïve 猫 🙂 rep1: 1.0-2.0s\n</think>\n<answer>1</answer>"
    ids = inputs.encode_answer(text)
    bounds = inputs.token_bounds(ids)
    assert "".join(text[first:end] for first, end in bounds) == text
    for one, (first, end) in zip(ids, bounds, strict=True):
        piece = inputs.tokenizer.decode([int(one)])
        if "\ufffd" not in piece and int(one) not in inputs.end_ids:
            assert text[first:end] == piece


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm.advantage=raft"], "imitates the best answers whole"),
        (
            ["algorithm.kl_in=reward", "algorithm.kl_coef=0.1", "algorithm.kl_type=k1"],
            "set algorithm.kl_in=loss",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, ["algorithm.credit=repetition", *settings])
