"""The report of a run folder: tables, pictures and the page."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from actrep_ray.config import Recipe, flat_settings, load_recipe, write_resolved
from actrep_ray.evaluation import figures as plots
from actrep_ray.evaluation.examples import examples_of
from actrep_ray.evaluation.figure_style import make_figure
from actrep_ray.evaluation.pictures import choose_clip
from actrep_ray.evaluation.predictions import Prediction, read_predictions, write_predictions
from actrep_ray.evaluation.report import print_main, report_run, report_runs, write_report
from actrep_ray.evaluation.run_results import ReportInput, read_run
from actrep_ray.evaluation.run_tables import prompts_table, rewards_table, settings_table
from actrep_ray.evaluation.tables import TableData
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import PARSE_RATE, FigureSpec, labels_of
from actrep_ray.tasks.counting import Counting
from actrep_ray.tasks.loading import load_task
from data_prep.schema import Clip, write_clips
from data_prep.video_writer import encode_mp4
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

pytestmark = pytest.mark.lengthy

TASK = load_task("counting")
FPS, NUM_FRAMES, SIZE = 10, 80, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of 3 train and 6 test clips over one video."""
    folder = tmp_path_factory.mktemp("data")
    values = (3 * np.arange(NUM_FRAMES)).astype(np.uint8)
    frames = np.broadcast_to(values[:, None, None, None], (NUM_FRAMES, SIZE, SIZE, 3))
    encode_mp4(folder / "grey.mp4", np.ascontiguousarray(frames), FPS)
    write_clips(folder / "clips.jsonl", make_clips())
    return folder


def make_clips() -> Iterator[Clip]:
    for split, counts in (("train", (2, 4, 9)), ("test", (0, 2, 4, 4, 5, 6))):
        for i, count in enumerate(counts):
            yield Clip(
                id=f"{split}-{i}",
                dataset="test",
                split=split,
                video="grey.mp4",
                start_s=0.0,
                end_s=8.0,
                video_fps=float(FPS),
                num_frames=NUM_FRAMES,
                width=SIZE,
                height=SIZE,
                action="arm_raise" if i % 2 else "<squat>",
                count=count,
                cycles=tuple((1.0 + k, 2.0 + k) for k in range(count)),
            )


