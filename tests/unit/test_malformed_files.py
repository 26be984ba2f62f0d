"""Every reader of text files meets every malformation, and all of them tell it alike.

The right value, or one line "FILE:LINE: what is wrong". A reader that reports by row (validation,
converters) counts as one that raises what it reports.

A file here is two rows, or a document whose second line is the probe. Its `@TEXT` and `@NUMBER`
stand for the text of JSON, or of a cell; `@TWICE` for a key that is given twice.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actrep_ray.config import load_recipe
from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.run.checkpoint import Checkpoint, recipe_of
from actrep_ray.run.metrics import read_metrics
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
    keeps: dict[str, str | None]
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


def read_source(make: Callable[[list[Path]], Source], key: str) -> Callable[[Path], str | None]:
    def read(path: Path) -> str | None:
        for name in "ab":
            encode_mp4(path.with_name(f"{name}.mp4"), np.zeros((10, 32, 32, 3), np.uint8), 5)
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
        lambda p: read_predictions(p)[-1].text, {"surrogate": "\ud800"},  # as it was sampled
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
        {"vertical tab": "a\x0bb", "CR": TEXT}, JSON_ONLY,
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
    is_document = reader.template.startswith("{\n")
    expected: str | None
    if malformation in reader.keeps:
        expected = reader.keeps[malformation]
    elif malformation in READ or (malformation == "CR" and is_document):
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
