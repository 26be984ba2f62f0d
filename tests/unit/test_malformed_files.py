"""Every reader of text files meets every malformation, and all of them tell it alike.

The right value, or one line "FILE:LINE: what is wrong". A reader that reports by row (validation,
converters) counts as one that raises what it reports.

A file here is two rows, or a document whose second line is the probe. Its `@TEXT` and `@NUMBER`
stand for the text of JSON, or of a cell; `@TWICE` for a key that is given twice.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, load_recipe
from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.models.published import find_config
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.model_folder import recipe_of
from actrep_ray.tasks.loading import load_task
from data_prep.converters.actrep import actrep
from data_prep.converters.annotation import Source
from data_prep.converters.conversion import convert
from data_prep.converters.ovr import ovr
from data_prep.converters.table import table
from data_prep.cot import read_answers
from data_prep.files import DataError
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import read_tracks
from data_prep.teachers.journal import Journal
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.view import View
from data_prep.video_writer import encode_mp4

pytestmark = pytest.mark.lengthy

TASK = load_task("counting")
CLIP = Clip("a", "d", "train", "a.mp4", 0.0, 4.0, 10.0, 40, 8, 8, "squat", 3)
VIEW = View(
    fps=4.0,
    min_frames=4,
    max_frames=256,
    min_pixels=1024,
    max_pixels=4096,
    factor=32,
    frames_per_patch=2,
    max_visual_tokens=100,
)
TEXT, NUMBER = "plain", 7


@dataclass(frozen=True)
class Reader:
    """One reader of the product.

    Attributes:
        name: For the test's id.
        file: Name of its file.
        template: The file, two lines at least, the second with the probes.
        read: Gives the text where `@TEXT` stood, or None if its line was left out.
        keeps: Malformations that it reads on purpose, with what it gives.
        misses: Malformations that its format does not have.
    """

    name: str
    file: str
    template: str
    read: Callable[[Path], str | None]
    keeps: Mapping[str, str | None]
    misses: tuple[str, ...] = ()


def clip_lines() -> str:
    first = CLIP.to_json()
    second = (
        first.replace('{"id": "a"', '{@TWICE"id": "b"')
        .replace('"squat"', "@TEXT")
        .replace("40", "@NUMBER0")
    )
    return f"{first}\n{second}\n"


def read_validated(path: Path) -> str | None:
    report = validate_file(path, VIEW, Decoding(1, 60.0, is_on=False))
    for finding in report.findings:
        if finding.level == "error" and finding.kind != "missing_video":
            raise DataError(f"{path}:{finding.row}: {finding.message}")
    return list(read_clips(path))[-1].action  # validation gives no clips


def read_journal(path: Path) -> str | None:
    with Journal(path) as journal:
        row = journal.get("b")
    return None if row is None else row["text"]


def write_videos(folder: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode_mp4(folder / name, np.zeros((10, 32, 32, 3), np.uint8), 5)


def read_source(make: Callable[[list[Path]], Source], key: str) -> Callable[[Path], str | None]:
    def read(path: Path) -> str | None:
        write_videos(path.parent)
        convert(make([path]), videos=path.parent, out=path.parent / "out")
        for line in (path.parent / "out" / "rejected.jsonl").read_text().splitlines():
            row = json.loads(line)
            raise DataError(f"{path}:{row['row']}: {row['detail']}")
        return str(list(make([path]).records)[-1].values[key])

    return read


def read_zero(path: Path) -> str | None:
    recipe = load_recipe(
        None, ["learner.strategy=deepspeed", f"learner.deepspeed_config={path}", "stage=grpo"]
    )
    check_deepspeed(recipe)
    return TEXT


def read_driver_state(path: Path) -> str | None:
    path.parent.mkdir(exist_ok=True)
    state = Checkpoint(path.parent.parent, 1).driver_state()
    return str(state["note"])


def read_checkpoint_recipe(path: Path) -> str | None:
    recipe = recipe_of(path.parent)
    if recipe is None:
        raise DataError(f"{path}: no such file")
    return recipe.data.path


ROWS = '{"id": "a", "text": "x"}\n{@TWICE"id": "b", "text": @TEXT, "n": @NUMBER}\n'
TRACK = '{"id": "a", "times_s": [0], "position": [0], "moving": [0]}\n'
OVR = '"start_time": 0, "end_time": 1, "split": "train"'
JSON_ONLY = ("surrogate", "twice", "nested")
READERS = [
    Reader("clips", "clips.jsonl", clip_lines(), lambda p: list(read_clips(p))[-1].action, {}),
    Reader("validation", "clips.jsonl", clip_lines(), read_validated, {}),
    Reader("answers", "cot.jsonl", ROWS, lambda p: list(read_answers(p).values())[-1], {}),
    Reader(
        "journal", "calls.jsonl", ROWS.replace('"id"', '"key"'), read_journal,
        {"cut": None, "absent": None},  # a killed run goes on; a first run begins
    ),
    Reader(
        "predictions", "predictions.jsonl",
        '{"clip_id": "a", "count": 1}\n{@TWICE"clip_id": "b", "text": @TEXT, "count": @NUMBER}\n',
        lambda p: read_predictions(p, TASK)[-1].text, {"surrogate": "\ud800"},  # as it was sampled
    ),
    Reader(
        "metrics", "metrics.jsonl", '{"step": 1}\n{@TWICE"step": 2, "a": @TEXT, "b": @NUMBER}\n',
        lambda p: read_metrics(p)[-1].get("a"), {"cut": None},  # a killed run can be looked at
    ),
    Reader(
        "tracks", "tracks.jsonl",
        TRACK + '{@TWICE"id": @TEXT, "times_s": [0], "position": [@NUMBER], "moving": [1]}\n',
        lambda p: list(read_tracks(p))[-1], {},
    ),
    Reader(
        "actrep jsonl", "a.jsonl", '{"video_id": "a", "split": "test", "count": 2}\n'
        '{@TWICE"video_id": "b", "split": "test", "count": @NUMBER, "action": @TEXT}\n',
        read_source(actrep, "action"), {},
    ),
    Reader(
        "ovr json", "a.json",
        f'[{{"video_id": "a", "ovr_annotations": [{{"count": 2, {OVR}, "description": "x"}}]}},\n'
        f'{{@TWICE"video_id": "b", "ovr_annotations": [{{"count": @NUMBER, {OVR}, '
        '"description": @TEXT}]}]\n',
        read_source(ovr, "description"), {"CR": TEXT},
    ),
    Reader(
        "table", "a.csv", "video,count,action\nb.mp4,@NUMBER,@TEXT\n",
        read_source(lambda paths: table(paths, split="test"), "action"),
        {"vertical tab": "a\x0bb", "CR": TEXT, "UTF-16": TEXT}, JSON_ONLY,
    ),
    Reader("deepspeed", "zero.json", '{\n @TWICE"note": @TEXT, "n": @NUMBER\n}\n', read_zero, {}),
    Reader(
        "driver state", "training/driver.json", '{\n @TWICE"note": @TEXT, "n": @NUMBER\n}\n',
        read_driver_state,
        {"surrogate": "\ud800"} | dict.fromkeys(
            ("NaN", "Infinity", "1e400", "10^400"), TEXT),  # what a run had in hand
    ),
    Reader(
        "recipe of a checkpoint", "recipe.json",
        '{\n @TWICE"data": {"path": @TEXT}, "seed": @NUMBER\n}\n',
        read_checkpoint_recipe, {},
    ),
    Reader(
        "recipe", "recipe.yaml",
        '{\n @TWICE"data": {"path": @TEXT}, "seed": @NUMBER\n}\n',
        lambda p: load_recipe(p).data.path, {},
        # YAML writes numbers in another way, and a tab is no white space.
        misses=("NaN", "Infinity", "1e400", "blank lines"),
    ),
    Reader(
        "model", "config.json",
        '{\n @TWICE"model_type": "qwen3_vl", "note": @TEXT, "n": @NUMBER\n}\n',
        lambda p: str(find_config(str(p.parent))[1]["note"]), {},
        misses=("folder", "absent"),  # then the name of a published one is looked for
    ),
]  # fmt: skip

# (text, number) of the probe, as they stand in the file.
PROBES = {
    "good": ('"plain"', "7"),
    "separators": ('"a\u2028b\x85c"', "7"),
    "vertical tab": ('"a\x0bb"', "7"),
    "surrogate": ('"\\ud800"', "7"),
    "NaN": ('"plain"', "NaN"),
    "Infinity": ('"plain"', "-Infinity"),
    "1e400": ('"plain"', "1e400"),
    "10^400": ('"plain"', "1" + "0" * 400),
    "5000 digits": ('"plain"', "9" * 5000),
    "twice": ('"plain"', "7"),
    "nested": ("[" * 100_000, "7"),
}
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "BOM": lambda good: b"\xef\xbb\xbf" + good,
    "blank lines": lambda good: good.replace(b"\n", b"\n \t\n", 1) + b"\n\n",
    "CRLF": lambda good: good.replace(b"\n", b"\r\n"),
    "CR": lambda good: good.replace(b"\n", b"\r"),
    "no end": lambda good: good.rstrip(b"\n"),
    "0xff": lambda good: good.replace(b"plain", b"pl\xffin"),
    "cut": lambda good: good[: good.rindex(b"plain") + 2] if b'"' in good else good[:-8],
    "UTF-16": lambda good: good.decode().encode("utf-16"),
}
READ = ("good", "BOM", "blank lines", "CRLF", "no end", "separators")
MALFORMATIONS = [*PROBES, *CONTENTS, "folder", "absent"]


def content_of(reader: Reader, malformation: str) -> bytes:
    text, number = PROBES.get(malformation, PROBES["good"])
    text = text.strip('"') if reader.file.endswith(".csv") else text
    twice = '"twice": 1, "twice": 2, ' if malformation == "twice" else ""
    filled = reader.template.replace("@TWICE", twice).replace("@TEXT", text)
    return CONTENTS.get(malformation, bytes)(filled.replace("@NUMBER", number).encode())


def prepare(reader: Reader, malformation: str, folder: Path) -> Path:
    path = folder / reader.file
    path.parent.mkdir(exist_ok=True)
    if malformation == "folder":
        path.mkdir()
    elif malformation != "absent":
        path.write_bytes(content_of(reader, malformation))
    return path


CASES = [
    pytest.param(reader, malformation, id=f"{reader.name}: {malformation}")
    for reader in READERS
    for malformation in MALFORMATIONS
    if malformation not in reader.misses
]


@pytest.mark.parametrize(("reader", "malformation"), CASES)
def test_the_right_value_or_one_line(
    reader: Reader, malformation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = prepare(reader, malformation, tmp_path)
    read = {*READ, *(("CR",) if reader.template.startswith("{\n") else ())}
    expected: str | None
    if malformation in reader.keeps:
        expected = reader.keeps[malformation]
    elif malformation in read:
        has_separators = malformation == "separators" and reader.read is not read_zero
        expected = "a\u2028b\x85c" if has_separators else TEXT
    else:
        with pytest.raises(ValueError) as raised:
            reader.read(path)
        message = str(raised.value)
        assert "\n" not in message
        assert path.name in message
        if malformation in ("folder", "absent", "UTF-16"):
            return
        line = 1 if malformation == "CR" else 2
        assert f"{path.name}:{line}: " in message
        return
    with caplog.at_level(logging.WARNING):
        assert reader.read(path) == expected
    if malformation == "cut":  # what is left out is said
        assert any(f"{path.name}:2: " in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner:\n  lr: .nan", r":2: \.nan, expected a finite number"),
        ("learner:\n  lr: -.inf", r":2: -\.inf, expected a finite number"),
        ("learner:\n  lr: 1.0e+400", r":2: 1\.0e\+400, expected a finite number"),
        ("seed: 1\nseed: 2", ":2: key 'seed' is given twice"),
        ("learner:\n  lr: 1.0e-6\n\n  lr: 1.0e-5", ":4: key 'lr' is given twice"),
        ("# a note\u2028x: 3\nseed: 1\nseed: 2", ":3: key 'seed' is given twice"),
        ("name: a\nseed: [", ":2: not YAML"),
        ("name: a\nseed: 2024-13-45", ":2: not YAML"),
    ],
)
def test_a_recipe_is_read_strictly(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine\.yaml{message}"):
        load_recipe(path)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "clips": lambda path: ["cot", str(path), "--out", str(path.with_name("out.jsonl"))],
    "table": lambda path: ["prepare", "csv", str(path), "--split", "test", *to_out(path)],
    "ovr json": lambda path: ["prepare", "ovr", str(path), *to_out(path)],
    "recipe": lambda path: ["check", str(path)],
    "deepspeed": lambda path: ["check", str(of_deepspeed(path))],
}


def to_out(path: Path) -> list[str]:
    write_videos(path.parent)
    return ["--videos", str(path.parent), "--out", str(path.with_name("out"))]


def of_deepspeed(path: Path) -> Path:
    recipe = path.with_name("mine.yaml")
    recipe.write_text(f"learner: {{strategy: deepspeed, deepspeed_config: {path}}}\n")
    return recipe


@pytest.mark.parametrize("malformation", ["0xff", "surrogate", "twice", "cut", "folder", "absent"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_shows_one_line_and_ends_with_2(
    name: str, malformation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (reader,) = (reader for reader in READERS if reader.name == name)
    if malformation in reader.misses:
        pytest.skip("the format has no such malformation")
    path = prepare(reader, malformation, tmp_path)
    code = main(COMMANDS[name](path))
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    rejected = tmp_path / "out" / "rejected.jsonl"
    if rejected.exists():  # a row of a foreign set costs no other row
        assert '"row": 2' in rejected.read_text()
        assert code == (0 if (tmp_path / "out" / "clips.jsonl").stat().st_size else 1)
        return
    assert code == 2
    assert shown.startswith("actrep: ")
    assert shown.count("\n") == 1
    assert path.name in shown
