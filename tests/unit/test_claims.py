"""What answers claim: by answer, list and total; hand-made answers, numbers worked out by hand.

Of seven clips, each answer written as (answer, total, number listed)::

    clip  true  before       after
    a     3     4, 3, 3      3, 3, 3    after: list, total and answer agree
    b     2     2, 2, 2      2, 2, 2
    c     5     5, 5, 4      5, 5, 5
    d     4     none, 4, 4   5, 4, 4    before: the answer cannot be read
    e     0     0, 0, 0      1, 0, 0
    f     1     2, 2, 2      2, 2, 2
    g     6     6, 5, 5      7, 7, 7
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import load_recipe
from actrep_ray.driver.metrics import rollout_metrics
from actrep_ray.evaluation.frames import counts_frame, differences_frame, verdict_on
from actrep_ray.evaluation.gain import TERMS, split_gain
from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.predictions import (
    Prediction,
    claims_of,
    constant_predictions,
    prediction_of_text,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.run_results import remarks_on_training
from actrep_ray.evaluation.scores import (
    Metrics,
    paired_difference,
    remarks_on,
    score_predictions,
)
from actrep_ray.evaluation.tables import claims_table, comparison_table, counts_table, gain_table
from actrep_ray.scoring.worker import GroupTexts, RewardWorker, make_spec
from actrep_ray.tasks.counting import (
    Counting,
    describe_claims,
    is_consistent,
)
from actrep_ray.tasks.loading import load_task
from rewards import cycles as cycle_rewards
from rewards.grammar.read import ParsedResponse, parse
from rewards.reference import Reference

pytestmark = pytest.mark.lengthy

TASK = load_task("counting")
Said = tuple[int | None, int | None, int]

TRUE = {"a": 3, "b": 2, "c": 5, "d": 4, "e": 0, "f": 1, "g": 6}
BEFORE: list[Said] = [
    (4, 3, 3),
    (2, 2, 2),
    (5, 5, 4),
    (None, 4, 4),
    (0, 0, 0),
    (2, 2, 2),
    (6, 5, 5),
]
AFTER: list[Said] = [(3, 3, 3), (2, 2, 2), (5, 5, 5), (5, 4, 4), (1, 0, 0), (2, 2, 2), (7, 7, 7)]


def marks(count: int, start_s: float = 1.0) -> tuple[tuple[float, float], ...]:
    return tuple((start_s + k, start_s + k + 1.0) for k in range(count))


def text_of(said: Said, start_s: float = 1.0) -> str:
    answer, total, num_listed = said
    lines = [
        f"rep{i}: {a:.1f}-{b:.1f}s" for i, (a, b) in enumerate(marks(num_listed, start_s), start=1)
    ]
    lines += [] if total is None else [f"Total: {total}"]
    tag = "" if answer is None else f"\n<answer>{answer}</answer>"
    return "<think>\nA person squats.\n" + "\n".join(lines) + f"\n</think>{tag}"


def predictions(said: Sequence[Said], *, start_s: float = 1.0) -> list[Prediction]:
    texts = [text_of(one, start_s) for one in said]
    return [prediction_of_text(i, text, TASK) for i, text in zip(TRUE, texts, strict=True)]


LABELS = {clip: Reference(n, marks(n) or None, 20.0, "squat") for clip, n in TRUE.items()}
EDITIONS = (predictions(BEFORE), predictions(AFTER))


def scored(given: Sequence[Prediction]) -> Metrics:
    return score_predictions(given, LABELS, TASK, num_bootstrap=20)


# --- figures


def test_figures_by_answer_by_list_and_by_total() -> None:
    metrics = scored(EDITIONS[0])
    values = {name: interval.value for name, interval in metrics.values.items()}
    assert values == pytest.approx(
        {
            # answers 4 2 5 - 0 2 6: right b c e g, one off a f, unread d (4 for nothing)
            "mae": (1 / 3.1 + 4 / 4.1 + 1 / 1.1) / 7,
            "obo": 6 / 7,
            "obz": 4 / 7,
            "rmse": np.sqrt((1 + 16 + 1) / 7),
            "parse_rate": 6 / 7,
            "consistent": 3 / 7,  # b, e and f, of which f is wrong
            # lists 3 2 4 4 0 2 5: right a b d e, one off c f g
            "mae_list": (1 / 5.1 + 1 / 1.1 + 1 / 6.1) / 7,
            "obo_list": 1.0,
            "obz_list": 4 / 7,
            # totals 3 2 5 4 0 2 5: right a b c d e, one off f g
            "mae_total": (1 / 1.1 + 1 / 6.1) / 7,
            "obo_total": 1.0,
            "obz_total": 5 / 7,
        }
    )
    assert metrics["consistent"].method == "wilson"
    assert json.loads(json.dumps(metrics.to_json()))["consistent"]["value"] == pytest.approx(3 / 7)
    assert metrics.as_dict("eval")["eval/consistent"] == pytest.approx(3 / 7)
    assert metrics.breakdowns["bins"]["0"]["consistent"].value == 1.0


@dataclass(frozen=True)
class ByList(Counting):
    """The same task with another rule: the count is the number that is listed."""

    def read(self, response: ParsedResponse) -> int | None:
        return len(response.cycles)


def test_figures_are_of_what_was_written_whatever_the_rule_chooses() -> None:
    task = ByList()
    chosen = [prediction_of_text(p.clip_id, p.text, task) for p in EDITIONS[0]]
    assert [p.reading for p in chosen] == [3, 2, 4, 4, 0, 2, 5]
    assert score_predictions(chosen, LABELS, task, num_bootstrap=20).values == (
        scored(EDITIONS[0]).values
    )


@pytest.mark.parametrize("said", [*BEFORE, *AFTER])
def test_reward_evaluation_and_step_take_the_same_count(said: Said) -> None:
    text, truth = text_of(said), Reference(5, marks(5), 20.0, "squat")
    spec = make_spec(load_recipe(None, ["reward.weights={exact: 1.0}"]))
    (scores,) = RewardWorker(spec, "counting").score([GroupTexts(("r",), (text,), (truth,))])
    prediction = prediction_of_text("a", text, TASK)
    assert scores.readings == (prediction.reading,)  # type: ignore[union-attr]
    assert scores.claims == (prediction.claims,)  # type: ignore[union-attr]
    assert scores.totals[0] == float(prediction.reading == 5)  # type: ignore[union-attr]


def test_what_nobody_claims_is_not_judged() -> None:
    bare = [prediction_of_text(i, f"<answer>{n}</answer>", TASK) for i, n in TRUE.items()]
    told = {"mae", "obo", "obz", "rmse", "parse_rate"}
    assert set(scored(bare).values) == told
    assert set(scored(constant_predictions(TRUE, 3)).values) == told
    no_total = predictions([(n, None, n) for n in TRUE.values()])
    assert set(scored(no_total).values) == told | {"mae_list", "obo_list", "obz_list"}
    # A list that is no longer written is wrong, and nothing is hidden by leaving it out.
    changed = paired_difference(EDITIONS[1], bare, LABELS, TASK, num_bootstrap=20)
    assert changed["obz_list"].value == pytest.approx(-5 / 7)
    assert changed["consistent"].value == pytest.approx(-5 / 7)


def test_a_detector_lists_what_it_counts() -> None:
    found = [Prediction(i, n, cycles=marks(n)) for i, n in TRUE.items()]
    metrics = scored(found)
    assert metrics["obz"].value == metrics["obz_list"].value == 1.0
    assert "consistent" not in metrics.values


def test_an_older_file_has_the_same_figures(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, EDITIONS[0], TASK)
    assert read_predictions(path, TASK) == EDITIONS[0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["claims"] == {"answer": 4, "total": 3, "list": 3}
    for row in rows:
        del row["claims"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = read_predictions(path, TASK)
    assert [claims_of(p, TASK) for p in old] == [p.claims for p in EDITIONS[0]]
    assert scored(old).values == scored(EDITIONS[0]).values
    path.write_text('{"clip_id": "a", "count": 1, "claims": {"list": -1}}')
    with pytest.raises(ValueError, match=r"jsonl:1: claims.list=-1, expected an integer of at"):
        read_predictions(path, TASK)


numbers = st.none() | st.integers(0, 4)


@given(answer=numbers, total=numbers, num_listed=st.integers(0, 4), is_cut=st.booleans())
@example(answer=0, total=0, num_listed=0, is_cut=False)
def test_consistent_is_one_notion(
    answer: int | None, total: int | None, num_listed: int, is_cut: bool
) -> None:
    text = text_of((answer, total, num_listed))
    response = parse(text[: len(text) // 2] if is_cut else text)
    assert is_consistent(TASK.claims(response)) == cycle_rewards.is_consistent(response)


def test_a_step_logs_them_too() -> None:
    from tests.unit.test_driver import group_of, prompt

    texts = [text_of((4, 3, 3)), text_of((3, 3, 3))]
    group = group_of(prompt("a"), texts, [0.5, 1.0])
    labels = {"clip-a": Reference(3, marks(3), 20.0, "squat")}
    step = rollout_metrics([group], [group], Counter(), labels, 1, TASK)
    assert step["train/consistent"] == step["train/obz"] == 0.5
    assert step["train/obz_list"] == step["train/obz_total"] == 1.0
    assert step["train/mae_list"] == 0.0


# --- verdicts


def test_better_is_better_by_answer_and_by_list() -> None:
    sure, flat, fall = Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1), Interval(-0.2, -0.3, -0.1)
    figure = {f.name: f for f in TASK.figures}

    def told(by_answer: Interval, by_list: Interval, by_total: Interval = sure) -> list[str]:
        intervals = {"obz": by_answer, "obz_list": by_list, "obz_total": by_total}
        return [verdict_on(figure[name], intervals, TASK) for name in intervals]

    assert told(sure, sure) == ["better", "better", "better"]
    assert told(sure, sure, fall) == ["better", "better", "worse"]
    assert told(sure, flat) == ["not by list", "not sure", "not by list"]
    assert told(sure, fall) == ["not by list", "worse", "not by list"]
    assert told(flat, sure) == ["not sure", "not by answer", "not by answer"]
    assert told(fall, sure) == ["worse", "not by answer", "not by answer"]
    assert verdict_on(figure["obz"], {"obz": sure}, TASK) == "better"  # bare counts
    errors = {"mae": fall, "mae_list": sure}
    assert verdict_on(figure["mae"], errors, TASK) == "not by list"


def test_a_gain_by_answer_alone_is_no_better_count() -> None:
    """The answers of a run that learned to copy: every list is as it was."""
    lists = [(0, n, n) for n in TRUE.values()]
    copied = [(n, n, n) for n in TRUE.values()]
    changed = paired_difference(
        predictions(lists), predictions(copied), LABELS, TASK, num_bootstrap=200
    )
    assert changed["obz"].is_above_zero
    frame = differences_frame({"x": changed}, TASK).set_index("figure")
    assert frame.loc["obz", "verdict"] == "not by list"
    assert frame.loc["consistent", "verdict"] == "better"


# --- remarks


@pytest.mark.parametrize(
    ("by_answer", "by_list", "expected"),
    [
        (0.70, 0.75, None),
        (0.75, 0.70, None),
        (0.70, 0.76, "read off its own list"),
        (0.76, 0.70, "answers beside its own list"),
    ],
)
def test_a_remark_names_what_to_do(by_answer: float, by_list: float, expected: str | None) -> None:
    remarks = TASK.remarks({"obz": by_answer, "obz_list": by_list, "consistent": 0.5})
    if expected is None:
        assert remarks == ()
        return
    (remark,) = remarks
    assert f"exact is {by_answer:.3f} by answer and {by_list:.3f} by list" in remark
    assert expected in remark
    assert "Remedy: " in remark
    assert "50% of the answers are consistent" in remark


def test_bare_counts_are_not_remarkable() -> None:
    assert TASK.remarks({"obz": 0.9}) == ()
    assert remarks_on(scored(constant_predictions(TRUE, 3)), TASK) == ()


def test_a_training_is_remarked_on(tmp_path: Path) -> None:
    def remarks(*rows: dict[str, float]) -> tuple[str, ...]:
        lines = (json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows))
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        return remarks_on_training(tmp_path, TASK)

    apart, together = {"obz": 0.4, "obz_list": 0.7}, {"obz": 0.7, "obz_list": 0.7}
    held_out = [{f"eval/{k}": v for k, v in side.items()} for side in (apart, together)]
    sampled = [{f"train/{k}": v for k, v in side.items()} for side in (apart, together)]
    (remark,) = remarks(held_out[1], {**held_out[0], **sampled[1]}, sampled[1])
    assert remark.startswith("held out, step 1: exact is 0.400 by answer and 0.700 by list")
    assert remarks(held_out[0], {**held_out[1], **sampled[0]}) == ()
    (remark,) = remarks(*[sampled[1]] * 20, *[sampled[0]] * 5, *[sampled[1]] * 5)
    assert remark.startswith("sampled, step 29: exact is 0.550 by answer and 0.700 by list")
    assert remarks({"reward/mean": 0.5}) == ()
    assert remarks() == ()


def test_train_ends_with_the_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"stage: grpo\nruns_dir: {tmp_path}\nname: r\ndata: {{path: a.jsonl}}\n")

    class Job:
        start = None

        def run(self, *, profile: bool) -> SimpleNamespace:
            row = {"step": 5, "eval/obz": 0.358, "eval/obz_list": 0.7, "eval/consistent": 0.44}
            (tmp_path / "r").mkdir()
            (tmp_path / "r" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            return SimpleNamespace(folder=tmp_path / "r" / "checkpoints" / "5")

    monkeypatch.setattr("actrep_ray.driver.job.prepare_grpo", lambda recipe, **_: Job())
    monkeypatch.setattr("actrep_ray.cli.train.check_inputs", lambda *_, **__: None)
    monkeypatch.setattr("actrep_ray.cli.train.announce", lambda *_, **__: None)
    assert main(["train", str(recipe)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Warning: held out, step 5: exact is 0.358 by answer and 0.700 by list, and 44%" in printed
    )
    assert "Remedy: more SFT (sft.num_steps)" in printed


# --- tables


def test_the_table_of_counts_names_what_is_never_answered() -> None:
    counts = counts_frame({"m": EDITIONS[1]}, LABELS, TASK)
    columns = ["count", "clips", "answered", "right", "listed_right"]
    assert counts[columns].to_numpy().tolist() == [
        [0, 1, 0, 0, 1],
        [1, 1, 1, 0, 0],
        [2, 1, 2, 1, 1],
        [3, 1, 1, 1, 1],
        [4, 1, 0, 0, 1],
        [5, 1, 2, 1, 1],
        [6, 1, 0, 0, 0],
        [7, 0, 1, 0, 0],  # answered, and true of none
    ]
    table = counts_table("m", counts)
    assert table.rows[4] == ("4", "1", "0", "0", "1")
    assert table.note == (
        "Never answered: 0, 4 and 6 (3 of 7 clips). Answered, and never right: 1 (1 of 7 clips)."
    )
    right = [prediction_of_text(i, text_of((n, n, n)), TASK) for i, n in TRUE.items()]
    note = counts_table("m", counts_frame({"m": right}, LABELS, TASK)).note
    assert note == "Every true count is answered right at least once."


def test_claims_stand_one_below_the_other() -> None:
    from actrep_ray.evaluation.frames import predictors_frame

    metrics = {"constant 3": scored(constant_predictions(TRUE, 3)), "m": scored(EDITIONS[0])}
    table = claims_table(predictors_frame(metrics), TASK)
    assert table is not None
    assert table.columns == ("", "MAE ↓", "OBO ↑", "exact ↑", "consistent ↑")
    assert [row[0] for row in table.rows] == ["m by answer", "m by list", "m by total"]
    assert [row[3][:5] for row in table.rows] == ["0.571", "0.571", "0.714"]
    assert [row[4][:5] for row in table.rows] == ["0.429", "", ""]
    del metrics["m"]
    assert claims_table(predictors_frame(metrics), TASK) is None


def test_a_predictor_whose_answers_cannot_be_read_is_marked() -> None:
    """An unread answer stands for 0, whose error is below 1: a wild guess can look worse."""
    from actrep_ray.evaluation.frames import predictors_frame

    unread = [prediction_of_text(i, "rep rep rep", TASK) for i in TRUE]
    metrics = {"untrained": scored(unread), "m": scored(EDITIONS[0])}
    assert metrics["untrained"].values["mae"].value < 1.0
    table = comparison_table(predictors_frame(metrics), TASK)
    assert [row[0] for row in table.rows] == ["untrained *", "m"]
    assert "* Most answers give no count" in table.note
    del metrics["untrained"]
    assert "*" not in comparison_table(predictors_frame(metrics), TASK).note


def test_a_count_is_shown_with_what_it_rests_on() -> None:
    claims = TASK.claims(parse(text_of((9, 11, 11))))
    expected = "NOT consistent: answer 9, total 11, list 11; the count is the answer's"
    assert describe_claims(claims) == expected
    assert describe_claims(TASK.claims(parse(text_of((2, 2, 2))))).startswith("consistent: ")
    bare = describe_claims(TASK.claims(parse("<answer>2</answer>")))
    assert bare == "no list and no total beside the answer"


# --- where exact changed


def test_the_split_by_hand() -> None:
    gain = split_gain(*EDITIONS, LABELS, TASK, num_bootstrap=200)
    assert gain is not None
    assert {k: round(7 * v) for k, v in gain.before.items()} == {
        "in_place": 4,  # a b d e
        "elsewhere": 0,
        "unread": -1,  # d
        "not_repeated": -1,  # a
        "beside": 2,  # c g
    }
    assert {k: round(7 * v) for k, v in gain.after.items()} == {
        "in_place": 5,  # a b c d e
        "elsewhere": 0,
        "unread": 0,
        "not_repeated": -2,  # d e
        "beside": 0,
    }
    assert {k: round(7 * v.value) for k, v in gain.change.items()} == {
        "in_place": 1,
        "elsewhere": 0,
        "unread": 1,
        "not_repeated": -1,
        "beside": -2,
    }
    assert gain.total.value == pytest.approx((3 - 4) / 7)
    table = gain_table("x → y", gain)
    assert table.rows[0][:3] == ("cycles in the right place", "+0.571", "+0.714")
    assert table.rows[-1][:3] == ("exact by answer", "+0.571", "+0.429")


def test_a_repaired_format_is_no_better_counting() -> None:
    """Half of the answers could not be read; nothing else changes."""
    before = [(None if i % 2 else n, n, n) for i, n in enumerate(TRUE.values())]
    after = [(n, n, n) for n in TRUE.values()]
    gain = split_gain(predictions(before), predictions(after), LABELS, TASK, num_bootstrap=20)
    assert gain is not None
    changed = {name: interval.value for name, interval in gain.change.items()}
    assert changed == pytest.approx(dict.fromkeys(TERMS, 0.0) | {"unread": 3 / 7})
    assert gain.total.value == pytest.approx(3 / 7)


def test_the_same_lists_elsewhere_are_another_term() -> None:
    said = [(n, n, n) for n in TRUE.values()]
    shifted = predictions(said, start_s=1.5)
    gain = split_gain(predictions(said), shifted[::-1], LABELS, TASK, num_bootstrap=20)
    assert gain is not None
    changed = {name: round(7 * interval.value) for name, interval in gain.change.items()}
    assert changed == dict.fromkeys(TERMS, 0) | {"in_place": -6, "elsewhere": 6}  # nothing of 0
    assert gain.total.value == 0.0
    unmarked = {clip: replace(known, cycles=None) for clip, known in LABELS.items()}
    without = split_gain(shifted, shifted, unmarked, TASK, num_bootstrap=20)
    assert without is not None
    assert round(7 * without.before["elsewhere"]) == 6


def test_without_lists_there_is_nothing_to_split() -> None:
    bare = [prediction_of_text(i, f"<answer>{n}</answer>", TASK) for i, n in TRUE.items()]
    assert split_gain(bare, bare, LABELS, TASK) is None
    assert split_gain(EDITIONS[0], bare, LABELS, TASK, num_bootstrap=20) is not None


said = st.tuples(numbers, numbers, st.integers(0, 4), st.sampled_from([1.0, 1.5]))
Situated = tuple[int | None, int | None, int, float]
clips = st.lists(st.tuples(st.integers(0, 4), st.booleans(), said, said), min_size=1, max_size=8)


@given(clips)
@settings(max_examples=40)
def test_terms_add_up(rows: list[tuple[int, bool, Situated, Situated]]) -> None:
    labels: dict[str, Reference] = {}
    sides: tuple[list[Prediction], list[Prediction]] = ([], [])
    for i, (truth, is_marked, *texts) in enumerate(rows):
        cycles = (marks(truth) or None) if is_marked else None
        labels[str(i)] = Reference(truth, cycles, 20.0, "squat")
        for side, (answer, total, num_listed, start_s) in zip(sides, texts, strict=True):
            text = text_of((answer, total, num_listed), start_s)
            side.append(prediction_of_text(str(i), text, TASK))
    gain = split_gain(*sides, labels, TASK, num_bootstrap=5)
    back = split_gain(*sides[::-1], labels, TASK, num_bootstrap=5)
    if gain is None or back is None:
        assert gain is back is None
        return
    exact = [score_predictions(p, labels, TASK, num_bootstrap=2)["obz"].value for p in sides]
    assert sum(gain.before.values()) == pytest.approx(exact[0])
    assert sum(gain.after.values()) == pytest.approx(exact[1])
    assert sum(i.value for i in gain.change.values()) == pytest.approx(exact[1] - exact[0])
    assert gain.total.value == pytest.approx(exact[1] - exact[0])
    for name in TERMS:
        assert gain.change[name].value == pytest.approx(-back.change[name].value)
        least, most = (-1, 0) if name in ("unread", "not_repeated") else (0, 1)
        assert least <= gain.before[name] <= most
    by_list = [
        score_predictions(p, labels, TASK, num_bootstrap=2).values.get("obz_list") for p in sides
    ]
    for terms, listed in zip((gain.before, gain.after), by_list, strict=True):
        if listed is not None:
            assert terms["in_place"] + terms["elsewhere"] == pytest.approx(listed.value)