def make_run(root: Path, data: Path, stage: str) -> Path:
    run = root / stage
    recipe = Recipe.model_validate(
        {"stage": stage, "data": {"path": str(data / "clips.jsonl")}, "eval": {"num_bootstrap": 50}}
    )
    write_resolved(
        recipe,
        run / "config.resolved.json",
        {"commit": "abc", "versions": {"ray": "2", "vllm": None}},
    )
    key = "sft/loss" if stage == "sft" else "reward/mean"
    rows = [{"step": s, key: 1.0 / s, "eval/mae": 0.5} for s in range(1, 6)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def answers(*counts: int | None) -> list[Prediction]:
    return [
        Prediction(
            f"test-{i}",
            c,
            f"text {i} </pre>",
            tuple((1.0 + k, 2.0 + k) for k in range(c or 0)),
            claims=dict.fromkeys(("answer", "total", "list"), c),
        )
        for i, c in enumerate(counts)
    ]


@pytest.fixture
def runs(tmp_path: Path, folder: Path) -> Path:
    for stage in ("grpo", "sft"):
        make_run(tmp_path, folder, stage)
    write_predictions(tmp_path / "predictions-untrained.jsonl", answers(*[None] * 6), TASK)
    write_predictions(tmp_path / "predictions-sft.jsonl", answers(1, 2, 4, 6, 3, None), TASK)
    write_predictions(tmp_path / "predictions-grpo.jsonl", answers(0, 2, 4, 4, 5, 40), TASK)
    return tmp_path


def test_a_report_holds_all_of_a_run(runs: Path) -> None:
    out = io.StringIO()
    report = report_run(runs, console=Console(file=out, width=80))
    assert list(report.metrics) == ["constant 4", "untrained", "sft", "grpo"]
    assert list(report.differences) == ["untrained → sft", "sft → grpo"]
    assert report.metrics["constant 4"]["obz"].value == pytest.approx(2 / 6)
    assert report.metrics["grpo"]["obz"].value == pytest.approx(5 / 6)
    assert set(report.pictures) == {"curves", "counts", "errors", "clip", "summary"}
    for path in report.pictures.values():
        assert path.read_bytes().startswith(b"\x89PNG")
    printed = out.getvalue()
    assert "Counting on 6 held-out clips" in printed
    assert "…" not in printed  # every number fits into 80 columns
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 80


def test_a_run_that_parts_from_its_lists_says_so_everywhere(runs: Path) -> None:
    copied = answers(0, 2, 4, 4, 5, 6)
    lists = [replace(p, claims={**(p.claims or {}), "answer": 4, "total": 4}) for p in copied]
    write_predictions(runs / "predictions-sft.jsonl", lists, TASK)
    write_predictions(runs / "predictions-grpo.jsonl", copied, TASK)
    whole, main = (io.StringIO() for _ in range(2))
    report = report_run(runs, console=Console(file=whole, width=80))
    print_main(report, Console(file=main, width=80))
    expected = "Warning: sft: exact is 0.333 by answer and 1.000 by list, and 33% of the answers"
    (remark,) = report.remarks
    page = report.page.read_text(encoding="utf-8")
    assert remark in page
    for printed in (whole.getvalue(), main.getvalue()):
        words = " ".join(printed.split())
        assert expected in words
        assert "By answer, list and total" in words
        assert "Where exact changed: sft → grpo" in words
        assert "right list, answer differs" in words
        assert "grpo: counts that are true or were answered" in words
    assert "grpo: by action" not in main.getvalue()
    assert "<h2>Where exact changed: sft → grpo</h2>" in page
    gains = pd.read_csv(runs / "tables" / "gains.csv").set_index(["predictors", "term"])["change"]
    assert gains["sft → grpo"].to_dict() == pytest.approx(
        {"in_place": 0, "elsewhere": 0, "unread": 0, "not_repeated": 4 / 6, "beside": 0}
    )
    changed = pd.read_csv(runs / "tables" / "differences.csv").set_index(["predictors", "figure"])
    assert changed.loc[("sft → grpo", "obz"), "verdict"] == "not by list"
    assert changed.loc[("sft → grpo", "consistent"), "verdict"] == "better"
    counts = pd.read_csv(runs / "tables" / "counts.csv").query("predictor == 'sft'")
    assert counts[counts["answered"] == 0]["count"].tolist() == [0, 2, 5, 6]
    for name in ("predictors", "breakdown"):
        for ending, title in ((".md", "exact by list ↑"), (".tex", r"exact by list $\uparrow$")):
            text = (runs / "tables" / f"{name}{ending}").read_text(encoding="utf-8")
            assert title in text
            assert "consistent" in text


def test_the_detector_is_a_baseline_that_is_compared_with_none(runs: Path) -> None:
    write_predictions(runs / "predictions-periodicity.jsonl", answers(0, 2, 4, 4, 5, 6), TASK)
    report = report_run(runs, console=Console(file=io.StringIO()))
    assert list(report.metrics) == ["constant 4", "periodicity", "untrained", "sft", "grpo"]
    assert list(report.differences) == ["untrained → sft", "sft → grpo"]


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(runs: Path) -> None:
    page = report_run(runs, console=Console(file=io.StringIO())).page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:src|href)=(.{6})", page)) == {'"data:'}
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 4
    assert "&lt;squat&gt;" in page
    assert "<squat>" not in page
    assert "text 2 &lt;/pre&gt;" in page
    assert ">ray 2<" in page  # vllm is not installed there
    assert "vllm None" not in page


