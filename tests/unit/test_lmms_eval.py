"""lmms-eval's reading and figures against a scorer written by hand from what it documents."""

import json
import random
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import DataConfig
from actrep_ray.evaluation import jobs
from actrep_ray.evaluation.predictions import prediction_of_text
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.tasks.lmms_eval import (
    LMMS_EVAL,
    LmmsEval,
    first_number,
    last_number,
    without_reasoning,
)
from actrep_ray.tasks.loading import load_task
from data_prep.rows import clips_among, read_rows
from data_prep.schema import Clip, write_clips
from data_prep.synthetic.dataset import write_dataset
from rewards.grammar.write import Response, render
from rewards.reference import Reference
from tests.unit.test_killed_evaluation import one_engine

REPCOUNT, COUNTIX, OVR, PUSHUPBENCH = LMMS_EVAL
NUM_ANSWERS = 10_000


# --- the scorer by hand: characters one by one, sums in a loop


def read_by_hand(text: str, *, knows_words: bool) -> int | None:
    if text.count("<think>") == text.count("</think>") == 1:
        text = text[: text.index("<think>")] + text[text.index("</think>") + len("</think>") :]
    text = text.strip().lower().replace(",", "")
    named = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    named += ["nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]
    named += ["seventeen", "eighteen", "nineteen", "twenty"]
    if knows_words and text in named:
        return max(named.index(text) - 1, 0)  # both none and zero are 0
    digits = [at for at, letter in enumerate(text) if letter in "0123456789"]
    if not digits:
        return None
    end = at = digits[0]
    while end < len(text) and text[end] in "0123456789":
        end += 1
    if text[end : end + 1] == "." and text[end + 1 : end + 2] in [*"0123456789"]:
        end += 1
        while end < len(text) and text[end] in "0123456789":
            end += 1
    sign = -1 if at and text[at - 1] == "-" else 1
    return sign * int(Decimal(text[at:end]).quantize(Decimal(1), ROUND_HALF_EVEN))


def figures_by_hand(counts: list[int | None], truths: list[int], *, divides: bool) -> list[float]:
    error = within = 0.0
    for count, truth in zip(counts, truths, strict=True):
        if count is None:
            error += truth
            continue
        distance = abs(count - truth)
        error += distance / (truth + 0.1) if divides else distance
        within += distance <= 1
    return [error / len(truths), within / len(truths)]


# --- answers


def some_answer(draw: random.Random, truth: int) -> str:
    """Of models that do as they are told, that talk, that reason, and that do none of it."""
    near = max(truth + draw.choice((-2, -1, 0, 0, 0, 1, 3)), 0)
    words = ("about", "the person", "squats", "times", "none", "Twelve", "one", "-", ",", ".", "2x")
    kind = draw.randrange(8)
    if kind == 0:
        return str(near)
    if kind == 1:
        return draw.choice(
            (f" {near}.\n", f"**{near}**", f"{near:,} times", f"{near / 2}", f"-{near}")
        )
    if kind == 2:
        return draw.choice(("Twelve", " zero ", "none", "TWENTY", "twenty one", "Eleven.", "no"))
    if kind == 3:
        return " ".join(draw.choice((*words, str(draw.randrange(40)))) for _ in range(6))
    if kind == 4:
        cycles = tuple((float(i), i + 0.5) for i in range(truth))
        thought = Response("A person squats.", "down and up", cycles, "in order", truth, near)
        return render(thought)
    if kind == 5:
        return draw.choice(("", " ", "I cannot tell.", "<answer></answer>", "½", "--", "."))
    if kind == 6:
        return f"<answer>{near}</answer>"
    return f"between {near}-{near + 2} and -{near}.{draw.randrange(1000)}"


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, str]]:
    draw = random.Random(0)
    truths = [draw.randrange(1, 30) for _ in range(NUM_ANSWERS)]
    return [(truth, some_answer(draw, truth)) for truth in truths]


