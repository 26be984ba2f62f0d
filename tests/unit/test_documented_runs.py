"""The commands of README, docs, recipes and --help are run in a folder that has what they name.

Those that need a GPU, the network, an engine or a training are parsed alone
(`test_documented_commands.py`), each for the reason that is given here.

    .venv/bin/python -m pytest tests/unit/test_documented_runs.py

A test each, in an order in which what one writes is there for those that read it.
"""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe, write_resolved
from actrep_ray.evaluation.confidence import reliability, write_calibration
from actrep_ray.evaluation.predictions import Prediction, write_predictions
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.record import model_fingerprint
from actrep_ray.tasks.loading import load_task
from data_prep.files import write_lines
from data_prep.images import LabelledImage
from data_prep.rows import read_rows
from data_prep.schema import Clip, read_clips, write_clips
from tests.unit.saved import SavesConfig
from tests.unit.test_documented_commands import LINES, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# (what a command line matches, why it is not run here)
NOT_RUN = [
    (r"^(sft|train|headroom|quickstart|serve)\b", "trains, or starts an engine: tests/engine"),
    (r"^evaluate --protocol", "trains on shots: tests/engine/test_recognition_run.py"),
    (
        r"--teacher periodicity",
        "wants counts that the detector agrees with: test_teacher_periodicity.py",
    ),
    (r"--method api", "asks an endpoint: test_api_model.py"),
    (r"--teacher api", "asks an endpoint on the network: test_teacher_api.py"),
    (r"^prepare (repcount|ucfrep|countix|quva|ovr|actrep) ", "a public set: tests/unit/converters"),
    (r"^prepare chat ", "rows of another trainer: test_chat_rows.py"),
    (r"^prepare recognition --csv", "a table of the user's own: test_recognition.py"),
    (r"--camera 0", "wants a camera: test_live.py"),
    (r"--allow-network", "opens an address: test_live.py, test_api_model.py"),
    (r"^demo\b", "serves until ctrl-C: test_demo_in_browser.py"),
    (r"my_(rewards|package|recipe)|presence\.yaml", "a user's own code: test_contributing.py"),
]
FEWER = [  # the same command on fewer clips
    (r"--(train|test) \d+", r"--\1 4"),
    (r"--validation [1-9]\d*", "--validation 1"),
    (r"--num \d+", "--num 6"),
    (r"--shots \d+", "--shots 1"),
]
# The engine that is there sooner, and answers that end soon.
SOONER = " --set rollout.engine=hf --set rollout.max_response_tokens=8 --set rollout.num_workers=1"

# Not sure, and too large for this machine, are answers too.
ALLOWED = {"count": (0, 3), "check": (0, 1), "doctor": (0, 1)}
# Those that write what others read come first.
FIRST = ("prepare synthetic", "prepare activities", "prepare tiny-model", "prepare recognition")


def reason_of(words: list[str]) -> str | None:
    line = shlex.join(words)
    return next((why for pattern, why in NOT_RUN if re.search(pattern, line)), None)


# What docs/first-hour.md shows is run in its own order, by tests/engine/test_first_hour.py.
RUN = list(
    dict.fromkeys(
        tuple(shown.words)
        for shown in LINES
        if reason_of(shown.words) is None and "first-hour" not in shown.where
    )
)
ORDERED = sorted(RUN, key=lambda words: not shlex.join(words).startswith(FIRST))