def test_intervals_say_where_they_come_from(runs: Path) -> None:
    out = io.StringIO()
    report = report_run(runs, console=Console(file=out, width=200))
    printed = " ".join(out.getvalue().split())
    assert "(OBO, exact and parsed: Wilson; MAE and RMSE: bootstrap over clips)" in printed
    assert "95% intervals by paired bootstrap" in printed
    page = report.page.read_text(encoding="utf-8")
    assert "exact and parsed: Wilson" in page
    assert "paired bootstrap" in page


HOSTILE = "<script>alert(1)</script>"
MARKUP = "[red]push[/red] [/red] $\\frac$ :smile:"


def test_names_and_answers_of_others_are_shown_as_they_are(tmp_path: Path, folder: Path) -> None:
    clips = [
        replace(clip, action=action).with_root(folder)
        for clip, action in zip(
            (clip for clip in make_clips() if clip.split == "test"),
            (HOSTILE, MARKUP, HOSTILE, MARKUP, "half \ud83d", "clear \x1b[2J"),
            strict=True,
        )
    ]
    hostile = [replace(p, text=f"{HOSTILE} \ud83d") for p in answers(0, 2, 4, 4, 5, 6)]
    given = ReportInput(
        f"run {HOSTILE}",
        TASK,
        clips,
        {"[/red]": answers(*[1] * 6), "a | b": hostile},
        facts={HOSTILE: HOSTILE},
        num_bootstrap=20,
    )
    report = write_report(given, tmp_path)
    page = report.page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert "[/red]" in page

    out = io.StringIO()
    console = Console(file=out, width=300)
    for table in report.tables:
        console.print(table.to_rich())
    printed = out.getvalue()
    assert HOSTILE in printed
    assert MARKUP in printed
    assert "[/red] → a | b" in printed
    assert "\x1b" not in printed
    printed.encode("utf-8")

    breakdown = pd.read_csv(tmp_path / "tables" / "breakdown.csv")
    assert {HOSTILE, MARKUP, "half ?"} <= set(breakdown["action"])
    assert set(breakdown["predictor"]) == {"[/red]", "a | b"}


def test_a_folder_with_brackets_in_its_name_is_printed(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "[/red]", folder, "sft")
    out = io.StringIO()
    report_run(run, console=Console(file=out))
    assert str(run / "report" / "report.html") in out.getvalue()


def test_a_table_of_nothing_but_names_is_no_markup() -> None:
    table = TableData("[/red]", ("[/red]", "[b]n"), (("[/red]", "1"),), "[/red] note")
    out = io.StringIO()
    Console(file=out).print(table.to_rich())
    assert out.getvalue().count("[/red]") == 4


def test_tables_lie_beside_the_metrics(runs: Path) -> None:
    report = report_run(runs, console=Console(file=io.StringIO()))
    names = {path.relative_to(runs).as_posix() for path in report.table_files}
    assert names == {
        f"tables/{name}.{ending}"
        for name in (
            "predictors",
            "differences",
            "gains",
            "counts",
            "breakdown",
            "conditions",
            "errors",
        )
        for ending in ("csv", "md", "tex")
    }
    rows = pd.read_csv(runs / "tables" / "predictors.csv").set_index("predictor")
    assert list(rows.index) == ["constant 4", "untrained", "sft", "grpo"]
    assert rows.loc["grpo", "obz"] == report.metrics["grpo"]["obz"].value
    assert rows.loc["grpo", "obz_low"] == report.metrics["grpo"]["obz"].low
    changed = pd.read_csv(runs / "tables" / "differences.csv")
    assert len(changed) == 2 * len(TASK.figures)  # lists and totals included
    assert set(changed["predictors"]) == {"untrained → sft", "sft → grpo"}