@pytest.mark.parametrize("task", LMMS_EVAL[:3], ids=lambda task: task.name)
def test_ten_thousand_answers_are_read_and_judged_as_by_hand(
    task: LmmsEval, answers: list[tuple[int, str]]
) -> None:
    truths, texts = [truth for truth, _ in answers], [text for _, text in answers]
    expected = [read_by_hand(text, knows_words=task.knows_words) for text in texts]
    predictions = [prediction_of_text(str(i), text, task) for i, text in enumerate(texts)]
    assert [one.reading for one in predictions] == expected
    assert 0.1 < sum(count is None for count in expected) / NUM_ANSWERS < 0.3
    assert min(count for count in expected if count is not None) < 0
    labels = {str(i): Reference(count=truth) for i, truth in enumerate(truths)}
    found = score_predictions(predictions, labels, task, num_bootstrap=2)
    values = [found[task.figures[0].name].value, found["obo"].value]
    assert values == pytest.approx(figures_by_hand(expected, truths, divides=task is not OVR))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12", 12),
        ("About 12.", 12),
        ("1,200 times", 1200),
        ("-3", -3),
        ("2.5", 2),
        ("3.5", 4),
        ("version 2.", 2),
        ("Twelve", 12),
        ("None", 0),
        ("twelve squats", None),
        ("<think>\nA person squats.\nrep1: 0.5-1.2s\nrep2: 1.2-2.0s", 1),
        ("", None),
        ("9" * 400, None),  # no float holds it
    ],
)
def test_what_is_read(text: str, count: int | None) -> None:
    assert first_number(text, knows_words=True) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12", 12),
        ("I see 3, then 4, so 5.", 5),
        ("<think>\nrep1: 0.5-1.2s\nTotal: 9\n</think>\n<answer>7</answer>", 7),
        ("\\boxed{6}, after 2 tries", 6),
        ("fifty", 50),
        ("Twelve squats", None),
        ("-4", 4),
        ("1,200", 200),
        ("2.5", 2),
        ("x2", None),
        ("</think>", None),
        ("9" * 400, None),
    ],
)
def test_what_pushupbench_reads(text: str, count: int | None) -> None:
    assert last_number(text) == count


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>1 2</think> 3", "3"),
        ("a <think>1</think> b <think>2</think> c", "a  b  c"),
        ("1 2</think> 3", "3"),  # the template opened it
        ("<think>1 2", "<think>1 2"),
        ("1</think><think>2", "1</think><think>2"),
        ("<analysis>1</analysis>\n2", "2"),
        ("<thinking>1</thinking> 2", "<thinking>1</thinking> 2"),
    ],
)
def test_which_reasoning_is_taken_out(text: str, left: str) -> None:
    assert without_reasoning(text) == left


def test_what_pushupbench_makes_of_answers() -> None:
    texts = ["5", "between 3 and 6", "nothing", "4", "9"]
    predictions = [prediction_of_text(str(i), text, PUSHUPBENCH) for i, text in enumerate(texts)]
    labels = {str(i): Reference(count=5) for i in range(5)}
    found = score_predictions(predictions, labels, PUSHUPBENCH, num_bootstrap=2)
    assert found["mae_raw"].value == (0 + 1 + 5 + 1 + 4) / 5
    assert (found["exact"].value, found["obo"].value) == (0.2, 0.6)
    assert found["parse_rate"].value == 0.8


def test_a_word_is_read_by_one_of_them_alone() -> None:
    assert first_number("Twelve", knows_words=False) is None
    assert [one.knows_words for one in LMMS_EVAL[:3]] == [True, False, False]


def test_what_is_asked() -> None:
    clip = Clip(
        id="a", dataset="ovr", split="test", video="a.mp4", start_s=0.0, end_s=8.0, video_fps=10.0,
        num_frames=80, width=64, height=64, action="a man does push ups", count=4,
    )  # fmt: skip
    asked = [task.question(clip, DataConfig()) for task in LMMS_EVAL]
    assert asked == [
        "How many times is the action repeated in this video?\nAnswer with a single integer.",
        "Count the number of repetitions in this clip.\nAnswer with a single integer.",
        "How many times does 'a man does push ups' happen in this video?\n"
        "Answer with a single integer.",
        'Watch this video carefully and count the number of repetitions of "a man does push ups". '
        "Provide the count as a single integer.",
    ]
    assert [load_task(one.name) for one in LMMS_EVAL] == list(LMMS_EVAL)


def test_a_set_that_it_has_no_task_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "quva", "--protocol", "lmms-eval", "--data", "clips.jsonl"]
    assert main(words) == 2
    assert (
        "it has no task for quva, only for repcount, countix, ovr, pushupbench"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_benchmark_asks_about_its_set_in_sixteen_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, whose engines run in this process."""
    monkeypatch.setattr(jobs, "rollout_workers", one_engine)
    model, data = write_tiny_model(tmp_path / "model"), tmp_path / "data"
    sizes = {"train": 1, "validation": 1, "test": 4}
    path = write_dataset(data, level="easy", num_clips=sizes, seed=0, num_processes=1)
    clips = clips_among(read_rows(path))
    named = [replace(clip, dataset="repcount" if i % 2 else "quva") for i, clip in enumerate(clips)]
    write_clips(data / "named.jsonl", named)
    wanted = {clip.id for clip in named if clip.dataset == "repcount" and clip.split == "test"}
    found = {}
    for protocol in ("ours", "lmms-eval"):
        out = tmp_path / protocol
        words = ["benchmark", "repcount", "--protocol", protocol, "--checkpoint", str(model)]
        words += ["--data", str(data / "named.jsonl"), "--out", str(out), "--no-baseline"]
        for setting in ("video.fps=2", "device=cpu", "rollout.engine=hf", "eval.num_bootstrap=9"):
            words += ["--set", setting]
        words += ["--set", f"video.cache_dir={json.dumps(str(tmp_path / 'frames'))}"]
        assert main(words) == 0
        rows = [json.loads(row) for row in (out / "predictions.jsonl").read_text().splitlines()]
        assert {row["clip_id"] for row in rows} == wanted
        found[protocol] = json.loads((out / "metrics.json").read_text())
        if protocol == "lmms-eval":
            assert max(row["num_tokens"] for row in rows) <= 16
    assert "obz" in found["ours"]
    assert {"mae_norm", "obo"} < found["lmms-eval"].keys()
    assert "obz" not in found["lmms-eval"]
