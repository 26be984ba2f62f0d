"""SFT rows of LLaMA-Factory and ms-swift: written, read back, and what is refused."""

import itertools
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe
from actrep_ray.tasks.chat_rows import ChatRows, write_chat_rows
from data_prep.chat_format import FORMATS
from data_prep.converters.chat import chat
from data_prep.converters.conversion import Summary, convert
from data_prep.files import DataError
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.video_writer import encode_mp4
from tests.unit.video.coded import Kind, write_with_sound

FPS, NUM_FRAMES = 10, 100
VIDEOS = ("a.mp4", "deep/b c.mp4", "d.mp4")
RECIPE = Recipe.model_validate({"data": {"question": "How often {action}?"}})
THOUGHT = "<think>\n{list}Total: {total}\n</think>\n<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 10 s."""
    folder = tmp_path_factory.mktemp("videos")
    encode_mp4(folder / VIDEOS[0], np.zeros((NUM_FRAMES, 64, 64, 3), np.uint8), FPS)
    (folder / "deep").mkdir()
    for name in VIDEOS[1:]:
        os.link(folder / VIDEOS[0], folder / name)
    return folder


def clip(folder: Path, **values: Any) -> Clip:
    known: dict[str, Any] = {
        "id": "a", "dataset": "gym", "split": "train", "video": str(folder / VIDEOS[0]),
        "start_s": 0.0, "end_s": 10.0, "video_fps": float(FPS), "num_frames": NUM_FRAMES,
        "width": 64, "height": 64, "action": "squat", "count": 2,
        "cycles": ((0.5, 1.2), (1.2, 2.0)), "cycles_source": "annotation",
        "times_source": "seconds",
    }  # fmt: skip
    return Clip(**{**known, **values})


def write(clips: list[Clip], format_: str, path: Path, recipe: Recipe = RECIPE) -> ChatRows:
    return write_chat_rows(clips, recipe, FORMATS[format_], path, lambda: None)


def read(path: Path, videos: Path, out: Path, **options: Any) -> tuple[Summary, list[Clip]]:
    summary = convert(chat([path], videos=videos, **options), videos=videos, out=out)
    return summary, list(read_clips(out / "clips.jsonl", allow_outside=[str(videos)]))


def test_rows_as_each_trainer_reads_them(videos: Path, tmp_path: Path) -> None:
    whole, part = clip(videos), clip(videos, id="b", start_s=2.0, end_s=9.5)
    path = tmp_path / "rows.jsonl"
    assert write([whole, part], "swift", path) == ChatRows(2, Counter())
    first, second = map(json.loads, path.read_text().splitlines())
    question, answer = first["messages"]
    assert question == {"role": "user", "content": "<video>How often squat?"}
    assert answer["role"] == "assistant"
    assert answer["content"].startswith("<think>\nA person squats.")
    assert "rep2: 1.2-2.0s\n" in answer["content"]
    assert answer["content"].endswith("<answer>2</answer>")
    assert first["videos"] == [str(videos / "a.mp4")]
    assert "chat_template_kwargs" not in first
    assert second["chat_template_kwargs"] == {"video_start": 2.0, "video_end": 9.5}

    rows = write([whole, part], "sharegpt", path)  # which has no word for a part of a video
    assert rows == ChatRows(1, Counter({"part_of_a_video": 1}))
    [row] = map(json.loads, path.read_text().splitlines())
    assert row["conversations"][0] == {"from": "human", "value": "<video>How often squat?"}
    assert row["conversations"][1] == {"from": "gpt", "value": answer["content"]}


@st.composite
def cycles_in(draw: st.DrawFn, duration: int) -> tuple[tuple[float, float], ...]:
    """Repetitions in tenths of a second, touching or with pauses between them."""
    edges = draw(st.lists(st.integers(0, duration), max_size=8, unique=True).map(sorted))
    pairs = itertools.pairwise(edges)
    kept = [pair for pair in pairs if pair[1] - pair[0] > 1 and draw(st.booleans())]
    return tuple((start / 10, end / 10) for start, end in kept)