def test_files_console_and_page_tell_the_same(runs: Path) -> None:
    report = report_run(runs, console=Console(file=io.StringIO()))
    tables = {table.title: table for table in report.tables}
    changed = pd.read_csv(runs / "tables" / "differences.csv")
    assert changed["verdict"].tolist() == [row[-1] for row in tables["Paired differences"].rows]
    assert {"better", "not sure"} <= set(changed["verdict"])
    # One clip is true to 0: its share has an interval, its errors have none.
    cells = {row[0]: row[1:] for row in tables["grpo: by true count"].rows}
    assert cells["0"] == ("1", "0.000", *["1.000\n0.21–1.00"] * 2, "0.000", "1.000\n0.21–1.00")
    page = report.page.read_text(encoding="utf-8")
    assert "<td>1</td><td>0.000</td><td>1.000<br><small>0.21–1.00</small></td>" in page


@dataclass(frozen=True)
class Verdicts(Counting):
    """A second task: is there any repetition? It reads words and counts nothing."""

    name: str = "verdicts"
    reading_name: str = "verdict"
    reading_form: str = "yes or no"
    is_counting: bool = False
    figures: tuple[FigureSpec, ...] = (FigureSpec("accuracy", "right", "share"), PARSE_RATE)

    def is_reading(self, value: object) -> bool:
        return value in ("yes", "no")

    def truth(self, reference: Reference) -> str:  # type: ignore[override]
        return "yes" if reference.count else "no"

    def constant(self, truths: Sequence[Reading]) -> str:  # type: ignore[override]
        return max(("no", "yes"), key=list(truths).count)

    def describe_truth(self, reference: Reference) -> str:
        return f"right verdict {self.truth(reference)}"

    def claims(self, response: ParsedResponse) -> dict[str, Reading | None]:
        return {"answer": response.answer_text if self.is_reading(response.answer_text) else None}

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        pairs = list(zip(claims, map(self.truth, references), strict=True))
        return {
            "accuracy": np.array([float(made["answer"] == truth) for made, truth in pairs]),
            PARSE_RATE.name: np.array([float(made["answer"] is not None) for made, _ in pairs]),
        }

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        return {}


def test_a_task_that_counts_nothing_is_reported_as_well(tmp_path: Path, folder: Path) -> None:
    task = Verdicts()
    clips = [clip.with_root(folder) for clip in make_clips() if clip.split == "test"]
    words = ("no", "yes", "yes", "no", None, "yes")
    given = [Prediction(f"test-{i}", word, "", ((1.0, 2.0),)) for i, word in enumerate(words)]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, given, task)
    assert json.loads(path.read_text().splitlines()[0])["verdict"] == "no"
    assert read_predictions(path, task) == given
    with pytest.raises(ValueError, match=r"jsonl:1: unknown key 'verdict'; a .* count"):
        read_predictions(path, TASK)
    path.write_text('{"clip_id": "a", "verdict": 1}')
    with pytest.raises(ValueError, match=r"jsonl:1: verdict=1, expected yes or no or null"):
        read_predictions(path, task)

    results = ReportInput("x", task, clips, {"model": given}, train_truths=("yes", "yes", "no"))
    report = write_report(replace(results, num_bootstrap=20), tmp_path)
    assert set(report.pictures) == {"clip", "summary"}  # of counts there is no picture
    assert report.metrics["constant yes"]["accuracy"].value == pytest.approx(5 / 6)
    assert report.metrics["model"]["accuracy"].value == pytest.approx(4 / 6)
    assert report.tables[-1].columns[0] == "verdict"
    page = report.page.read_text(encoding="utf-8")
    assert "What model answered to test-2 (right verdict yes)" in page


def test_steps_of_a_run_are_its_first_and_last(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path, folder, "grpo")
    for step, count in ((0, 1), (10, 2), (20, 3)):
        write_predictions(run / f"predictions-{step:06d}.jsonl", answers(*[count] * 6), TASK)
    given = read_run(run)
    assert list(given.sets) == ["step 0", "step 20"]
    assert [p.reading for p in given.sets["step 20"]] == [3] * 6
    assert sorted(given.train_truths) == [2, 4, 9]
    assert list(given.stages) == ["GRPO"]
    assert [clip.id for clip in given.clips] == [f"test-{i}" for i in range(6)]


