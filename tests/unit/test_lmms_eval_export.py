"""The folder that lmms-eval runs: which clips are in it, and what its task says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from actrep_ray.cli.main import main
from data_prep.schema import Clip, write_clips
from data_prep.shown import ShownImage
from data_prep.video_writer import encode_mp4


class Functions(yaml.SafeLoader):
    """Reads `!function utils.x` as the text behind it."""


Functions.add_constructor("!function", lambda loader, node: str(node.value))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    encode_mp4(tmp_path / "a.mp4", np.zeros((36, 64, 64, 3), np.uint8), 12)
    clip = Clip(
        id="whole", dataset="ovr", split="test", video="a.mp4", start_s=0.0, end_s=3.0,
        video_fps=12.0, num_frames=36, width=64, height=64, action="jumping jack", count=2,
    )  # fmt: skip
    (tmp_path / "b.mp4").write_text("no video")
    (tmp_path / "c.png").write_text("no image")
    rows = [
        clip,
        replace(clip, id="cut", end_s=2.0),
        replace(clip, id="broken", video="b.mp4"),
        replace(clip, id="shown", images=(ShownImage("c.png", 64, 64),)),
        replace(clip, id="other", split="train"),
    ]
    write_clips(tmp_path / "clips.jsonl", rows)
    return tmp_path / "clips.jsonl"


@pytest.mark.parametrize(
    ("name", "task", "error"),
    [
        ("repcount", "repcount", "mae_norm"),
        ("countix", "countix", "mae_norm"),
        ("ovr", "ovr_kinetics", "mae"),
    ],
)
def test_a_task_about_whole_clips_with_its_own_functions(
    name: str, task: str, error: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "out"
    words = ["prepare", "lmms-eval", name, str(data), "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "1 clips, 3 left out" in told
    for reason in ("part_of_a_video: lmms-eval shows whole", "unreadable_video", "images_before"):
        assert reason in told
    rows = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
    video = str(data.parent / "a.mp4")
    assert rows == [{"id": "whole", "video": video, "count": 2, "text_description": "jumping jack"}]
    written = yaml.load((out / f"actrep_{name}.yaml").read_text(), Functions)
    assert written["task"] == f"actrep_{name}"
    assert written["dataset_kwargs"] == {"data_files": {"test": str(out / "clips.jsonl")}}
    assert written["process_results"] == f"utils.{task}_process_results"
    assert [one["metric"] for one in written["metric_list"]] == [error, "obo"]
    assert written["generation_kwargs"]["max_new_tokens"] == 16
    kept = written["lmms_eval_specific_kwargs"]["default"]
    assert kept == {"pre_prompt": "", "post_prompt": "\nAnswer with a single integer."}
    assert f"lmms_eval.tasks.{task}.utils" in (out / "utils.py").read_text()
    compile((out / "run_lmms_eval.py").read_text(), "run_lmms_eval.py", "exec")
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_no_clip_that_it_can_show_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("\n".join(json.dumps(clip) for clip in clips[1:]))
    out = data.parent / "out"
    assert main(["prepare", "lmms-eval", "ovr", str(data), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "none of 3 clips has a row to write (part_of_a_video 1" in error
    assert error.count("\n") == 1