@st.composite
def clips_of(draw: st.DrawFn) -> list[dict[str, Any]]:
    windows = st.tuples(st.integers(0, 90), st.integers(10, 100)).filter(
        lambda ends: ends[0] + 10 <= ends[1]
    )
    keys = draw(
        st.lists(
            st.tuples(st.sampled_from(VIDEOS), st.just((0, 100)) | windows),
            min_size=1, max_size=6, unique=True,
        )
    )  # fmt: skip
    found = []
    for number, (video, (start, end)) in enumerate(keys):
        cycles = draw(cycles_in(end - start))
        found.append(
            {
                "id": f"{number}-{draw(st.sampled_from(('x', 'ü 1', 'easy-train-0')))}",
                "dataset": draw(st.sampled_from(("gym", "repcount"))),
                "action": draw(st.sampled_from(("squat", "Push ups, fast", "unknown"))),
                "video": video, "start_s": start / 10, "end_s": end / 10,
                "cycles": cycles, "count": len(cycles),
            }
        )  # fmt: skip
    return found


@pytest.mark.lengthy
@pytest.mark.parametrize("format_", FORMATS)
@given(rows=clips_of())
@settings(max_examples=30, deadline=None, suppress_health_check=[*HealthCheck])
def test_what_is_written_is_read_back(
    format_: str, rows: list[dict[str, Any]], videos: Path, tmp_path: Path
) -> None:
    clips = [clip(videos, **{**row, "video": str(videos / row["video"])}) for row in rows]
    takes = [one for one in clips if format_ == "swift" or one.end_s - one.start_s == 10.0]
    path = tmp_path / "rows.jsonl"
    if not takes:
        with pytest.raises(DataError, match=r"none of \d+ clips has a row to write \(part_of_a"):
            write(clips, format_, path)
        return
    assert write(clips, format_, path).num_rows == len(takes)
    summary, found = read(path, videos, tmp_path / "out")
    assert summary.num_rejected == 0
    expected = [replace(one, flags=("count_zero",) if one.count == 0 else ()) for one in takes]
    assert found == expected


def test_marks_come_back_to_a_tenth_of_a_second(videos: Path, tmp_path: Path) -> None:
    fine = clip(videos, cycles=((0.512, 1.234), (1.25, 2.049)))
    write([fine], "swift", tmp_path / "rows.jsonl")
    _, [found] = read(tmp_path / "rows.jsonl", videos, tmp_path / "out")
    assert fine.cycles is not None
    assert found.cycles is not None
    assert np.abs(np.subtract(found.cycles, fine.cycles)).max() <= 0.05 + 1e-9


def test_a_clip_without_an_answer_is_left_out_by_its_reason(videos: Path, tmp_path: Path) -> None:
    clips = [
        clip(videos),
        clip(videos, id="b", cycles=None, cycles_source=None),
        clip(videos, id="c", count=7),
        clip(videos, id="d", video=str(videos / "none.mp4")),
    ]
    rows = write(clips, "swift", tmp_path / "rows.jsonl")
    assert rows.left_out == {"no_marks": 1, "marks_differ_from_count": 1, "unreadable_video": 1}
    answers = tmp_path / "cot.jsonl"
    texts = {"a": THOUGHT.format(list="", total=3, answer=3), "d": "<answer>2</answer>"}
    answers.write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in texts.items()))
    data = RECIPE.data.model_copy(update={"answers": str(answers)})
    taught = RECIPE.model_copy(update={"data": data})
    with pytest.raises(DataError, match=r"none of 2 clips .*\(wrong_count 1, no_answer 1\)"):
        write(clips[:2], "swift", tmp_path / "other.jsonl", taught)
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize(
    ("reasoning", "cycles"), [("after", ((0.5, 1.2), (1.2, 2.0))), ("none", None)]
)
def test_answers_that_reason_elsewhere_come_back_too(
    reasoning: str, cycles: Any, videos: Path, tmp_path: Path
) -> None:
    data = RECIPE.data.model_copy(update={"reasoning": reasoning})
    recipe = RECIPE.model_copy(update={"data": data})
    write([clip(videos)], "swift", tmp_path / "rows.jsonl", recipe)
    _, [found] = read(tmp_path / "rows.jsonl", videos, tmp_path / "out")
    assert (found.count, found.cycles) == (2, cycles)


def test_media_in_a_question_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its question holds <image>, where a trainer would put"):
        write([clip(videos, action="<image>")], "swift", tmp_path / "rows.jsonl")


def asked(answer: str, **values: Any) -> dict[str, Any]:
    messages = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": answer}]
    return {"conversations": messages, "videos": ["a.mp4"], **values}


