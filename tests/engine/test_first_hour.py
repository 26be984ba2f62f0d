"""docs/first-hour.md as a newcomer types it, in a fresh folder, with fewer steps."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.schema import read_clips
from data_prep.synthetic.dataset import write_dataset
from tests.engine.test_quickstart import CODE

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
FEWER = [
    "rollout.max_response_tokens=24",
    "sft.num_steps=2",
    "sft.clips_per_step=4",
    "train.num_steps=2",
    "train.prompts_per_step=2",
    "train.group_size=2",
    "train.mini_batch_size=null",
    "checkpoint.every=1",
]
STEPS = [
    "quickstart", "doctor", "prepare", "validate", "check", "train", "report", "count", "count",
]  # fmt: skip
NOT_SURE = 3


@dataclass
class Typed:
    """A command of the page, and what came of it."""

    words: list[str]
    code: int
    told: str


def commands() -> list[list[str]]:
    """Of the page's blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's recipes, and three videos with the table of the page."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    table = re.search(r"```\n(video,.*?)```", PAGE.read_text(), re.DOTALL)
    assert table is not None
    write_dataset(folder / "own", level="easy", num_clips={"train": 3}, seed=7, num_processes=1)
    (folder / "my" / "videos").mkdir(parents=True)
    (folder / "my" / "counts.csv").write_text(table[1])
    names = [line.partition(",")[0] for line in table[1].splitlines()[1:]]
    for name, clip in zip(names, read_clips(folder / "own/clips.jsonl"), strict=True):
        shutil.copy(clip.video, folder / "my" / "videos" / name)
    return folder


@pytest.fixture(scope="module")
def typed(folder: Path) -> list[Typed]:
    found = []
    for words in commands():
        if words == ["./launch.sh", "setup"]:
            continue
        if words == ["./launch.sh", "quickstart"]:
            line = [sys.executable, "-c", CODE, *FEWER]
        else:
            assert words[0] == ".venv/bin/actrep", words
            line = [sys.executable, "-m", "actrep_ray", *words[1:]]
            if words[1] == "train":
                line += ["--set=rollout.max_response_tokens=24", "--set=train.group_size=2"]
        run = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        found.append(Typed(words, run.returncode, run.stdout + run.stderr))
    return found


def test_no_step_fails(typed: list[Typed]) -> None:
    allowed = {"count": (0, NOT_SURE), "doctor": (0, 1)}  # of this machine, it may complain
    failed = [
        f"{shlex.join(one.words)}: {one.code}\n{one.told[-2000:]}"
        for one in typed
        if one.code not in allowed.get(one.words[1], (0,))
    ]
    assert failed == [], "\n".join(failed)
    assert [one.words[1] for one in typed] == STEPS


def test_each_step_leaves_what_the_page_says(typed: list[Typed], folder: Path) -> None:
    assert all(one.code in (0, 1, NOT_SURE) for one in typed)
    clips = list(read_clips(folder / "my" / "clips.jsonl"))
    assert [(clip.action, clip.count) for clip in clips] == [
        ("squat", 4),
        ("press", 5),
        ("curl", 6),
    ]
    assert (folder / "runs" / "quickstart" / "mine" / "report" / "report.html").is_file()
    by_detector = typed[-1].told
    assert all(f"my/videos/{name}.mp4: " in by_detector for name in ("squats", "press", "curls"))