def shortened(words: tuple[str, ...]) -> list[str]:
    line = shlex.join(words).replace("sticks-1-50", "sticks-line-50")  # of a loop over styles
    if words[:2] == ("prepare", "activities") and "--train" not in words:
        line += " --train 4 --test 4"
    if words[0] in ("evaluate", "benchmark") and "--checkpoint" in words:
        line += SOONER
    for pattern, shorter in FEWER:
        line = re.sub(pattern, shorter, line)
    return shlex.split(line)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with the recipes, and files under the names that the documents use."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = (
            "prepare synthetic --level easy --train 8 --validation 2 --test 4 --out data/repcount"
        )
        assert main(shlex.split(line)) == 0
        for name in ("synthetic-easy", "countix", "E", "NAME", "ucfrep", "quickstart"):
            shutil.copytree(folder / "data" / "repcount", folder / "data" / name)
        for level in ("easy", "medium"):
            shutil.copytree(
                folder / "data" / "E" / "videos", folder / "data" / "quickstart" / level / "videos"
            )
        for name in ("repcount", "ucfrep"):  # a set's rows say which it is
            path = folder / "data" / name / "clips.jsonl"
            of_set = [replace(c, id=f"{name}-{c.id}", dataset=name) for c in read_clips(path)]
            write_clips(path, [replace(c, video=f"videos/{Path(c.video).name}") for c in of_set])
        clips = list(read_clips(folder / "data" / "E" / "clips.jsonl"))
        (folder / "clips").mkdir()
        (folder / "videos").mkdir()
        for i, clip in enumerate(clips):  # as the documents name folders of a public set, and own
            label = ("Squats", "Jumps")[i % 2]
            for where in (folder / "UCF-101" / label, folder / "footage"):
                where.mkdir(parents=True, exist_ok=True)
                shutil.copy(clip.file, where / f"v_{label}_g{i:02d}_c01.mp4")
        rows = ["file,reps,L1,L2"]
        for i, clip in enumerate(clips[:3]):
            shutil.copy(clip.file, folder / "clips" / f"{i}.mp4")
            shutil.copy(clip.file, folder / "videos" / f"{i}.mp4")
            rows.append(f"{i}.mp4,1,0,9")
        for name in ("squats", "workout", "VIDEO"):
            shutil.copy(clips[0].file, folder / f"{name}.mp4")
        model = write_tiny_model(folder / "runs" / "tiny_grpo")
        for name in ("A", "B", "quickstart/grpo", "quickstart/sft", "quickstart/raft"):
            shutil.copytree(model, folder / "runs" / name)
        for step in (100, 200):
            store = CheckpointStore(folder / "runs" / "NAME", keep=2)
            store.write(step, Recipe(), {}, Weights(model))
        for name in ("A", "B", "quickstart/power1-1", "tiny_grpo"):
            write_run(folder / "runs" / name, clips)
        told = reliability([0.3, 0.7], [False, True], 5)
        drawn = {"num": 5, "temperature": 1.0, "top_p": 1.0}
        path = folder / "runs" / "sure" / "calibration.json"
        write_calibration(path, told, model_fingerprint(model), drawn)
        rows_of_others = [
            {"clip_id": clip.id, "count": 4} for clip in clips if clip.split == "test"
        ]
        write_lines(folder / "theirs.jsonl", map(json.dumps, rows_of_others))
        (folder / "mine.csv").write_text("\n".join(rows) + "\n")
        assert (
            main(shlex.split("prepare activities --style line --train 8 --test 4 --out drawn")) == 0
        )
        for row in read_rows(folder / "drawn" / "rows.jsonl"):
            assert isinstance(row, LabelledImage)
            file = Path(row.file)
            (folder / "photos" / row.label).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                file, folder / "photos" / row.label / f"{row.id.replace('/', '-')}{file.suffix}"
            )
    return folder


class Weights(SavesConfig):
    """What learners save: the model, and its moving average."""

    def __init__(self, model: Path) -> None:
        self.model = model

    def begin_save(self, folder: Path) -> int:
        for to in (folder, folder / "ema"):
            shutil.copytree(self.model, to, dirs_exist_ok=True)
        return 0


def write_run(folder: Path, clips: Sequence[Clip]) -> None:
    """What a training of two steps leaves that a report reads."""
    data = {"path": str(Path("data/E/clips.jsonl").absolute())}
    recipe = Recipe.model_validate({"data": data, "eval": {"num_bootstrap": 20}})
    write_resolved(recipe, folder / "config.resolved.json", {"commit": "abc", "versions": {}})
    rows = [{"step": step, "reward/mean": 0.1 * step, "dropped/groups": 1.0} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [Prediction(clip.id, 4) for clip in clips if clip.split == "test"]
    write_predictions(folder / "predictions-000002.jsonl", held_out, load_task("counting"))


def test_enough_is_run() -> None:
    assert len(RUN) >= 25
    assert {why for _, why in NOT_RUN} == {
        why for shown in LINES if (why := reason_of(shown.words)) is not None
    }


@pytest.mark.parametrize("words", ORDERED, ids=shlex.join)
def test_a_command_ends_well(
    words: tuple[str, ...],
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    line = shortened(words)
    for again in ("data/sticks-line", "data/tiny-qwen3_vl"):
        if again in line or line == ["prepare", "tiny-model"]:
            shutil.rmtree(world / again, ignore_errors=True)
    try:
        code = main([*line, *(["--overwrite"] if takes_overwrite(line) else [])])
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    assert code in ALLOWED.get(line[0], (0,)), f"actrep {shlex.join(line)}\n{told.err[-2000:]}"


def takes_overwrite(line: list[str]) -> bool:
    """Whether another document writes the same file."""
    prepared = line[1] if line[0] == "prepare" else ""
    if line[0] == "count":
        return "--out" in line
    if line[0] in ("evaluate", "benchmark"):
        return "--resume" not in line
    return line[0] == "cot" or prepared in ("rcs-export", "verl", "recognition")
