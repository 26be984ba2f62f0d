"""The reward behind verl's signature; verl's own loader and reward manager run it."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards.compute_score as module
from rewards.compute_score import compute_score
from rewards.grammar.write import Response, render

CYCLES = ((0.5, 1.2), (1.2, 2.0))
RIGHT = render(Response("A person squats.", "down and up", CYCLES, "evenly spaced", 2, 2))
ALL_RIGHT = {"acc": 1.0, "acc_list": 1.0, "consistent": 1.0}
LABELS = {"count": 2, "cycles": [[0.5, 1.2], [1.2, 2.0]]}


@pytest.mark.parametrize(
    "ground_truth",
    [
        LABELS,
        json.dumps(LABELS),
        {"count": np.int64(2), "cycles": np.array([[0.5, 1.2], [1.2, 2.0]])},  # a parquet row
    ],
)
def test_labels_with_cycles(ground_truth: object) -> None:
    result = compute_score("repcount", RIGHT, ground_truth, {"duration_s": 2.5, "index": 7})
    assert result == {"score": 1.0, "obo": 1.0, "cycles": 1.0, "format": 1.0, **ALL_RIGHT}


@pytest.mark.parametrize(
    "ground_truth", [2, np.int32(2), "2", {"count": 2}, '{"count": 2, "cycles": null}']
)
def test_labels_without_cycles(ground_truth: object) -> None:
    result = compute_score("countix", RIGHT, ground_truth)
    assert math.isnan(result.pop("cycles"))
    assert result == {"score": 1.0, "obo": 1.0, "format": 1.0, **ALL_RIGHT}


def test_wrong_answers_and_other_weights() -> None:
    assert compute_score("countix", "", 2)["score"] == 0.0
    assert compute_score("countix", "<answer>3</answer>", 2)["acc"] == 0.0
    result = compute_score("countix", "<answer>2</answer>", 2, weights={"exact": 1.0})
    assert result == {"score": 1.0, "exact": 1.0, **ALL_RIGHT, "acc_list": 0.0, "consistent": 0.0}


def test_an_answer_beside_its_list_is_told() -> None:
    beside = render(Response("A person squats.", "down and up", CYCLES, "evenly spaced", 2, 3))
    right_list, right_answer = compute_score("a", beside, 2), compute_score("a", beside, 3)
    assert (right_list["acc"], right_list["acc_list"], right_list["consistent"]) == (0, 1, 0)
    assert (right_answer["acc"], right_answer["acc_list"], right_answer["consistent"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "ground_truth",
    [None, 2.5, True, "two", "", "2.5", [2], {"count": 2.5}, {"cycles": []}, {"count": 2, "x": 1},
     -1, {"count": 3, "cycles": [[0.5, 1.2]]}, {"count": 1, "cycles": [[1.2, 0.5]]},
     {"count": 1, "cycles": [0.5]}],
)  # fmt: skip
def test_bad_labels_are_refused(ground_truth: object) -> None:
    with pytest.raises(ValueError, match="ucfrep: ground_truth="):
        compute_score("ucfrep", RIGHT, ground_truth)


def test_bad_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="duration_s=-1"):
        compute_score("ucfrep", RIGHT, 2, {"duration_s": -1})


class Characters:
    """A tokenizer of characters, in the two calls that verl's reward manager makes."""

    def decode(self, ids: object, skip_special_tokens: bool = True) -> str:
        return "".join(chr(int(i)) for i in ids)  # type: ignore[attr-defined]


def test_verl_loads_and_runs_it() -> None:
    """By file path, as verl's configuration names it, through both of verl's naive managers."""
    torch = pytest.importorskip("torch")
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.workers.reward_manager.naive import NaiveRewardManager

    path = str(Path(module.__file__))
    reward_fn = get_custom_reward_fn(
        OmegaConf.create(
            {"reward": {"custom_reward_function": {"path": path, "name": "compute_score"}}}
        )
    )
    answers = [RIGHT, RIGHT.replace("<answer>2", "<answer>3"), "no idea"]
    ground_truths = [json.dumps(LABELS), json.dumps(LABELS), "2"]
    prompt = [ord(c) for c in "How many?"]
    longest = max(map(len, answers))
    rows = [[ord(c) for c in text] + [0] * (longest - len(text)) for text in answers]
    mask = [[1] * (len(prompt) + len(t)) + [0] * (longest - len(t)) for t in answers]
    data = DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([prompt] * 3),
            "responses": torch.tensor(rows),
            "attention_mask": torch.tensor(mask),
        },
        non_tensors={
            "data_source": np.array(["repcount"] * 3, dtype=object),
            "reward_model": np.array([{"ground_truth": g} for g in ground_truths], dtype=object),
            "extra_info": np.array([{"duration_s": 2.5} for _ in answers], dtype=object),
        },
    )
    manager = NaiveRewardManager(Characters(), num_examine=0, compute_score=reward_fn)
    result = manager(data, return_dict=True)
    rewards = result["reward_tensor"].sum(-1).tolist()
    expected = [
        compute_score("repcount", text, truth, {"duration_s": 2.5})["score"]
        for text, truth in zip(answers, ground_truths, strict=True)
    ]
    assert rewards == pytest.approx(expected)
    assert rewards[0] == 1.0
    assert rewards[0] > rewards[1] > rewards[2] == 0.0
    assert result["reward_extra_info"]["format"] == pytest.approx([1.0, 0.9, 0.0])
    assert result["reward_extra_info"]["acc"] == [1.0, 0.0, 0.0]

    # The manager of verl's reward loop scores one rollout at a time.
    async def one_by_one() -> list[dict[str, Any]]:
        manager = get_reward_manager_cls("naive")(
            OmegaConf.create({}), Characters(), compute_score=reward_fn
        )
        return [await manager.run_single(data[i : i + 1]) for i in range(len(data))]

    single = asyncio.run(one_by_one())
    assert [one["reward_score"] for one in single] == pytest.approx(expected)
    assert single[1]["reward_extra_info"]["format"] == pytest.approx(0.9)
