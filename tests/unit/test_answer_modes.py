"""Where an answer reasons (`data.reasoning`), through question, SFT, reward and evaluation."""

from typing import get_args

import pytest

from actrep_ray.config import ConfigError, DataConfig, Recipe, load_recipe
from actrep_ray.evaluation.predictions import prediction_of_text
from actrep_ray.tasks.counting import Counting
from data_prep.references import reference_of
from data_prep.schema import Clip
from rewards.compose import RewardSpec, score
from rewards.format import REASONING

TASK = Counting()
CLIP = Clip(
    id="a",
    dataset="mine",
    split="train",
    video="a.mp4",
    start_s=0.0,
    end_s=5.0,
    video_fps=10.0,
    num_frames=50,
    width=64,
    height=64,
    action="squat",
    count=2,
    cycles=((0.5, 2.0), (2.0, 4.0)),
)
QUESTIONS = {
    "before": "How many times is the action repeated? List each repetition.",
    "none": "How many times is the action repeated? Write the number alone in <answer></answer>.",
    "after": "How many times is the action repeated? Write the number in <answer></answer>, then "
    "list each repetition in <think></think>.",
}


def recipe(reasoning: str, *settings: str) -> Recipe:
    return load_recipe(None, [f"data.reasoning={reasoning}", *settings])


def target(reasoning: str) -> str:
    return TASK.target(CLIP, recipe(reasoning).data, 0)


def reward(text: str, reasoning: str) -> float:
    spec = RewardSpec.from_mapping(recipe(reasoning).reward.weights)
    return score(text, reference_of(CLIP), spec).total


def test_the_modes_have_the_same_names_everywhere() -> None:
    assert get_args(DataConfig.model_fields["reasoning"].annotation) == REASONING
    assert tuple(QUESTIONS) == REASONING


@pytest.mark.parametrize("reasoning", REASONING)
def test_each_mode_is_asked_taught_paid_and_read(reasoning: str) -> None:
    cfg, text = recipe(reasoning).data, target(reasoning)
    assert TASK.question(CLIP, cfg) == QUESTIONS[reasoning]
    assert TASK.rejection(text, CLIP, cfg) is None
    assert reward(text, reasoning) == pytest.approx(1.0)
    found = prediction_of_text("a", text, TASK, dialect=cfg.dialect)
    assert found.reading == 2
    assert len(found.cycles) == (0 if reasoning == "none" else 2)
    for other in set(REASONING) - {reasoning}:  # right count, another form
        assert TASK.rejection(target(other), CLIP, cfg) is not None
        assert reward(target(other), reasoning) < 0.995
    wrong = text.replace("<answer>2<", "<answer>3<")
    assert TASK.rejection(wrong, CLIP, cfg) == "wrong_count"
    assert reward(wrong, reasoning) < 0.7


def test_what_is_taught_by_hand() -> None:
    assert target("none") == "<answer>2</answer>"
    lines = target("after").splitlines()
    assert lines[:2] == ["<answer>2</answer>", "<think>"]
    assert lines[-2:] == ["Total: 2", "</think>"]
    assert "\n".join([*lines[1:], lines[0]]) == target("before")
    # A harness that takes the first number of a text finds the count.
    assert not any(character.isdigit() for character in target("after").partition("2")[0])


def test_reasoning_that_contradicts_the_answer_is_not_taught() -> None:
    cfg = recipe("after").data
    assert TASK.rejection(target("after").replace("Total: 2", "Total: 3"), CLIP, cfg) is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["reward.weights={obo: 0.9, format: 0.1}"], "reward.weights.format pays for reasoning"),
        (
            ["reward.weights={obo: 0.9, think_answer: 0.1}"],
            "think_answer pays for reasoning=before",
        ),
    ],
)
def test_a_reward_for_another_form_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe("after", *settings)


def test_a_recipes_own_question_and_rewards_win() -> None:
    own = recipe("none", "data.question=Count.", "reward.weights={exact: 1.0}")
    assert own.data.question == "Count."
    assert own.reward.weights == {"exact": 1.0}
