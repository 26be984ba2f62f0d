"""Protocols on few shots: which trainings, on what, and what their answers come to."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import actrep_ray.models
from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError
from actrep_ray.evaluation.explanations import features_of, reasons_of
from actrep_ray.evaluation.predictions import (
    Prediction,
    prediction_of_text,
    write_predictions,
)
from actrep_ray.protocols.figures import agreement, auroc, harmonic_mean, rejected_share
from actrep_ray.protocols.plan import Exam, Trial, exams_of, trials_of
from actrep_ray.protocols.plot import kind_of, signs_of
from actrep_ray.protocols.reasons import faithfulness
from actrep_ray.protocols.report import report_protocol
from actrep_ray.protocols.setup import Protocol
from actrep_ray.protocols.tables import Result, matrix_frame, means_frame, trials_frame
from actrep_ray.tasks.loading import load_task
from data_prep.activities.dataset import write_activities
from data_prep.files import DataError, write_json
from data_prep.rows import images_among, read_rows
from tests.unit.test_rows import IMAGE

ROOT = Path(__file__).resolve().parents[2]
BASE = Path(actrep_ray.models.__file__).parent / "assets" / "tiny_qwen3_vl"
RECIPES = {
    "sft": ROOT / "recipes" / "recognition_tiny_shots_sft.yaml",
    "grpo": ROOT / "recipes" / "recognition_tiny_grpo.yaml",
}
TASK = load_task("recognition")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    numbers = {"train": 2, "validation": 1, "test": 2}
    return {
        style: write_activities(folder / style, style=style, num_images=numbers, seed=0, size=32)
        for style in ("line", "block")
    }


def protocol_of(name: str, data: tuple[Path, ...], out: Path, **changes: object) -> Protocol:
    made = Protocol(name, BASE, RECIPES, data, shots=(1, 2), seeds=(0, 3), out=out)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_each_protocol_trains_and_asks() -> None:
    few = trials_of("few-shot", ["a", "b"], [1, 4], [0, 1], [])
    assert few[0] == Trial("zero-shot", "", 0, 0)
    assert Counter((t.method, t.source, t.shots) for t in few[1:]) == {
        (method, "a", shots): 2 for method in ("sft", "grpo") for shots in (1, 4)
    }
    assert exams_of("few-shot", ["a", "b"]) == [Exam("a", "all")]
    across = trials_of("cross-dataset", ["a", "b"], [4], [0], [])
    assert [t.source for t in across] == ["", "a", "a", "b", "b"]
    assert exams_of("cross-dataset", ["a", "b"]) == [Exam("a", "all"), Exam("b", "all")]
    varied = trials_of("ablation", ["a"], [4], [0], ["data.reasoning=none"])
    assert [t.name for t in varied] == [
        "zero-shot",
        "zero-shot.data-reasoning-none",
        "sft.a.4-shots.seed-0",
        "grpo.a.4-shots.seed-0",
        "sft.a.4-shots.seed-0.data-reasoning-none",
        "grpo.a.4-shots.seed-0.data-reasoning-none",
    ]
    for name in ("base-to-new", "open-set"):
        assert [exam.name for exam in exams_of(name, ["a"])] == ["a.base", "a.new"]


def test_numbers_by_hand() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0
    # 0.9 beats both; 0.5 beats 0.1 and ties with 0.5: (2 + 1.5) / 4
    assert auroc([0.9, 0.5], [0.5, 0.1]) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="0 known and 1 unknown"):
        auroc([], [1.0])
    assert agreement("bow", ["bow", None, "kick", "bow"]) == 0.5
    assert agreement(None, [None, None]) == 0.0
    assert rejected_share([0.0, 0.49, 0.5, 1.0]) == 0.5


def test_shots_and_exams_are_files_with_the_classes_of_the_protocol(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    protocol = protocol_of("base-to-new", (sets["block"],), tmp_path)
    protocol.begin()
    protocol.begin()  # what is there is the same
    trial = next(t for t in protocol.trials if t.method == "grpo" and t.shots == 2 and t.seed == 3)
    recipe = protocol.recipe_of(trial)
    shots = images_among(
        read_rows(recipe.data.path, split="train", allow_outside=recipe.data.allow_outside)
    )
    assert len(shots) == 2 * 8
    assert recipe.seed == 3
    asked = {}
    for exam in protocol.exams:
        recipe = protocol.recipe_to_ask(trial, exam)
        rows = images_among(
            read_rows(recipe.data.path, split="test", allow_outside=recipe.data.allow_outside)
        )
        assert len(rows) == 2 * 8
        asked[exam.classes] = {row.label for row in rows}
    assert {row.label for row in shots} == asked["base"]
    assert not asked["base"] & asked["new"]
    with pytest.raises(DataError, match="holds a protocol with another seeds; give another --out"):
        replace(protocol, seeds=(1,)).begin()


def test_a_recipe_that_is_edited_meanwhile_is_not_looked_at(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    mine = tmp_path / "grpo.yaml"
    mine.write_text(RECIPES["grpo"].read_text())
    recipes = {**RECIPES, "grpo": mine}
    protocol = protocol_of("few-shot", (sets["block"],), tmp_path / "out", recipes=recipes)
    protocol.begin()
    steps = protocol.recipe_of(protocol.trials[-1]).train.num_steps
    mine.write_text(mine.read_text().replace(f"num_steps: {steps}", "num_steps: 7"))
    assert protocol.recipe_of(protocol.trials[-1]).train.num_steps == steps
    with pytest.raises(DataError, match="holds a protocol with another recipes"):
        protocol.begin()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("ablation", {}, "--vary KEY=VALUE belongs to --protocol ablation"),
        ("few-shot", {"changes": ("data.reasoning=none",)}, "--vary KEY=VALUE belongs to"),
        ("ablation", {"changes": ("video.fps=2",)}, "--vary video.fps=2: cannot vary"),
        ("ablation", {"changes": ("learner.lr=1e-4", "learner.lr=1e+4")},
         "two changes would be called zero-shot"),
        ("cross-dataset", {}, "--data: several files belong to --protocol cross-dataset"),
        ("open-set", {"overrides": ("data.candidates=closed",)}, "set data.candidates=open"),
        ("few-shot", {"shots": (3,)}, "has 2 images, 3 shots need 3 of train"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told(
    name: str, changes: dict[str, object], told: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    protocol = protocol_of(name, (sets["line"],), tmp_path, **changes)
    with pytest.raises((ConfigError, DataError), match=told):
        protocol.begin()
    assert not (tmp_path / "protocol.json").exists()


def test_the_command_tells_what_is_missing(
    sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--protocol", "few-shot", "--checkpoint", str(BASE)]
    command += ["--data", str(sets["line"])]
    assert main(command) == 2
    assert "--protocol few-shot needs --sft RECIPE and --grpo RECIPE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--shots", "1,x"])
    assert "'1,x': expected whole numbers from 1, as in 1,4,16" in capsys.readouterr().err
    for option, value in (("--vary", "learner.lr=1"), ("--sft", "a.yaml")):
        assert main(["evaluate", "--data", str(sets["line"]), option, value]) == 2
        assert f"{option} belongs to --protocol" in capsys.readouterr().err


def test_whether_reasoning_names_what_is_seen() -> None:
    assert features_of("Both arms up,  one leg up.") == {"both arms up", "one leg up"}
    assert reasons_of("<think>\nOne leg up.\n</think>\n<answer>kick</answer>") == {"one leg up"}
    assert reasons_of("<answer>one leg up</answer>") == frozenset()
    kick = replace(IMAGE, id="a", label="kick", description="One leg out.")
    balance = replace(IMAGE, id="b", label="balance", description="Both arms up, one leg up.")
    texts = {
        "a": "<think>One leg out.</think><answer>kick</answer>",  # sees all, and it follows
        "b": "<think>One leg up, one arm up.</think><answer>kick</answer>",  # half, half added
    }
    answers = [prediction_of_text(name, text, TASK) for name, text in texts.items()]
    found = faithfulness(answers, [kick, balance], TASK)
    assert found == {"seen": 0.75, "added": 0.25, "follows": 0.5}
    assert faithfulness(answers, [kick, replace(balance, description=None)], TASK) is None


def result(method: str, seed: int, scores: list[float], source: str = "a") -> Result:
    is_trained = method != "zero-shot"
    trial = Trial(method, source if is_trained else "", 4 * is_trained, seed * is_trained)
    return Result(trial, Exam("a", "all"), np.array(scores))


def test_gains_are_paired_and_means_are_over_seeds() -> None:
    results = [
        result("zero-shot", 0, [0, 0, 0, 1]),
        result("sft", 0, [1, 0, 0, 1]),
        result("sft", 1, [0, 0, 0, 1]),
        result("grpo", 0, [1, 1, 0, 1]),
        result("grpo", 1, [1, 1, 1, 1]),
    ]
    trials = trials_frame(results, TASK)
    assert trials["accuracy"].tolist() == [0.25, 0.5, 0.25, 0.75, 1.0]
    assert trials["over_zero_shot"].tolist()[1:] == [0.25, 0.0, 0.5, 0.75]
    assert trials["over_sft"].tolist()[3:] == [0.25, 0.75]
    assert trials["over_sft"].isna().tolist() == [True] * 3 + [False] * 2
    assert trials["accuracy_low"][4] == pytest.approx(4 / (4 + 1.96**2), abs=1e-3)  # Wilson
    means = means_frame(results, TASK).set_index("method")
    assert means.loc["grpo", "mean_accuracy"] == pytest.approx(0.875)
    assert means.loc["grpo", "over_sft"] == pytest.approx(0.5)
    assert means.loc["grpo", "over_zero_shot"] == pytest.approx(0.625)
    assert means.loc["grpo", "seeds"] == 2


def test_a_matrix_has_a_row_for_each_training() -> None:
    results = [
        replace(result("grpo", 0, scores, source), exam=Exam(asked, "all"))
        for source, asked, scores in (
            ("a", "a", [1.0, 1.0]),
            ("a", "b", [0.0, 1.0]),
            ("b", "a", [0.0, 0.0]),
            ("b", "b", [1.0, 1.0]),
        )
    ]
    matrix = matrix_frame(results).set_index("trained_on")
    assert matrix.loc["a", ["a", "b"]].tolist() == [1.0, 0.5]
    assert matrix.loc["b", ["a", "b"]].tolist() == [0.0, 1.0]


def test_the_legend_tells_what_differs_and_no_more() -> None:
    zero, way = ("zero-shot", "nothing", "none"), ("grpo", "line", "none")
    assert [kind_of(one, [zero, way]) for one in (zero, way)] == ["", ""]
    across = [zero, way, ("grpo", "block", "none"), ("sft", "block", "none")]
    found = [kind_of(one, across) for one in across]
    assert found == ["", "trained on line", "trained on block", "trained on block"]
    assert list(signs_of(across).values()) == ["o", "o", "s", "s"]
    changed = ("grpo", "line", "data.reasoning=none")
    varied = [zero, ("zero-shot", "nothing", changed[2]), way, changed]
    found = [kind_of(one, varied) for one in varied]
    assert found == ["as the recipes are", changed[2], "as the recipes are", changed[2]]
    assert list(signs_of(varied).values()) == ["o", "s", "o", "s"]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["few-shot", "base-to-new", "open-set"])
def test_tables_plot_and_page_of_what_was_answered(
    name: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = protocol_of(name, (sets["line"],), tmp_path, shots=(1,))
    protocol.begin()
    for trial in protocol.trials:
        assert not any(protocol.is_done(trial, exam) for exam in protocol.exams)
        for exam in protocol.exams:
            images = protocol.images_of(exam)
            is_right = {"zero-shot": 0.0, "sft": 0.5, "grpo": 1.0}[trial.method]
            answers = [
                Prediction(row.id, TASK.truth(TASK.reference(row)), text="<answer></answer>")
                if i < is_right * len(images) and exam.classes != "new"
                else Prediction(row.id, None)
                for i, row in enumerate(images)
            ]
            path = protocol.predictions(trial, exam)
            path.parent.mkdir(exist_ok=True)
            write_predictions(path, answers, TASK)
            sure = {row.id: 0.25 if exam.classes == "new" else 1.0 for row in images}
            write_json(protocol.certainties(trial, exam), sure)
            assert protocol.is_done(trial, exam)
    page = report_protocol(protocol).read_text(encoding="utf-8")
    assert "zero-shot" in page
    printed = capsys.readouterr().out
    assert "means\n" in printed
    assert "trials\n" not in printed
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    tables = tmp_path / "tables"
    means = pd.read_csv(tables / "means.csv").set_index(["method", "asked"])
    first = protocol.exams[0].name
    assert means.loc[("sft", first), "mean_accuracy"] == 0.5
    assert means.loc[("grpo", first), "over_sft_low"] > 0
    assert "\\toprule" in (tables / "trials.tex").read_text()
    if name == "base-to-new":
        both = pd.read_csv(tables / "base_new.csv").set_index(["method", "seed"])
        assert both.loc[("grpo", 3), ["base", "new", "harmonic_mean"]].tolist() == [1.0, 0.0, 0.0]
    if name == "open-set":
        known = pd.read_csv(tables / "open_set.csv").set_index(["method", "seed"])
        assert known.loc[("grpo", 3), ["auroc", "unknown_rejected", "known_rejected"]].tolist() == [
            1.0,
            1.0,
            0.0,
        ]
    report_protocol(replace(protocol, seeds=protocol.seeds[:1]))
    printed = capsys.readouterr().out
    assert "trials\n" in printed
    assert "means\n" not in printed  # of one seed both say the same