def test_only_predictions_about_the_same_clips_are_compared(tmp_path: Path, folder: Path) -> None:
    write_predictions(make_run(tmp_path, folder, "sft") / "predictions.jsonl", answers(1, 2), TASK)
    write_predictions(
        make_run(tmp_path, folder, "grpo") / "predictions.jsonl", answers(*[1] * 6), TASK
    )
    assert list(read_run(tmp_path).sets) == ["grpo"]


def test_curves_alone_are_a_report(tmp_path: Path, folder: Path) -> None:
    report = report_run(make_run(tmp_path, folder, "sft"), console=Console(file=io.StringIO()))
    assert set(report.pictures) == {"curves", "summary"}
    assert report.tables == ()
    page = report.page.read_text(encoding="utf-8")
    assert "<h2>Settings: 3 of " in page
    assert '<th scope="row">eval.num_bootstrap</th><td>2000</td><td>50</td>' in page


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.resolved\.json in it"):
        report_run(tmp_path)
    run = make_run(tmp_path, folder, "sft")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"neither metrics\.jsonl nor predictions"):
        report_run(run)
    (run / "config.resolved.json").write_text("{}")
    with pytest.raises(ValueError, match="not the settings of a run"):
        report_run(run)
    (run / "config.resolved.json").write_bytes(b'{"recipe": "\xff"}')
    with pytest.raises(ValueError, match=r"config\.resolved\.json:1: byte 0xff"):
        report_run(run)


def test_predictions_alone_are_a_report_and_collapse_is_said(tmp_path: Path, folder: Path) -> None:
    clips = [clip.with_root(folder) for clip in make_clips() if clip.split == "test"]
    given = ReportInput("x", TASK, clips, {"model": answers(*[4] * 6)}, num_bootstrap=20)
    report = write_report(given, tmp_path)
    assert set(report.pictures) == {"counts", "errors", "clip", "summary"}
    assert report.tables[-1].title == "Most frequent answers"
    assert report.tables[-1].note.startswith("More than half of the answers are 4.")
    assert report.tables[-1].rows == (("4", "6", "100%", "2"),)
    assert report.tables[0].rows[0][0] == "model"


def test_the_clip_that_is_shown_does_not_depend_on_the_answers() -> None:
    clips = [clip for clip in make_clips() if clip.split == "test"]
    chosen = choose_clip(clips)
    assert chosen is not None
    assert chosen.id == "test-2"
    assert choose_clip(clips[:2]) is None


def test_frames_come_from_the_middle_of_their_share_of_the_time(folder: Path) -> None:
    clip = next(make_clips()).with_root(folder)
    strip = plots.read_strip(clip, {}, num_frames=4)
    assert strip.times_s == (1.0, 3.0, 5.0, 7.0)
    grey = strip.frames.mean(axis=(1, 2, 3))
    assert grey == pytest.approx([30, 90, 150, 210], abs=4)


def test_a_predicted_cycle_matches_at_most_one() -> None:
    truth = ((1.0, 2.0), (2.0, 3.0))
    listed = ((1.0, 2.0), (1.1, 2.1), (2.0, 3.0), (6.0, 7.0))
    hits = plots.match_cycles(listed, truth)
    assert hits.sum() == 2
    assert hits[2]
    assert not hits[3]
    assert plots.match_cycles((), truth).tolist() == []


def test_no_curves_is_an_error() -> None:
    with pytest.raises(ValueError, match="the metrics of SFT hold no curve"):
        plots.draw_curves(make_figure(2, 2), {"SFT": [{"step": 1}]})


