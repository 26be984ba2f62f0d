"""Reference answers: wording that varies, labels that it never contradicts, full reward."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe
from actrep_ray.sft import answered
from data_prep.cot import (
    AnswerError,
    read_answers,
    rejection,
    render_answer,
    wording,
)
from data_prep.files import DataError
from data_prep.references import reference_of
from data_prep.schema import Clip, write_clips
from data_prep.synthetic.motions import MOTIONS
from data_prep.teachers.annotations import annotate
from rewards.compose import score
from rewards.grammar.read import parse

TWO = ((0.5, 1.2), (1.2, 2.0))
MAX_VARIETY = 5  # phrasings of the section that has most


def make_clip(
    cycles: tuple[tuple[float, float], ...] | None,
    *,
    name: str = "a",
    count: int | None = None,
    action: str = "squat",
) -> Clip:
    return Clip(
        id=name,
        dataset="test",
        split="train",
        video=f"{name}.mp4",
        start_s=0.0,
        end_s=(cycles[-1][1] if cycles else 2.0) + 1.0,
        video_fps=12.0,
        num_frames=100,
        width=64,
        height=64,
        action=action,
        count=len(cycles or ()) if count is None else count,
        cycles=cycles,
    )


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """Cycles of 0.11 to 3 s with pauses of 0 to 2 s, as ragged as float arithmetic makes them."""
    lengths = draw(st.lists(st.floats(0.11, 3.0), max_size=60))
    pauses = draw(st.lists(st.floats(0.0, 2.0), min_size=len(lengths), max_size=len(lengths)))
    at, cycles = 0.0, []
    for pause, length in zip(pauses, lengths, strict=True):
        start = at + (pause if pause > 0.3 else 0.0)
        cycles.append((start, start + length))
        at = start + length
    action = draw(st.sampled_from([*MOTIONS, "push_up", "others", "unknown"]))
    name = draw(st.text("abc01", min_size=1, max_size=6))
    return make_clip(tuple(cycles), name=name, action=action)


def test_the_first_phrasing_is_the_one_that_small_models_know() -> None:
    assert render_answer(make_clip(TWO)) == (
        "<think>\n"
        "A person squats.\n"
        "One repetition: from standing, down, and back to standing\n"
        "rep1: 0.5-1.2s\n"
        "rep2: 1.2-2.0s\n"
        "Check: the repetitions follow each other in order\n"
        "Total: 2\n"
        "</think>\n"
        "<answer>2</answer>"
    )
    none = render_answer(make_clip((), action="push_up"), dialect="thinking")
    assert none == (
        "<thinking>\n"
        "The video shows push up.\n"
        "One repetition: one full push up, from start to end\n"
        "Check: no motion is repeated\n"
        "Total: 0\n"
        "</thinking>\n"
        "<answer>0</answer>"
    )
    assert wording("arm_rotation") == ("A person turns one arm.", "one full turn of the arm")


@pytest.mark.lengthy
@given(clip=clips(), variety=st.integers(1, MAX_VARIETY), seed=st.integers(0, 5))
@settings(max_examples=150)
def test_every_answer_earns_the_full_reward_and_names_no_other_number(
    clip: Clip, variety: int, seed: int
) -> None:
    text = render_answer(clip, variety=variety, seed=seed)
    assert render_answer(clip, variety=variety, seed=seed) == text
    assert score(text, reference_of(clip)).total == pytest.approx(1.0, abs=1e-9)
    parsed = parse(text)
    prose = f"{parsed.observation} {parsed.definition} {parsed.check}"
    numbers = re.findall(r"\d+", re.sub(r"\d+\.\ds", "", prose))
    assert set(numbers) <= {str(clip.count)}
    assert clip.count > 20 or not re.search(r"^rep\d+-", text, re.M)  # long lists in groups


@pytest.mark.lengthy
def test_variety_draws_by_id_and_seed_from_every_phrasing() -> None:
    def texts(variety: int, seed: int = 0) -> list[str]:
        return [
            render_answer(make_clip(TWO, name=f"c{i}"), variety=variety, seed=seed)
            for i in range(600)
        ]

    assert len(set(texts(1))) == 1
    assert len(set(texts(2))) == 2 * 2 * 2
    varied = texts(MAX_VARIETY)
    assert len(set(varied)) == 4 * 3 * 5  # observations, definitions, checks of a squat
    checks = Counter(parse(text).check for text in varied)
    assert min(checks.values()) > 600 / 5 / 2
    assert texts(MAX_VARIETY) == varied
    assert texts(MAX_VARIETY, seed=1) != varied
    assert "the 2 repetitions lie between 0.5s and 2.0s" in checks
    assert "the shortest takes 0.7s and the longest 0.8s" in checks


def test_a_single_repetition_and_none_are_told_as_such() -> None:
    one = {
        parse(render_answer(make_clip(((0.5, 1.3),), name=f"c{i}"), variety=5)).check
        for i in range(100)
    }
    assert "the only repetition lies between 0.5s and 1.3s" in one
    none = [parse(render_answer(make_clip((), name=f"c{i}"), variety=5)) for i in range(99)]
    assert len(one) == 4
    assert {answer.check for answer in none} == {
        "no motion is repeated",
        "no repetition is completed",
        "nothing comes back to where it began and starts again",
    }
    assert {answer.observation for answer in none} == {
        "A person squats.",  # what small models know; the others claim no action
        "Nothing that moves in the video does so again.",
        "The video shows no complete repetition.",
    }


UNUSABLE = [
    (make_clip(None, count=2), "no_marks"),
    (make_clip(TWO, count=3), "marks_differ_from_count"),
    (make_clip(((0.5, 0.52),)), "bad_marks"),  # nothing is left of it at one decimal
    (make_clip(((1.2, 2.0), (0.5, 1.2))), "bad_marks"),
]


@pytest.mark.parametrize(("clip", "reason"), UNUSABLE)
def test_clips_that_cannot_be_told_of_are_named_with_the_reason(clip: Clip, reason: str) -> None:
    with pytest.raises(AnswerError, match="clip 'a': ") as error:
        render_answer(clip)
    assert error.value.reason == reason
    (outcome,) = annotate([clip])
    assert (outcome.text, outcome.reason) == (None, reason)


RIGHT = render_answer(make_clip(TWO))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, None),
        ("", "malformed"),
        (RIGHT + "\nDone.", "malformed"),
        (RIGHT.replace("<answer>2", "<answer>3"), "wrong_count"),
        (RIGHT.replace("Total: 2", "Total: 3"), "inconsistent"),
        (RIGHT.replace("rep2: 1.2-2.0s\n", ""), "inconsistent"),
        (RIGHT.replace("rep2: 1.2-2.0s", "rep2: 2.0-2.9s"), "wrong_cycles"),
        (RIGHT.replace("A person squats.", "--"), "less_than_full_reward"),
    ],
)
def test_what_may_be_learnt(text: str, reason: str | None) -> None:
    assert rejection(text, make_clip(TWO)) == reason


def test_clips_without_marks_need_a_list_that_has_the_right_length() -> None:
    clip = make_clip(None, count=2)
    assert rejection(RIGHT, clip) is None
    listless = re.sub(r"rep\d.*\n", "", RIGHT)
    assert rejection(listless, clip) == "no_cycles"
    assert rejection(listless.replace("2", "0"), make_clip(None, count=0)) is None


def test_cot_writes_what_it_can_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "clips.jsonl", tmp_path / "cot.jsonl"
    bad = [replace(clip, id=f"bad{i}") for i, (clip, _) in enumerate(UNUSABLE)]
    good = [make_clip(TWO, name=f"good{i}") for i in range(3)]
    write_clips(data, [bad[0], *good, *bad[1:]])
    assert main(["cot", str(data), "--variety", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 of 7 clips" in shown
    assert "bad_marks" in shown
    assert read_answers(out) == {clip.id: render_answer(clip, variety=3) for clip in good}
    report = json.loads(out.with_name("cot.jsonl.report.json").read_text())
    assert (report["clips"], report["accepted"]) == (7, 3)
    assert report["rejected"] == {"bad_marks": 2, "no_marks": 1, "marks_differ_from_count": 1}
    assert [row["id"] for row in report["rejected_clips"]] == ["bad0", "bad1", "bad2", "bad3"]


def test_cot_without_a_single_answer_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "clips.jsonl"
    write_clips(data, [UNUSABLE[0][0]])
    assert main(["cot", str(data), "--out", str(tmp_path / "cot.jsonl")]) == 2
    assert "no clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines", ["nonsense", '{"id": "a"}', '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}']
)
def test_answers_are_read_strictly(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "cot.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match=r"cot.jsonl:\d: "):
        read_answers(path)


def test_sft_takes_the_answers_of_a_file_and_leaves_other_clips_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cot.jsonl"
    clips = [make_clip(TWO, name="a"), make_clip(TWO, name="b")]
    of_file = Recipe.model_validate({"data": {"answers": str(path)}})
    text = render_answer(clips[1], variety=5, seed=3)
    path.write_text(json.dumps({"id": "b", "text": text}) + "\n", encoding="utf-8")
    assert answered(clips, of_file) == [(clips[1], text)]
    assert "1 of 2 clips of split 'train' have no answer" in caplog.text
    with pytest.raises(DataError, match=r"cot.jsonl: has no answer for any clip of split 'train'"):
        answered(clips[:1], of_file)
    with pytest.raises(DataError, match=r"answer of clip 'b' .*: wrong_count"):
        answered([replace(clips[1], count=3, cycles=None)], of_file)
    varied = Recipe.model_validate({"seed": 4, "data": {"wording_variety": 3}})
    assert answered(clips, varied) == [
        (clip, render_answer(clip, variety=3, seed=4)) for clip in clips
    ]
