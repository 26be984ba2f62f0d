"""What the confidence that `actrep count` tells is worth: results of `--out`, beside the truth.

    actrep count CLIPS --checkpoint DIR --samples 5 --out both.jsonl
    python benchmarks/count_confidence.py NAME=both.jsonl NAME=other.jsonl ... --data clips.jsonl

Of each file: the share of counts that are right, the mean confidence, the expected calibration
error (`actrep_ray.evaluation.confidence`), and what that error would be by chance alone, if counts
were right just as often as they are told to be. Of the first file: how often counts are right by
what confidence is made of, which is how many answers agree, whether the answer that is shown agrees
with itself, and what the detector says. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actrep_ray.evaluation.confidence import bins_of, calibration_error, reliability
from data_prep.files import DataError, read_jsonl
from data_prep.schema import read_clips

Record = Mapping[str, Any]
DRAWS = 1000


def main() -> None:
    """Read, compare, print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", metavar="NAME=FILE.jsonl")
    options.add_argument("--data", type=Path, required=True, help="JSONL of clips: the truth")
    args = options.parse_args()
    truth = {Path(clip.file).resolve(): clip.count for clip in read_clips(args.data)}
    named = [one.partition("=") for one in args.files]
    read = {name: read_counts(Path(path), truth) for name, _, path in named}
    found = {name: worth(*counts) for name, counts in read.items()}
    for name, one in found.items():
        print(f"{name}: {one}")
    first = shares(*next(iter(read.values())))
    print(json.dumps({"benchmark": "count_confidence", "files": found, "shares": first}))


def read_counts(path: Path, truth: Mapping[Path, int]) -> tuple[list[Record], list[bool]]:
    """The records of a file, and whether each count is right.

    Raises:
        DataError: for a failure, or a video that is no clip.
    """
    records: list[Record] = []
    is_right: list[bool] = []
    for row in read_jsonl(path, "the results of `actrep count`", allows_surrogates=True):
        video = Path(row.values["video"]).resolve()
        if "failure" in row.values or video not in truth:
            raise DataError(f"{row.where}: video={str(video)!r}, expected a count of a clip")
        records.append(row.values)
        is_right.append(row.values["count"] == truth[video])
    return records, is_right


def worth(records: Sequence[Record], is_right: Sequence[bool]) -> dict[str, Any]:
    """The calibration error with its bins."""
    told = np.array([record["confidence"] for record in records])
    found = reliability(told.tolist(), is_right, len(records[0]["answers"]))
    drawn = np.random.default_rng(0).random((DRAWS, len(told))) < told
    by_chance = [calibration_error(bins_of(told, one.astype(np.float64))) for one in drawn]
    bins = [[one.num_clips, round(one.confidence, 4), one.right.value] for one in found.bins]
    return {
        "num_clips": len(records),
        "right": float(np.mean(is_right)),
        "confidence": float(np.mean(told)),
        "error": found.error,
        "error_by_chance": float(np.mean(by_chance)),
        "bins": bins,
    }


def shares(records: Sequence[Record], is_right: Sequence[bool]) -> dict[str, Any]:
    """How often counts are right, by what confidence is made of."""
    made_of: dict[str, Callable[[Record], str]] = {
        "answers that say it": lambda one: (
            f"{one['answers'].count(one['count'])} of {len(one['answers'])}"
        ),
        "list, total and answer": lambda one: "agree" if one["consistent"] else "differ",
        "detector": _said_by_detector,
    }
    found: dict[str, dict[str, Any]] = {}
    for what, case_of in made_of.items():
        cases: dict[str, list[bool]] = {}
        for record, right in zip(records, is_right, strict=True):
            cases.setdefault(case_of(record), []).append(right)
        found[what] = {
            case: {"num_clips": len(rights), "right": float(np.mean(rights))}
            for case, rights in sorted(cases.items(), reverse=True)
        }
    return found


def _said_by_detector(record: Record) -> str:
    seen = record.get("cross_check")
    if seen is None or seen["verdict"] != "count":
        return "in doubt"
    return "counts the same" if seen["count"] == record["count"] else "counts something else"


if __name__ == "__main__":
    main()
