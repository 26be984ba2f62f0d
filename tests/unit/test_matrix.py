"""Several checkpoints on several data sets: files that are joined, the matrix, its picture."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from actrep_ray.cli.evaluate import _with_all
from actrep_ray.cli.main import main
from actrep_ray.config import load_recipe
from actrep_ray.evaluation.frame_files import to_latex, to_markdown
from actrep_ray.evaluation.frames import matrix_figures, matrix_frame
from actrep_ray.evaluation.matrix_figure import goodness
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.report import print_report, write_report
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.evaluation.tables import datasets_of, matrix_tables
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.files import DataError
from data_prep.rows import join_rows
from data_prep.schema import Clip, write_clips

TASK = load_task("counting")
ODD = "x | obo_low"  # what a data set may be called


def clip(name: str, dataset: str, count: int = 4, video: str = "a.mp4") -> Clip:
    return Clip(
        id=name, dataset=dataset, split="test", video=video, start_s=0.0, end_s=8.0,
        video_fps=10.0, num_frames=80, width=64, height=64, action="squat", count=count,
    )  # fmt: skip


CLIPS = [clip("a", "gym"), clip("b", ODD, 2), clip("c", "gym", 9), clip("d", ODD, 2)]
SETS = {
    name: [Prediction(one.id, count) for one, count in zip(CLIPS, counts, strict=True)]
    for name, counts in {"sft": (4, 0, 5, 1), "grpo": (3, 2, 8, None)}.items()
}


def test_the_matrix_by_hand() -> None:
    frame = matrix_frame(SETS, CLIPS, TASK, num_bootstrap=50)
    mae, obo = matrix_figures(TASK)
    assert (mae.name, obo.name) == ("mae", "obo")
    assert datasets_of(frame, obo) == datasets_of(frame, mae) == ["gym", ODD]
    rows = frame.set_index("predictor")
    assert rows.loc["sft", "gym clips"] == rows.loc["grpo", f"{ODD} clips"] == 2
    assert rows["gym obo"].to_dict() == {"sft": 0.5, "grpo": 1.0}  # 4 of 4, 5 of 9; 3, 8
    assert rows[f"{ODD} obo"].to_dict() == {"sft": 0.5, "grpo": 0.5}  # 0 and 1 of 2; 2 and none
    assert rows["gym mae"].to_dict() == pytest.approx(
        {"sft": (0 + 4 / 9.1) / 2, "grpo": (1 / 4.1 + 1 / 9.1) / 2}
    )
    assert rows[f"{ODD} mae"].to_dict() == pytest.approx({"sft": 3 / 2.1 / 2, "grpo": 2 / 2.1 / 2})
    assert 0 < rows.loc["grpo", "gym obo_low"] < 1 == rows.loc["grpo", "gym obo_high"]


def test_its_tables_say_what_they_hold() -> None:
    frame = matrix_frame(SETS, CLIPS, TASK, num_bootstrap=50)
    errors, shares = matrix_tables(frame, TASK)
    assert (errors.title, shares.title) == ("MAE ↓ by data set", "OBO ↑ by data set")
    assert shares.columns == ("", "gym, 2", f"{ODD}, 2")
    assert [row[0] for row in shares.rows] == ["sft", "grpo"]
    assert shares.rows[0][1].startswith("0.500\n")
    assert "OBO: Wilson" in shares.note
    assert "MAE: bootstrap" in errors.note
    markdown = to_markdown(frame, TASK).splitlines()
    assert "| gym clips | gym MAE ↓ (95% bootstrap) | gym OBO ↑ (95% Wilson) |" in markdown[0]
    assert r"x \| obo\_low OBO ↑ (95% Wilson)" in markdown[0]
    assert r"gym OBO $\uparrow$ (95\% Wilson)" in to_latex(frame, TASK)


def test_the_best_is_the_darkest() -> None:
    mae, obo = matrix_figures(TASK)
    assert goodness(np.array([[0.0, 0.4]]), obo).tolist() == [[0.0, 0.4]]
    assert goodness(np.array([[0.0, 0.5, 2.0]]), mae).tolist() == [[1.0, 0.75, 0.0]]
    assert goodness(np.zeros((1, 2)), mae).tolist() == [[1.0, 1.0]]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("clips", "names", "is_told"),
    [(CLIPS, ["sft", "grpo"], True), (CLIPS, ["sft"], False), (CLIPS[:1], ["sft", "grpo"], False)],
)
def test_it_is_told_of_several_checkpoints_and_data_sets(
    clips: list[Clip], names: list[str], is_told: bool, tmp_path: Path
) -> None:
    sets = {name: SETS[name][: len(clips)] for name in names}
    baseline = {"periodicity": [Prediction(one.id, 2) for one in clips]}  # is no checkpoint
    given = ReportInput("run", TASK, clips, {**baseline, **sets}, num_bootstrap=20)
    out = io.StringIO()
    report = write_report(given, tmp_path)
    print_report(report, Console(file=out, width=80))
    assert ("OBO ↑ by data set" in out.getvalue()) == is_told
    picture = tmp_path / "report" / "matrix.png"
    assert picture.is_file() == ("matrix" in report.pictures) == is_told
    files = sorted(path.name for path in (tmp_path / "tables").glob("matrix.*"))
    assert files == (["matrix.csv", "matrix.md", "matrix.tex"] if is_told else [])
    assert ("Predictors by data sets" in report.page.read_text(encoding="utf-8")) == is_told
    if is_told:
        rows = pd.read_csv(tmp_path / "tables" / "matrix.csv")
        assert rows["predictor"].tolist() == ["periodicity", "sft", "grpo"]


def folder_of(folder: Path, *clips: Clip) -> Path:
    folder.mkdir()
    (folder / "a.mp4").touch()
    write_clips(folder / "clips.jsonl", clips)
    return folder / "clips.jsonl"


def test_several_files_are_asked_about_as_one(tmp_path: Path) -> None:
    """Each one's videos lie beside it, and may still lie nowhere else."""
    files = [
        folder_of(tmp_path / "gym", clip("a", "gym")),
        folder_of(tmp_path / "own", clip("b", "own"), clip("c", "own")),
    ]
    (tmp_path / "out").mkdir()
    recipe = load_recipe(None, ["data.check_videos=false", "data.datasets=[own]"])
    [alone] = _with_all(files[:1], [recipe], tmp_path / "out")
    assert alone == recipe
    [first, second] = _with_all(files, [recipe, load_recipe(None)], tmp_path / "out")
    assert [one.id for one in load_clips(first, "test")] == ["b", "c"]
    joined = second.model_copy(
        update={"data": second.data.model_copy(update={"check_videos": False})}
    )
    found = load_clips(joined, "test")
    assert [(one.id, Path(one.file).parent.name) for one in found] == [
        ("a", "gym"), ("b", "own"), ("c", "own"),
    ]  # fmt: skip
    elsewhere = folder_of(tmp_path / "else", clip("z", "z", video="../gym/a.mp4"))
    with pytest.raises(DataError, match=r"clips\.jsonl:1: video='../gym/a\.mp4', expected a path"):
        _with_all([elsewhere, files[0]], [recipe], tmp_path / "out")


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    files = [folder_of(tmp_path / name, clip("a", name)) for name in ("one", "two")]
    with pytest.raises(DataError) as caught:
        join_rows(files)
    assert str(caught.value) == f"{files[1]}: id='a', expected none that {files[0]} has as well"


def test_a_protocol_trains_on_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--protocol", "few-shot", "--sft", "a.yaml", "--grpo", "b.yaml"]
    assert main([*words, "--data", "a.jsonl", "b.jsonl"]) == 2
    assert "--protocol trains on one --data FILE" in capsys.readouterr().err