TWO = THOUGHT.format(list="rep1: 0.5-1.2s\nrep2: 1.2-2.0s\n", total=2, answer=2)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (asked("Twice."), "no_count", "the answer holds no count (missing)"),
        (asked("<answer>2 or 3</answer>"), "no_count", "the answer holds no count ("),
        (asked("<answer>2.5</answer>"), "no_count", "(decimal)"),
        (asked(TWO, videos=[]), "not_one_video", "expected a list of one path"),
        (asked(TWO, videos=["a.mp4", "d.mp4"]), "not_one_video", "expected a list of one path"),
        (asked(TWO, videos=[["1.jpg", "2.jpg"]]), "not_one_video", "expected a list of one path"),
        (asked(TWO, videos=["/etc/passwd"]), "absolute_path", "is absolute"),
        (asked(TWO, videos=["../a.mp4"]), "path_traversal", "has a part '..'"),
        (asked(TWO, split="all"), "unknown_split", "split='all'"),
        ({"videos": ["a.mp4"]}, "no_conversation", "expected a list of conversations or messages"),
        (asked(TWO, conversations=[]), "no_conversation", "nothing: expected one question"),
        (
            asked(TWO, conversations=asked(TWO)["conversations"] * 2),
            "no_conversation",
            "question, answer, question, answer: expected one question and its answer",
        ),
        (asked(TWO, conversations=["?"]), "no_conversation", "a message without from and value"),
        (
            asked(TWO, chat_template_kwargs={"video_start": 8, "video_end": 3}),
            "bad_time",
            "start=8",
        ),
    ],
)
def test_a_row_that_is_none_is_rejected_by_its_reason(
    row: dict[str, Any], reason: str, detail: str, videos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(asked(TWO, videos=["d.mp4"])) + "\n" + json.dumps(row) + "\n")
    summary, found = read(path, videos, tmp_path / "out")
    assert [one.video for one in found] == [str(videos / "d.mp4")]
    assert dict(summary.rejected) == {reason: 1}
    assert detail in summary.first_rejected


def test_files_of_others(videos: Path, tmp_path: Path) -> None:
    """An array, OpenAI's names, a system's message, no list and no names of ours."""
    messages = [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": "<video>How many squats?"},
        {"role": "assistant", "content": "<answer>12</answer>"},
    ]
    path = tmp_path / "val.json"
    path.write_text(json.dumps([{"messages": messages, "videos": str(videos / "deep/b c.mp4")}]))
    _, [found] = read(path, videos, tmp_path / "out", dataset="mine")
    assert (found.id, found.dataset, found.split) == (
        "mine-validation-deep/b c",
        "mine",
        "validation",
    )
    assert (found.count, found.cycles, found.action) == (12, None, "unknown")
    assert (found.start_s, found.end_s) == (0.0, 10.0)
    path.rename(tmp_path / "rows.json")
    summary = convert(chat([tmp_path / "rows.json"], videos=videos), videos=videos, out=tmp_path)
    assert dict(summary.rejected) == {"unknown_split": 1}  # neither row nor name says it


def test_times_of_an_answer_count_from_the_first_picture(tmp_path: Path) -> None:
    """Where sound begins 0.8 s before the pictures, a player's seconds are others."""
    write_with_sound(tmp_path / "a.mp4", Kind(options=(("preset", "ultrafast"),)), 100, 0.8)
    window = {"video_start": 1.0, "video_end": 3.5}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(asked(TWO, chat_template_kwargs=window)) + "\n")
    _, [found] = read(path, tmp_path, tmp_path / "out")
    assert (found.start_s, found.end_s) == (1.0, 3.5)
    assert found.cycles == ((0.5, 1.2), (1.2, 2.0))


def test_by_the_commands(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, rows, out = tmp_path / "clips.jsonl", tmp_path / "gym_sft.jsonl", tmp_path / "out"
    clips = [clip(videos), clip(videos, id="b", end_s=5.0)]
    write_clips(data, clips)
    outside = f"--set=data.allow_outside=[{videos}]"
    words = ["prepare", "chat-export", str(data), "--out", str(rows), outside]
    assert main([*words, "--format", "sharegpt"]) == 0
    told = capsys.readouterr().out
    assert "1 rows, 1 clips left out\n        1  part_of_a_video: LLaMA-Factory shows" in told
    entry = json.loads(told.splitlines()[-1])["gym_sft"]
    assert entry["columns"] == {"messages": "conversations", "videos": "videos"}
    assert main([*words, "--format", "swift"]) == 2  # what is there is not written over
    assert main([*words, "--format", "swift", "--overwrite"]) == 0
    assert main(["prepare", "chat", str(rows), "--videos", str(videos), "--out", str(out)]) == 0
    assert list(read_clips(out / "clips.jsonl", allow_outside=[str(videos)])) == clips
