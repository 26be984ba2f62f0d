"""The lists that SFT has a model read beside its clips."""

import pytest

from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.text_lists import text_lists
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from rewards.grammar.read import parse


def recipe_with(*settings: str) -> Recipe:
    return load_recipe(None, ["stage=sft", "data.path=unused.jsonl", *settings])


@pytest.fixture(scope="module")
def inputs() -> QwenVLInputs:
    return QwenVLInputs(base_model_folder())


@pytest.mark.parametrize("dialect", ["think", "thinking"])
def test_of_right_lists_all_is_learned_that_can_be_known(
    inputs: QwenVLInputs, dialect: str
) -> None:
    settings = "sft.text_lists=6", "sft.text_list_length=12", f"data.dialect={dialect}"
    [row] = text_lists(recipe_with(*settings), inputs, 3)
    assert row.plan is None
    lengths = []
    for response, learned in zip(row.responses, row.learned, strict=True):
        read = parse(inputs.decode_answer(response), dialect=dialect)
        assert read.cycles is not None
        lengths.append(len(read.cycles))
        assert read.count == read.total == len(read.cycles)
        labels = "".join(f"rep{n}:" for n in range(1, len(read.cycles) + 1))
        _, rest = inputs.tokenizer.decode(response).split("Check:")
        assert inputs.tokenizer.decode(response[learned]) == labels + rest
        assert rest.endswith(f"</{dialect}>\n<answer>{read.count}</answer><|im_end|>")
    assert max(lengths) <= 12
    assert len(set(lengths)) > 1


def test_they_depend_on_seed_and_step_alone(inputs: QwenVLInputs) -> None:
    recipe = recipe_with("sft.text_lists=2")

    def texts(recipe: Recipe, step: int) -> list[str]:
        return [inputs.decode_answer(r) for r in text_lists(recipe, inputs, step)[0].responses]

    assert texts(recipe, 5) == texts(recipe, 5)
    assert texts(recipe, 5) != texts(recipe, 6)
    assert texts(recipe, 5) != texts(recipe_with("sft.text_lists=2", "seed=1"), 5)


def test_there_are_none_unless_they_are_asked_for(inputs: QwenVLInputs) -> None:
    assert text_lists(recipe_with(), inputs, 1) == []


def test_several_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sft.text_lists=2 is for one rank"):
        recipe_with("sft.text_lists=2", "learner.num_workers=2", "sft.clips_per_step=4")


def test_lists_belong_to_reasoning_before_the_answer() -> None:
    with pytest.raises(ConfigError, match=r"data.reasoning=none wants none there: set sft.text_li"):
        recipe_with("sft.text_lists=2", "data.reasoning=none")


def test_spans_hold_where_the_template_opens_the_answer(
    inputs: QwenVLInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "opened", "<think>\n")
    [row] = text_lists(recipe_with("sft.text_lists=4"), inputs, 1)
    for response, learned in zip(row.responses, row.learned, strict=True):
        read = parse(inputs.decode_answer(response))
        assert inputs.tokenizer.decode(response[learned]).endswith(
            f"Total: {read.count}\n</think>\n<answer>{read.count}</answer><|im_end|>"
        )
