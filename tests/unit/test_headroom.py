"""What a start could win: the forecast of a step, the advice, and how both come of a probe."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.headroom import HeadroomJob, Scored, prepare_headroom
from actrep_ray.driver.phases import GrpoData, source_for
from actrep_ray.driver.strata import make_sampler
from actrep_ray.evaluation.answer_figures import Answers
from actrep_ray.evaluation.figure_style import save
from actrep_ray.evaluation.headroom import Probe, Start, headroom_of
from actrep_ray.evaluation.headroom_advice import (
    MAX_PASS_AT_1,
    MIN_ABOVE_BLIND,
    MIN_CONSISTENT,
    MIN_GAIN,
    MIN_PARSE_RATE,
    MIN_PASS_AT_K,
    MIN_USEFUL,
    advise,
)
from actrep_ray.evaluation.headroom_figure import draw_headroom
from actrep_ray.evaluation.headroom_tables import headroom_tables
from actrep_ray.evaluation.step_forecast import ProbedGroups, StepForecast, forecast_step
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.scoring.dispatch import with_scores
from actrep_ray.scoring.worker import GroupScores, RewardWorker, make_spec, texts_of
from actrep_ray.tasks.loading import load_task
from data_prep.rows import clips_among
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan
from rewards.reference import Reference

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
GOOD = {
    "parse_rate": 1.0,
    "consistent": 1.0,
    "pass_at_1": 0.4,
    "pass_at_k": 0.8,
    "blind": 0.1,
    "useful": 0.9,
}


# --- the forecast of a step


def groups_of(
    useful: Sequence[Sequence[bool]], strata: Sequence[int] | None = None
) -> ProbedGroups:
    is_useful = np.array(useful)
    return ProbedGroups(
        strata=np.zeros(len(is_useful), int) if strata is None else np.array(strata),
        is_useful=is_useful,
        response_tokens=np.full(is_useful.shape, 100),
        prompt_tokens=np.full(is_useful.shape, 7),
    )


def forecast(groups: ProbedGroups, slots: int, refills: int, seed: int = 0) -> StepForecast:
    return forecast_step(groups, prompts_per_step=slots, max_refills=refills, seed=seed)


def test_a_step_where_every_group_is_useful() -> None:
    step = forecast(groups_of([[True]] * 5), 8, 16)
    assert (step.useful_groups.value, step.useful_groups.low, step.useful_groups.high) == (8, 8, 8)
    assert (step.issued_groups, step.response_tokens, step.prompt_tokens) == (8, 800, 56)


def test_a_step_where_none_is_useful_spends_all_refills() -> None:
    step = forecast(groups_of([[False]] * 5), 8, 13)
    assert step.useful_groups.value == 0
    assert (step.issued_groups, step.response_tokens) == (21, 2100)


def test_one_slot_with_one_refill_by_hand() -> None:
    """Half of the groups are useful: 1/2 + 1/2 * 1/2 of a group, 1 + 1/2 asked."""
    step = forecast(groups_of([[True], [False]]), 1, 1)
    assert step.useful_groups.value == pytest.approx(0.75, abs=0.08)  # 4 standard errors
    assert step.issued_groups == pytest.approx(1.5, abs=0.09)


def test_a_refill_stays_in_its_stratum() -> None:
    """A stratum that never teaches is refilled in vain: half of two slots, not more.

    All 4 refills are spent unless both slots are of the other stratum: 2 + 4 * 3/4 groups.
    """
    step = forecast(groups_of([[True], [False]], strata=[1, 0]), 2, 4)
    assert step.useful_groups.value == pytest.approx(1.0, abs=0.13)
    assert step.issued_groups == pytest.approx(5.0, abs=0.32)


def test_the_interval_is_of_the_probe_and_of_ten_steps() -> None:
    """Of p = 1/2 in 40 prompts and 10 steps of 8: sd of p sqrt(1/4 (1/40 + 1/80)) = 0.097."""
    step = forecast(groups_of([[True], [False]] * 20), 8, 0)
    width = (step.useful_groups.high - step.useful_groups.low) / 8
    assert width == pytest.approx(2 * 1.96 * 0.0968, rel=0.15)
    assert step.useful_groups.low < 4 < step.useful_groups.high


@settings(max_examples=12)  # a third of a second each
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_bounds_of_a_step(groups: list[tuple[bool, int]], slots: int, refills: int) -> None:
    probed = groups_of([[useful] for useful, _ in groups], [stratum for _, stratum in groups])
    plain, refilled = forecast(probed, slots, 0), forecast(probed, slots, refills)
    for step, most in ((plain, 0), (refilled, refills)):
        assert 0 <= step.useful_groups.low <= step.useful_groups.high <= slots
        assert slots <= step.issued_groups <= slots + most
        assert step.response_tokens == pytest.approx(100 * step.issued_groups)
    assert plain.issued_groups == slots


# --- advice


@pytest.mark.parametrize(
    ("change", "flat", "name", "reason"),
    [
        ({}, {}, "ready", "pass@8 0.80 is 0.40 above pass@1 0.40"),
        ({"parse_rate": 0.5}, {}, "SFT first", "50% of the answers can be read"),
        ({"consistent": 0.51}, {}, "SFT first", "agree in 51% of the answers"),
        ({"pass_at_1": 0.12}, {}, "SFT first", "does not look at the video"),
        ({"pass_at_1": 0.2, "pass_at_k": 0.24}, {}, "SFT first", "pass@8 is 0.24"),
        ({"pass_at_1": 0.95, "pass_at_k": 1.0}, {}, "harder data", "0.95 already"),
        ({"pass_at_k": 0.45}, {}, "raise the temperature", "only 0.05 above pass@1"),
        ({"useful": 0.2}, {"all_right": 0.5}, "harder data", "in 50% all answers earn everything"),
        ({"useful": 0.2}, {"all_wrong": 0.6, "all_right": 0.2}, "SFT first", "in 60% all"),
        ({"useful": 0.2}, {"all_equal": 0.8}, "raise the temperature", "20% of the groups"),
        ({"useful": 0.2}, {}, "raise the temperature", "too much alike"),  # another filter
    ],
)
def test_each_rule_speaks(
    change: Mapping[str, float], flat: Mapping[str, float], name: str, reason: str
) -> None:
    advice = advise(GOOD | dict(change), flat, 8)
    assert advice.name == name
    assert reason in advice.reason


def test_form_comes_before_all_else_and_sight_before_room() -> None:
    hopeless = dict.fromkeys(GOOD, 0.0)
    assert "can be read" in advise(hopeless, {}, 8).reason
    assert "agree" in advise(hopeless | {"parse_rate": 1.0}, {}, 8).reason
    readable = hopeless | {"parse_rate": 1.0, "consistent": 1.0}
    assert "does not look" in advise(readable, {}, 8).reason


def test_a_set_with_one_count_is_hard_to_look_at_but_done() -> None:
    """All clips have one count and all answers say it: not blind, but nothing to win."""
    done = GOOD | {"pass_at_1": 1.0, "pass_at_k": 1.0, "blind": 1.0, "useful": 0.0}
    assert advise(done, {"all_right": 1.0}, 8).name == "harder data"


@pytest.mark.parametrize(
    ("key", "limit", "others"),
    [
        ("parse_rate", MIN_PARSE_RATE, {}),
        ("consistent", MIN_CONSISTENT, {}),
        ("pass_at_1", GOOD["blind"] + MIN_ABOVE_BLIND, {}),
        ("pass_at_k", MIN_PASS_AT_K, {"pass_at_1": MIN_PASS_AT_K - MIN_GAIN - 0.01, "blind": 0.0}),
        ("pass_at_k", GOOD["pass_at_1"] + MIN_GAIN, {}),
        ("useful", MIN_USEFUL, {}),
    ],
)
def test_a_limit_is_where_it_says(key: str, limit: float, others: Mapping[str, float]) -> None:
    base = GOOD | dict(others)
    assert advise(base | {key: limit + 1e-6}, {}, 8).name == "ready"
    assert advise(base | {key: limit - 1e-6}, {}, 8).name != "ready"


def test_the_limit_above_which_there_is_little_to_win() -> None:
    full = GOOD | {"pass_at_k": 1.0}
    assert advise(full | {"pass_at_1": MAX_PASS_AT_1 - 1e-6}, {}, 8).name == "ready"
    assert advise(full | {"pass_at_1": MAX_PASS_AT_1 + 1e-6}, {}, 8).name == "harder data"


def test_a_task_without_consistency_is_not_asked_for_it() -> None:
    assert advise({k: v for k, v in GOOD.items() if k != "consistent"}, {}, 8).name == "ready"


# --- a probe put together


def probe() -> Probe:
    """Four prompts of two groups of two answers."""
    truths = [3, 3, 11, 5]
    readings = [(3, 3, 3, 3), (3, 4, 2, 3), (4, 4, 5, None), (5, 6, 5, 5)]
    consistent = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]]
    asked = [
        Answers(row, np.array([r == truth for r in row]), truth, np.array(agree, bool))
        for row, truth, agree in zip(readings, truths, consistent, strict=True)
    ]
    reasons: list[list[str | None]] = [
        ["all_right", "all_right"], [None, None], ["all_wrong", None], [None, "all_right"],
    ]  # fmt: skip
    useful = [[reason is None for reason in row] for row in reasons]
    return Probe(
        start=Start("mine", "models/[red]x", 2, 4, 0, 0.5, 0),
        asked=asked,
        drop_reasons=reasons,
        flat=("all_right", "all_wrong"),
        groups=groups_of(useful, [0, 0, 1, 0]),
        accuracy={"obz": 9 / 16},
        generate_s=0.5,
        score_s=0.25,
    )


def test_a_probe_comes_to_these_figures() -> None:
    found = headroom_of(probe(), num_bootstrap=200)
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values == pytest.approx(
        {
            "pass_at_1": (1 + 0.5 + 0 + 0.75) / 4,
            "pass_at_k": 3 / 4,  # of all 4 answers
            "majority": 3 / 4,
            "parse_rate": 15 / 16,
            # Of the 12 answers of others: 3 twice (2 and 0 of them others'), ...
            "blind": (2 / 12 + 4 / 12 + 0 + 1 / 12) / 4,
            "flat": (1 + 0 + 0.5 + 0.5) / 4,
            "useful": (0 + 1 + 0.5 + 0.5) / 4,
            "consistent": 3.5 / 4,
        }
    )
    assert all(figure.low <= figure.value <= figure.high for figure in found.figures.values())
    assert found.figures["pass_at_k"].method == "wilson"  # a share of prompts
    assert found.figures["pass_at_1"].method == "bootstrap"  # a mean of shares
    assert found.dropped == {"all_right": 3 / 8, "all_wrong": 1 / 8}
    assert found.never_answered == [11]
    assert found.num_right == [4, 2, 0, 3]
    assert (found.num_prompts, found.num_answers) == (4, 4)
    assert (found.generate_s, found.score_s) == (2.0, 1.0)  # of 4 groups
    assert found.step.useful_groups.value == pytest.approx(2.0, abs=0.2)


def test_a_share_of_one_has_an_interval() -> None:
    """A bootstrap of ones is [1, 1], whatever their number."""
    asked = [replace(one, is_consistent=np.ones(4, bool)) for one in probe().asked]
    sure = replace(probe(), asked=asked)
    consistent = headroom_of(sure, num_bootstrap=200).figures["consistent"]
    assert consistent.value == 1.0
    assert consistent.low == pytest.approx(0.51, abs=0.01)


def test_it_is_told_as_json_tables_and_a_picture(tmp_path: Path) -> None:
    found, task = headroom_of(probe(), num_bootstrap=200), load_task("counting")
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["figures"]["pass_at_1"]["value"] == pytest.approx(0.5625)
    assert told["pass_at"] == {"1": 0.5625, "2": pytest.approx(17 / 24), "4": 0.75}
    assert told["advice"]["name"] == found.advice.name
    assert told["never_answered"] == [11]
    assert told["step"]["useful_groups"]["value"] == found.step.useful_groups.value
    answered, step, readings = headroom_tables(found, task)
    rows = {row[0]: row[1] for row in answered.rows}
    assert rows["pass@4"].startswith("0.750 [")
    assert rows["answers whose list, total and answer agree"].startswith("0.875 [")
    assert rows["  dropped: all answers earn everything"] == "0.375"
    assert ("seconds to generate", "2.00") in step.rows
    assert ("11", "1", "0", "0.00") in readings.rows
    assert ("3", "2", "6", "0.75") in readings.rows
    assert readings.note == "Never answered, though right: 11."
    save(draw_headroom(found, task), tmp_path / "headroom.png")
    assert (tmp_path / "headroom.png").read_bytes()[:4] == b"\x89PNG"


def test_reasons_are_counted_over_groups() -> None:
    found = headroom_of(probe(), num_bootstrap=20)
    assert Counter(found.dropped).total() + found.figures["useful"].value == pytest.approx(1.0)


# --- a job, its engine and reward worker in this process


class Workers:
    """What a pool of engines and one of reward workers do, without Ray; right every third time."""

    def __init__(self, recipe: Recipe, cannot_read: str = "") -> None:
        self.cannot_read = cannot_read
        self.worker = RewardWorker(make_spec(recipe), recipe.task)
        self.recipe = recipe
        self.batches: list[list[str]] = []

    def submit(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: Callable[[RolloutGroup], None],
        on_refused: Callable[[Refusal], None],
    ) -> None:
        self.batches.append([prompt.prompt_id for prompt in prompts])
        for prompt in reversed(prompts):  # they do not come in order
            if prompt.clip_id == self.cannot_read:
                on_refused(Refusal(prompt, "unreadable", "no such video"))
                continue
            number = sum(map(ord, prompt.prompt_id))
            texts = [
                "<answer>12</answer>" if number % 3 == 0 or i else "<answer>no</answer>"
                for i in range(settings.group_size)
            ]
            rollouts = tuple(
                make_rollout(
                    prompt,
                    i,
                    token_ids=[1, 2, 3],
                    log_probs=[-1.0] * 3,
                    text=text,
                    is_stopped=True,
                    policy_version=0,
                )
                for i, text in enumerate(texts)
            )
            on_group(RolloutGroup(prompt, rollouts, 10))

    def wait(self, is_done: Callable[[], bool], what: Callable[[], str]) -> None:
        assert is_done(), what()

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        found = []
        for group in groups:
            [scores] = self.worker.score([texts_of(group, labels, self.recipe)])
            assert isinstance(scores, GroupScores)
            found.append(with_scores(group, scores))
        return found


@pytest.fixture(scope="module")
def asked_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tmp_path = tmp_path_factory.mktemp("asked")
    folder = tmp_path / "data"
    data = write_dataset(folder, level="easy", num_clips={"train": 9}, seed=0, num_processes=1)
    write_tiny_model(tmp_path / "model")
    settings = {
        "model.path": tmp_path / "model",
        "data.path": data,
        "train.prompts_per_step": 3,
        "train.group_size": 2,
        "video.max_pixels": 1024,
        "reward.weights": '{"exact": 1.0}',
        "train.max_refill_factor": 0.5,
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def test_a_clip_that_cannot_be_read_is_told_before_the_run(asked_recipe: Recipe) -> None:
    clip = GrpoData.load(asked_recipe).train[3].id
    pool: Any = Workers(asked_recipe, cannot_read=clip)
    job = prepare_headroom(asked_recipe, num_prompts=9)
    with pytest.raises(RefusedError, match="no such video"):
        job.probe(source_for(asked_recipe, pool, pool), lambda _: None)


def test_a_job_asks_the_prompts_of_the_first_steps_and_judges_them_by_the_recipe(
    asked_recipe: Recipe,
) -> None:
    recipe = asked_recipe
    job, workers = prepare_headroom(recipe, num_prompts=8, num_answers=4), Workers(recipe)
    pool: Any = workers
    told: list[int] = []
    found = job.probe(source_for(recipe, pool, pool), told.append)
    # 8 prompts of two groups each, in batches of 3; the first group's name is the run's own.
    assert [len(batch) for batch in workers.batches] == [3, 3, 3, 3, 3, 1]
    asked = [name for batch in workers.batches for name in batch]
    drawn = make_sampler(GrpoData.load(recipe).train, recipe).take(8)
    assert asked[::2] == [
        f"{i // 3 + 1:06d}-{i % 3:04d}-{sampled.clip.id}" for i, sampled in enumerate(drawn)
    ]
    assert len(set(asked)) == 16
    assert told == list(range(1, 17))
    # By hand: a count of 12 is told by every answer but the first of two groups in three.
    truths = [clip.count for clip in clips_among(sampled.clip for sampled in drawn)]
    is_whole = [sum(map(ord, name)) % 3 == 0 for name in asked]
    for i, (one, reasons) in enumerate(zip(found.asked, found.drop_reasons, strict=True)):
        whole = is_whole[2 * i : 2 * i + 2]
        readings = [reading for w in whole for reading in (12 if w else None, 12)]
        assert (one.truth, list(one.readings)) == (truths[i], readings)
        of_right = ["all_right" if w else None for w in whole]
        assert reasons == (of_right if truths[i] == 12 else ["all_wrong"] * 2)
    assert 12 in truths
    assert found.groups.response_tokens.tolist() == [[6, 6]] * 8
    assert found.groups.prompt_tokens.tolist() == [[10, 10]] * 8
    assert found.accuracy["obz"] == np.mean([one.is_right.mean() for one in found.asked])
    assert (found.start.prompts_per_step, found.start.max_refills) == (3, 1)
    assert headroom_of(found, num_bootstrap=50).num_answers == 4


def test_a_reward_that_fails_is_a_mistake_of_its_recipe(tmp_path: Path) -> None:
    failed = RolloutGroup(Prompt("p", "c", "?", PLAN, "1-5"), (), 3, failure="reward_raised")
    job = HeadroomJob(load_recipe(None), tmp_path, None, None, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1 of 1 groups could not be scored \(reward_raised\)"):
        job.judged(Scored([failed], 0.0, 0.0), {})


# --- careless input


RECIPE = """
stage: grpo
name: mine
runs_dir: {folder}/runs
model: {{path: {folder}/absent}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024}}
train: {{group_size: 4}}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The model of the recipe, where there is to be one."""
    write_tiny_model(tmp_path / "absent")
    return tmp_path / "absent"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", level="easy", num_clips={"train": 1}, seed=0, num_processes=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "absent: no such checkpoint"),
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["--model", "nowhere"], "nowhere: no such checkpoint"),
        (["--model", "nowhere", "--set", "model.path=elsewhere"], "elsewhere: no such checkpoint"),
        (["--set", "stage=sft"], "stage=sft, expected a recipe of stage grpo"),
        (["--set", "data.path=none.jsonl"], "none.jsonl"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    given: list[str], words: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["headroom", str(recipe), *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not (recipe.parent / "runs").exists()


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--prompts", "7"], "7 prompts: expected 8 to 100,000"),
        (["--answers", "6"], "6 answers to a prompt: expected a multiple of train.group_size=4"),
        (["--answers", "0"], "0 answers to a prompt"),
        (["--prompts", "1" + "0" * 20], "00000 prompts: expected 8 to 100,000"),
        (["--answers", "4000"], "4000 answers to a prompt"),
        (["--set", "reward.weights={abc: 1.0}"], "reward.weights"),
    ],
)
def test_a_mistake_with_a_good_model_is_one_line_too(
    given: list[str], words: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_a_mistake_is_one_line_before_anything_starts(given, words, recipe, capsys)


def test_what_is_there_is_not_written_over(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = recipe.parent / "runs" / "mine" / "headroom" / "headroom.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    assert main(["headroom", str(recipe)]) == 2
    assert f"{there}: is there already; give --overwrite" in capsys.readouterr().err
    assert main(["headroom", str(recipe), "--overwrite"]) == 2
    assert "absent: no such checkpoint" in capsys.readouterr().err  # it goes on to look
    assert there.read_text() == "{}"
