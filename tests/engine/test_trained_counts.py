"""`actrep count` with a trained model: a held-out split as files, and two actions in one file.

    ACTREP_QUICKSTART=. .venv/bin/python -m pytest tests/engine/test_trained_counts.py

takes the folder in which `actrep quickstart` has run; without it, it is run first (25 minutes).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cli.main import main
from actrep_ray.quickstart.data import COUNTED, MARKED
from data_prep.schema import Clip, read_clips
from data_prep.video.reader import Video
from data_prep.video_writer import encode_mp4

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60 * 60
REST_S = 3
LEAST_PAIRS = 12
LEAST_NAMED, LEAST_RIGHT = 0.9, 0.5  # of a model of ten minutes; both counts of a file
SEEN = {
    "squat": "A person squats", "ball_bounce": "A ball bounces",
    "arm_raise": "A person raises both arms", "arm_rotation": "A person turns one arm",
}  # fmt: skip

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `actrep quickstart` has run."""
    if given := os.environ.get("ACTREP_QUICKSTART"):
        return Path(given).absolute()
    made = tmp_path_factory.mktemp("quickstart")
    (made / "recipes").symlink_to(ROOT / "recipes")
    line = [sys.executable, "-m", "actrep_ray", "quickstart"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(line, cwd=made, env=environment, check=True, timeout=LIMIT_S)
    return made


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_split_counted_as_files_is_what_evaluate_says(folder: Path, tmp_path: Path) -> None:
    said = {
        row["clip_id"]: row for row in lines_of(folder / "runs/quickstart/predictions-grpo.jsonl")
    }
    clips = [one for one in read_clips(folder / "data/quickstart/clips.jsonl") if one.id in said][
        :50
    ]
    assert {(clip.dataset, clip.start_s) for clip in clips} == {(COUNTED, 0.0)}
    out = tmp_path / "counts.jsonl"
    model = str(folder / "runs" / "quickstart" / "grpo")
    words = ["count", *(clip.video for clip in clips), "--checkpoint", model, "--no-cross-check"]
    assert main([*words, "--out", str(out)]) in (0, 3)
    counted = {record["video"]: record for record in lines_of(out)}
    differ = [
        clip.id
        for clip in clips
        if (counted[clip.video]["text"], counted[clip.video]["count"])
        != (said[clip.id]["text"], said[clip.id]["count"])
    ]
    assert differ == []


def test_two_actions_in_one_file_get_their_counts_and_names(folder: Path, tmp_path: Path) -> None:
    """Of clips that are counted rightly alone, two by two with a rest between them."""
    chosen = {action: list(islice(counted_rightly(folder, action), 4)) for action in SEEN}
    pairs = [
        (first, second)
        for one, other in permutations(SEEN, 2)
        for first, second in product(chosen[one], chosen[other])
        if first.video_fps == second.video_fps
    ][:: len(SEEN)]
    assert len(pairs) >= LEAST_PAIRS
    files = [join(pair, tmp_path / f"{i:02d}.mp4") for i, pair in enumerate(pairs)]
    model, out = str(folder / "runs" / "quickstart" / "sft"), tmp_path / "counts.jsonl"
    words = ["count", *map(str, files), "--checkpoint", model, "--segments", "--out", str(out)]
    assert main(words) in (0, 3)
    found = [record["segments"] for record in lines_of(out)]
    both = [[one["count"] for one in segments] for segments in found]
    names = [[one["name"] for one in segments] for segments in found]
    is_right = [said == [c.count for c in pair] for said, pair in zip(both, pairs, strict=True)]
    is_named = [
        said == [SEEN[c.action] for c in pair] for said, pair in zip(names, pairs, strict=True)
    ]
    assert np.mean(is_named) >= LEAST_NAMED, names
    assert np.mean(is_right) >= LEAST_RIGHT, both


def counted_rightly(folder: Path, action: str) -> Iterator[Clip]:
    """Held-out clips of an action, of 3 repetitions or more, without a pause between them."""
    path = folder / "runs" / "quickstart" / MARKED / "predictions-sft.jsonl"
    said = {row["clip_id"]: row["count"] for row in lines_of(path)}
    for clip in read_clips(folder / "data/quickstart/clips.jsonl"):
        has_no_rest = all(b - a < 0.2 for (_, a), (b, _) in pairwise(clip.cycles or ()))
        is_right = clip.count >= 3 and said.get(clip.id) == clip.count
        if clip.action == action and is_right and has_no_rest:
            yield clip


def join(clips: Sequence[Clip], path: Path) -> Path:
    """One file of several clips; between them the last picture of each stands."""
    pictures: list[np.ndarray] = []
    fps = round(clips[0].video_fps)
    for clip in clips:
        with Video(clip.video) as video:
            pictures += [frame for _, frame in video.frames()]
        pictures += [pictures[-1]] * (REST_S * fps)
    encode_mp4(path, np.stack(pictures), fps)
    return path