def test_the_best_step_of_a_run_is_shown(tmp_path: Path, folder: Path) -> None:
    """Wherever the run lies now: its predictions beside the first and the last, and a fact."""
    recipe = Recipe.model_validate(
        {"data": {"path": str(folder / "clips.jsonl")}, "eval": {"num_bootstrap": 50, "every": 1},
         "checkpoint": {"best_by": "obo"}}
    )  # fmt: skip
    run = tmp_path / "moved"
    write_resolved(recipe, run / "config.resolved.json", {})
    rows = [{"step": step, "eval/obo": obo} for step, obo in enumerate((0.1, 0.2, 0.9, 0.3))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    for step in range(4):
        path = run / f"predictions-{step:06d}.jsonl"
        write_predictions(path, answers(0, 2, 4, 4, 5, step), TASK)
    given = read_run(run)
    assert list(given.sets) == ["step 0", "step 2, best", "step 3"]
    told = given.facts["best step of moved"]
    assert told == f"best by obo: 0.9 at step 2, kept as {run}/checkpoints/step-000002"


def step_row(step: int) -> dict[str, float]:
    """As a training logs a step: the count's reward grows, half of the groups are dropped."""
    return {
        "step": step,
        "reward/mean": 0.1 * step,
        "reward/std_in_group": 0.2,
        "reward/count": 0.2 * step,
        "headroom/useful_groups": 3.0,
        "dropped/groups": 1.0,
        "dropped/all_wrong": float(step % 2),
        "dropped/unreadable": float(1 - step % 2),
    }


def test_rewards_and_dropped_prompts_of_a_run_are_told() -> None:
    rows = [step_row(step) for step in range(1, 5)]
    rewards, prompts = rewards_table("GRPO", rows), prompts_table("GRPO", rows)
    assert rewards is not None
    assert prompts is not None
    # Two steps at each end: 0.1 and 0.2, 0.3 and 0.4.
    assert rewards.rows == (
        ("reward", "0.150", "0.350", "+0.200"),
        ("count", "0.300", "0.700", "+0.400"),
    )
    assert prompts.rows == (
        ("trained on", "12", "75.0%"),
        ("dropped", "4", "25.0%"),
        ("– all wrong", "2", "12.5%"),
        ("– unreadable", "2", "12.5%"),
    )
    assert rewards_table("SFT", [{"step": 1, "sft/loss": 1.0}]) is None
    assert prompts_table("SFT", [{"step": 1, "sft/loss": 1.0}]) is None


def test_settings_that_differ_among_runs_come_first() -> None:
    defaults = {"a": 1, "b": 2, "c": 3}
    runs = {"x": {"a": 5, "b": 2, "c": 3}, "y": {"a": 5, "b": 2, "c": 4}}
    table = settings_table(runs, defaults)
    assert table is not None
    assert table.rows == (("c", "3", "3", "4"), ("a", "1", "5", "5"))
    assert table.note == "The first 1 differ among the runs."
    assert settings_table({"x": defaults}, defaults) is None


def test_a_setting_that_is_a_mapping_is_told_as_any_other() -> None:
    labels = ["placement.learner_labels={a: b}", 'reward.weights={"count_exact": 2.0}']
    runs = {"x": flat_settings(load_recipe(None, labels)), "y": flat_settings(Recipe())}
    defaults = flat_settings(Recipe())
    assert [set(run) for run in runs.values()] == [set(defaults)] * 2
    table = settings_table(runs, defaults)
    assert table is not None
    assert table.rows[0] == ("placement.learner_labels", "{}", "{'a': 'b'}", "{}")
    assert [row[0] for row in table.rows] == ["placement.learner_labels", "reward.weights"]


def test_examples_are_sorted_by_error_and_show_what_was_listed(folder: Path) -> None:
    clips = [clip.with_root(folder) for clip in make_clips() if clip.split == "test"]
    found = examples_of(clips, answers(0, 3, None, 4, 5, 9), labels_of(clips, TASK), TASK)
    assert [one.title.partition(":")[0] for one in found] == [
        "test-2", "test-5", "test-1", "test-0", "test-3", "test-4",
    ]  # fmt: skip
    assert found[0].title.endswith("answered not readable")
    assert found[1].title.endswith("answered 9, off by 3")
    assert [one.is_right for one in found] == [False] * 3 + [True] * 3
    lanes = found[1].lanes
    assert [mark.kind for mark in lanes["true"]] == ["true"] * 6
    # Of nine listed from 1 to 10 s in a clip of 8 s, two begin behind its end.
    assert [mark.kind for mark in lanes["answer"]] == ["hit"] * 6 + ["miss"]
    assert (lanes["answer"][0].left, lanes["answer"][0].width) == (12.5, 12.5)
    assert lanes["answer"][0].text == "1: 1.0 to 2.0 s"
    assert lanes["answer"][-1].left + lanes["answer"][-1].width == 100
    assert all(one.picture.startswith("data:image/jpeg;base64,") for one in found)


def test_of_many_answers_the_worst_and_some_of_the_others_are_shown(tmp_path: Path) -> None:
    (first, *_) = make_clips()
    clips = [
        replace(first, id=f"c{i}", count=1, cycles=None).with_root(tmp_path) for i in range(100)
    ]
    found = examples_of(
        clips,
        [Prediction(f"c{i}", 1 + i) for i in range(100)],
        labels_of(clips, TASK),
        TASK,
    )
    names = [one.title.partition(":")[0] for one in found]
    assert names[:6] == ["c99", "c98", "c97", "c96", "c95", "c94"]
    assert names[6] == "c93"
    assert names[-1] == "c0"
    assert len(names) == 12
    assert {one.picture for one in found} == {""}  # there is no file


def test_several_runs_are_put_side_by_side(tmp_path: Path, folder: Path) -> None:
    runs = [make_run(tmp_path / name, folder, "grpo") for name in ("a", "b", "c")]
    rows = [step_row(step) for step in range(1, 5)]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_predictions(runs[0] / "predictions-000000.jsonl", answers(*[1] * 6), TASK)
    write_predictions(runs[0] / "predictions-000004.jsonl", answers(1, 2, 4, 6, 3, None), TASK)
    write_predictions(runs[1] / "predictions-000004.jsonl", answers(0, 2, 4, 4, 5, 40), TASK)
    write_predictions(runs[2] / "predictions-000004.jsonl", answers(0, 2), TASK)
    with pytest.raises(ValueError, match="given twice"):
        report_runs([runs[0], runs[0]], tmp_path / "x")
    report = report_runs(
        [runs[2], *runs[:2]], tmp_path / "both", console=Console(file=io.StringIO())
    )
    assert list(report.metrics) == ["constant 4", "a/grpo", "b/grpo"]
    assert list(report.differences) == ["a/grpo → b/grpo"]
    assert report.remarks[0] == (
        "c/grpo: its held-out clips are not those of b/grpo, so its answers are left out"
    )
    page = report.page.read_text(encoding="utf-8")
    assert "<h2>Rewards in a/grpo GRPO</h2>" in page
    assert "<h2>Prompts in a/grpo GRPO</h2>" in page
    assert "commit of c/grpo" in page
    other = make_run(tmp_path / "d", folder, "grpo")
    write_clips(tmp_path / "other.jsonl", (replace(c, count=c.count + 1, cycles=None)
                for c in (clip.with_root(folder) for clip in make_clips())))  # fmt: skip
    settings = json.loads((other / "config.resolved.json").read_text())
    settings["recipe"]["data"] |= {
        "path": str(tmp_path / "other.jsonl"), "allow_outside": [str(folder)],
    }  # fmt: skip
    (other / "config.resolved.json").write_text(json.dumps(settings))
    write_predictions(other / "predictions-000004.jsonl", answers(*[1] * 6), TASK)
    with pytest.raises(ValueError, match=r"a/grpo: the right answer to 'test-0' is 0, and 1 in"):
        report_runs([runs[0], other], tmp_path / "x")
