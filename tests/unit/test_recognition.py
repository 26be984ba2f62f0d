"""Recognition: what is asked, what is taught, what is right, and which files the task took."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from actrep_ray.config import ConfigError, DataConfig, load_recipe
from actrep_ray.evaluation.explanations import pieces_of
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.report import write_report
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.scoring.worker import GroupScores, GroupTexts, RewardWorker, make_spec
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from actrep_ray.tasks.recognition import candidates
from data_prep.activities.dataset import write_activities
from data_prep.files import DataError
from data_prep.rows import images_among, read_rows, write_rows
from rewards.format import think_answer
from rewards.grammar.read import parse
from rewards.reference import Reference
from tests.unit.test_rows import IMAGE
from tests.unit.test_schema import CLIP

ROOT = Path(__file__).resolve().parents[2]
TASK = load_task("recognition")
CLASSES = ("arms_up", "bow", "kick", "sit", "t_pose", "wave")


def config(**changes: Any) -> DataConfig:
    recipe = load_recipe(None, ["task=recognition"])
    return recipe.data.model_copy(update={"classes": CLASSES} | changes)


def test_it_has_defaults_of_its_own() -> None:
    recipe = load_recipe(None, ["task=recognition"])
    assert recipe.data.question == "Which activity is shown? {candidates} {form}"
    form = {"weight": 0.1, "reasoning": "before"}
    assert recipe.reward.weights == {"recognition": 0.9, "think_answer": form}
    assert recipe.rollout.takes_images
    short = load_recipe(None, ["task=recognition", "data.reasoning=none", "rollout.top_p=0.9"])
    assert short.reward.weights["think_answer"] == form | {"reasoning": "none"}
    assert short.rollout.takes_images
    dapo = load_recipe(None, ["task=recognition", "algorithm.preset=dapo"])
    assert dapo.reward.weights == {"recognition": 0.9, "think_answer": form, "overlong": 1.0}
    mine = load_recipe(None, ["task=recognition", "reward.weights={recognition: 1.0}"])
    assert mine.reward.weights == {"recognition": 1.0}
    counting = load_recipe(None, ["algorithm.preset=dapo"])
    assert set(counting.reward.weights) == {"obo", "cycles", "format", "overlong"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.question=Which?"], r"data\.candidates=closed, and data\.question='Which\?' has no"),
        (
            ["data.reasoning=none", "reward.weights={recognition: 1.0, think_answer: 0.1}"],
            r"think_answer pays for reasoning=before, and data\.reasoning=none",
        ),
        (["data.num_candidates=1"], r"data\.num_candidates=1"),
        (["data.candidates=some"], r"data\.candidates='some'"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_recipe(None, ["task=recognition", *settings])


def test_a_closed_question_offers_all_classes() -> None:
    asked = TASK.question(IMAGE, config())
    assert asked == (
        "Which activity is shown? Choose from: arms up, bow, kick, sit, t pose, wave. Reason in "
        "<think></think>, then name it in <answer></answer>."
    )
    assert TASK.question(replace(CLIP, action="kick"), config()) == asked


def test_an_open_question_offers_none() -> None:
    asked = TASK.question(IMAGE, config(candidates="open", reasoning="none"))
    assert asked == "Which activity is shown? Name it in <answer></answer>."


def test_a_truncated_list_holds_the_right_class_anywhere_in_it() -> None:
    cfg, seen = config(candidates="truncated", num_candidates=3), set()
    for number in range(60):
        row = replace(IMAGE, id=str(number))
        offered = candidates(row, cfg)
        assert len(set(offered)) == 3
        assert set(offered) < set(CLASSES)
        assert offered == candidates(row, cfg)
        seen.add((offered.index("arms_up"), *sorted(offered)))
    assert {position for position, *_ in seen} == {0, 1, 2}
    assert len({tuple(names) for _, *names in seen}) == 10  # all pairs of the five others
    with pytest.raises(DataError, match=r"data\.num_candidates=9: .* has 6 classes"):
        candidates(IMAGE, config(candidates="truncated", num_candidates=9))


def test_the_classes_of_the_file_are_offered_where_none_are_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    labels = ("wave", "Kick", "kick", "bow")
    write_rows(path, [replace(IMAGE, id=str(i), label=label) for i, label in enumerate(labels)])
    cfg = config(classes=(), path=str(path))
    assert candidates(replace(IMAGE, label="kick"), cfg) == ("bow", "Kick", "wave")
    with pytest.raises(DataError, match=r"row 'i': its class 'arms up' is not among the 3 of"):
        TASK.question(IMAGE, cfg)
    write_rows(path, [replace(IMAGE, label="arms_up")])
    assert candidates(IMAGE, cfg) == ("arms_up",)


TARGETS = {
    "before": "<think>\nBoth arms point up.\n</think>\n<answer>arms up</answer>",
    "none": "<answer>arms up</answer>",
    "after": "<answer>arms up</answer>\n<think>\nBoth arms point up.\n</think>",
}


@pytest.mark.parametrize("reasoning", TARGETS)
def test_what_is_taught_has_the_form_that_is_asked_for_and_no_other(reasoning: str) -> None:
    cfg = config(reasoning=reasoning)
    assert TASK.target(IMAGE, cfg, 0) == TARGETS[reasoning]
    for form, text in TARGETS.items():
        is_right = form == reasoning
        assert (TASK.rejection(text, IMAGE, cfg) is None) == is_right
        assert think_answer(parse(text), Reference(), reasoning=reasoning) == float(is_right)
    wrong = TARGETS[reasoning].replace("arms up</a", "bow</a")
    assert TASK.rejection(wrong, IMAGE, cfg) == "expected the class 'arms up' in its tag"


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<answer>bow</answer> yes", "none"),
        ("<answer></answer>", "none"),
        ("</think><answer>bow</answer>", "none"),
        ("<answer>bow</answer><think></think>", "after"),
        ("<answer>bow</answer><think>It bends.", "after"),
        ("<think>It</think><answer>bow</answer><think>bends.</think>", "after"),
        ("<think><answer>bow</answer></think>", "before"),
        ("<think>It bends.</think><answer>bow</answer><|im_end|>", "before"),
    ],
)
def test_other_forms_earn_nothing(text: str, reasoning: str) -> None:
    assert think_answer(parse(text), Reference(), reasoning=reasoning) == 0.0


def test_reasoning_somewhere_else_is_no_option() -> None:
    with pytest.raises(ValueError, match="reasoning='beside', expected one of before, none, after"):
        think_answer(parse(""), Reference(), reasoning="beside")


def test_a_row_without_a_description_has_no_reasoning_to_teach() -> None:
    for row in (CLIP, replace(IMAGE, description=None)):
        with pytest.raises(DataError, match="has no description to reason with: give data"):
            TASK.target(row, config(), 0)


# Adversarial answers, each with what the default rewards make of it: 0.9 for the class, 0.1 for
# the form (reasoning, then one answer, nothing else).
ANSWERS = {
    "<think>Up.</think><answer>arms up</answer>": 1.0,
    "<think>Up.</think><answer>ARMS-UP.</answer>": 1.0,
    "<think>Up.</think><answer>hands up</answer>": 1.0,  # an alias
    "<answer>arms_up</answer>": 0.9,
    "<think>Up.</think><answer>arms</answer>": 0.1,
    "<think>Up.</think><answer>arms up, bow, kick, sit, t pose, wave</answer>": 0.1,
    "<think>Up.</think><answer>arms up or bow</answer>": 0.1,
    "<think>Up.</think><answer>swimming</answer>": 0.1,
    "<think>Up.</think><answer></answer>": 0.0,
    "<think>Up.</think><answer>arms up</answer><answer>bow</answer>": 0.0,
    "<think>Up.</think><answer>arms up</answer><answer>arms up</answer>": 0.0,
    "arms up": 0.0,
    "": 0.0,
}


def test_the_rewards_of_adversarial_answers_are_as_stated() -> None:
    recipe = load_recipe(None, ["task=recognition"])
    worker = RewardWorker(make_spec(recipe), recipe.task)
    reference = TASK.reference(IMAGE)
    ids = tuple(str(i) for i in range(len(ANSWERS)))
    [scores] = worker.score([GroupTexts(ids, tuple(ANSWERS), (reference,) * len(ids))])
    assert isinstance(scores, GroupScores)
    assert scores.rewards.tolist() == pytest.approx(list(ANSWERS.values()))
    right = TASK.is_right(scores.readings, reference)
    assert right.tolist() == [reward >= 0.9 for reward in ANSWERS.values()]
    assert scores.readings[1] == "arms up"
    assert scores.readings[-1] is None


def test_accuracy_is_over_all_rows_by_class() -> None:
    bare = replace(IMAGE, aliases=())
    rows = [replace(bare, id=str(i), label=label) for i, label in enumerate(("Bow", "bow", "sit"))]
    said = ("bow", None, "hands up")
    predictions = [Prediction(str(i), reading) for i, reading in enumerate(said)]
    metrics = score_predictions(predictions, labels_of(rows, TASK), TASK, num_bootstrap=10)
    assert metrics["accuracy"].value == pytest.approx(1 / 3)
    assert metrics["parse_rate"].value == pytest.approx(2 / 3)
    # Wilson, by hand: (1/3 + 1.92/3 +- 1.96 sqrt(2/27 + 0.9604/9)) / (1 + 3.84/3)
    assert metrics["accuracy"].low == pytest.approx(0.0615, abs=1e-3)
    assert metrics["accuracy"].high == pytest.approx(0.7923, abs=1e-3)
    row = metrics.to_json()
    assert list(row["classes"]) == ["bow", "sit"]
    assert TASK.constant(["sit", "bow", "wave", "bow", "sit"]) == "bow"
    with pytest.raises(ValueError, match="none is the most frequent"):
        TASK.constant([])


def test_a_report_is_about_classes(tmp_path: Path) -> None:
    path = write_activities(tmp_path, style="line", num_images={"train": 1, "test": 1}, seed=0)
    rows = [row for row in read_rows(path) if row.split == "test"]
    before = [Prediction(row.id, "bow", text="<answer>bow</answer>") for row in rows]
    after = [
        Prediction(row.id, TASK.truth(TASK.reference(row)) if i % 2 else None)
        for i, row in enumerate(rows)
    ]
    sets = {"sft": before, "grpo": after}
    truths = [TASK.truth(TASK.reference(row)) for row in rows]
    given = ReportInput("r", TASK, rows, sets, train_truths=truths, num_bootstrap=20)
    report = write_report(given, tmp_path / "report")
    assert report.pictures["images"].stat().st_size > 20_000
    page = report.page.read_text(encoding="utf-8")
    assert "accuracy" in page
    assert "hands on hips" in page
    assert "Held-out images, the first of each class, above what the last predictor" in page
    table = pd.read_csv(tmp_path / "report" / "tables" / "breakdown.csv")
    assert len(set(table["class"])) == 16


def test_words_that_name_what_is_seen_are_marked_beside_the_image(tmp_path: Path) -> None:
    path = write_activities(tmp_path, style="line", num_images={"train": 1, "test": 1}, seed=0)
    rows = [row for row in images_among(read_rows(path)) if row.split == "test"]
    [jump] = [row for row in rows if row.label == "jump"]  # Both arms up, legs apart.
    texts = {row.id: f"<think>\n{row.description}\n</think>" for row in rows}
    texts[jump.id] = (
        "both arms up <think>Both  arms up, one leg out & <b>, arms.</think><answer>jump</answer>"
    )
    said = [Prediction(row.id, "jump", text=texts[row.id]) for row in rows]
    pieces = pieces_of(texts[jump.id], jump.description or "")
    assert "".join(piece.text for piece in pieces) == texts[jump.id]
    assert [(piece.text, piece.kind) for piece in pieces if piece.kind] == [
        ("Both  arms up", "seen"),
        ("one leg out & <b>", "added"),
        ("arms", "added"),
    ]
    given = ReportInput("r", TASK, rows, {"grpo": said}, num_bootstrap=20)
    page = write_report(given, tmp_path / "report").page.read_text(encoding="utf-8")
    marked = '&lt;think&gt;<mark class="seen">Both  arms up</mark>, <mark class="added">one leg out'
    assert f"both arms up {marked} &amp; &lt;b&gt;</mark>, " in page
    assert page.count('alt="class ') == 8
    assert page.count('<pre class="better">') == 1
    assert "above what the last predictor" not in page
    bare = [replace(one, text="<answer>jump</answer>") for one in said]
    report = write_report(replace(given, sets={"grpo": bare}), tmp_path / "bare")
    assert "<mark" not in report.page.read_text(encoding="utf-8")


# All files of the product that know of this task. A new one of a user's own needs none of them
# (CONTRIBUTING.md); one for everybody needs the first three, a data set of its own the others.
FILES = {
    "actrep_ray/tasks/recognition.py": "the task",
    "actrep_ray/tasks/loading.py": "its name among those that can be loaded",
    "actrep_ray/config/recipe.py": "likewise, among those that a recipe may give",
    "actrep_ray/config/presets.py": "its defaults",
    "actrep_ray/config/rules.py": "what must hold between its settings",
    "actrep_ray/config/data.py": "its settings",
    "actrep_ray/cli/prepare/command.py": "the command that writes its rows",
    "actrep_ray/cli/prepare/recognition.py": "likewise",
    "actrep_ray/cli/quickstart.py": "its quickstart",
    "actrep_ray/quickstart/activities.py": "likewise",
    "data_prep/activities/shots.py": "few shots of each class: when two names are one class",
    "rewards/recognition.py": "its reward",
    "rewards/catalogue.py": "the reward's name",
    "rewards/reference.py": "what the reward is told",
}


def test_the_task_took_these_files_and_no_others() -> None:
    word = re.compile("recognition", re.IGNORECASE)
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("actrep_ray", "data_prep", "rewards")
        for path in (ROOT / package).rglob("*.py")
        if word.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(FILES)
    rooms = ("driver", "rollout", "scoring", "learner", "weights", "cluster", "media", "models")
    assert not [name for name in found if name.split("/")[1] in rooms]
