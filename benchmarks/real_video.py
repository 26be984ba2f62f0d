"""How well repetitions are counted in a folder of clips, by kind, and what the doubt is worth.

A folder holds the videos and either labels.csv or clips.jsonl (what `actrep prepare` writes).
Columns of labels.csv, by name:

    video      file, relative to the folder
    count      repetitions
    count_alt  another count that is right, too; may be missing or empty
    cycles     "0.5-2.3 3.3-5.3", seconds; may be missing or empty
    kind       what the clip is an example of; may be missing

The answers, side by side on the same clips:

    periodicity     the detector; "not sure" is wrong, unless it is one event (then 1)
    spectrum        length over the period of the strongest line of the power spectrum
    components      peaks of the first principal component
    constant        the median of the counts, and 0: what a number says that saw no video
    checkpoint      a model, if one is given

    python benchmarks/real_video.py --folder DIR [--split test] [--kinds once still]
    python benchmarks/real_video.py --folder DIR --render 50 --kinds once still --seed 7
    python benchmarks/real_video.py --quick            15 rendered clips, one of each kind

`--render` first makes the folder: so many clips of each kind of the level real-like.
The last line is one JSON object.
"""

import argparse
import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import detrend, find_peaks
from scipy.signal.windows import hann

from actrep_ray.evaluation.intervals import wilson_interval
from actrep_ray.evaluation.predictions import NOT_SURE, Prediction, constant_predictions
from actrep_ray.evaluation.scores import Figures, score_cells
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.files import DataError
from data_prep.periodicity.detector import agreement, detect_cycles
from data_prep.periodicity.features import features_of_grey, read_grey
from data_prep.periodicity.lattice import MAX_PERIOD_S, MIN_PERIOD_S
from data_prep.periodicity.verdict import NOT_SURE as IN_DOUBT
from data_prep.processes import one_thread_each
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.real_like import KINDS, kind_of
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video_writer import encode_mp4

FIGURES = ("obo", "obz", "mae")
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the confidence
ALL = "all"
SAID = ("exact", "one off", "too few", "too many", "not sure", "one event")


@dataclass(frozen=True)
class Labelled:
    """A clip, what it is an example of, and the counts that are right."""

    clip: Clip
    kind: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What is said of one clip by those who look at its pixels."""

    detector: Prediction
    verdict: str
    confidence: float
    spectrum: int
    components: int


def main() -> None:
    """Read or render the folder, let everybody count, print."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        if args.render:
            render(folder, args.render, args.kinds, args.seed)
        clips = [one for one in read_folder(folder, args.split) if one.kind in args.kinds]
        if not clips:
            raise SystemExit(f"{folder}: no clip of --split {args.split} is of {args.kinds}")
        seen = look_at([one.clip for one in clips], args.processes)
        answers = {
            "periodicity": [one.detector for one in seen],
            **of_components(clips, seen),
            **constants(clips),
        }
        if args.checkpoint:
            answers[f"checkpoint {args.checkpoint.name}"] = by_model(clips, args.checkpoint)
        report(clips, seen, answers)


def parse_arguments() -> argparse.Namespace:
    """The arguments, with every kind where none is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--split", default="test", help="of clips.jsonl")
    parser.add_argument("--kinds", nargs="+", default=None)
    parser.add_argument("--render", type=int, metavar="N", help="clips of a kind to make first")
    parser.add_argument("--seed", type=int, default=0, help="of --render")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if not args.quick and args.folder is None:
        parser.error("--folder DIR is missing")
    args.render = 1 if args.quick else args.render
    if args.render:
        args.kinds = args.kinds or list(KINDS)
        if unknown := set(args.kinds) - KINDS.keys():
            parser.error(
                f"--kinds {' '.join(sorted(unknown))}, expected some of {', '.join(KINDS)}"
            )
    args.kinds = args.kinds or _Everything()
    return args


class _Everything:
    """Holds whatever kind."""

    def __contains__(self, kind: object) -> bool:
        return True


# --- the clips


def render(folder: Path, num: int, kinds: Sequence[str], seed: int) -> None:
    """Render clips of the level real-like: the first `num` of each kind in its test split."""
    missing, clips, index = dict.fromkeys(kinds, num), [], 0
    while any(missing.values()):
        spec = clip_spec("real-like", seed, "test", index)
        index += 1
        kind = kind_of(spec.clip)
        if missing.get(kind):
            missing[kind] -= 1
            video = folder / spec.clip.video
            video.parent.mkdir(parents=True, exist_ok=True)
            encode_mp4(video, draw_clip(spec), spec.fps)
            clips.append(spec.clip)
    write_clips(folder / "clips.jsonl", clips)


def read_folder(folder: Path, split: str) -> list[Labelled]:
    """The clips of a folder.

    Raises:
        DataError: naming file, row and key of what cannot be used.
    """
    table = folder / "labels.csv"
    if table.exists():
        return list(_read_table(table))
    clips = read_clips(folder / "clips.jsonl", split=split)
    return [Labelled(clip, kind_of(clip), (clip.count,)) for clip in clips]


def _read_table(table: Path) -> Iterator[Labelled]:
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            where = f"{table}:{number}"
            if not row.get("video"):
                raise DataError(f"{where}: video={row.get('video')!r}, expected the name of a file")
            try:
                counts = tuple(int(row[k]) for k in ("count", "count_alt") if row.get(k))
                pairs = [span.split("-") for span in (row.get("cycles") or "").split()]
                cycles = tuple((float(start), float(end)) for start, end in pairs)
            except ValueError as error:
                expected = "expected integers, and cycles as '0.5-2.3 3.3-5.3'"
                raise DataError(f"{where}: {error}; {expected}") from error
            if not row.get("count"):
                raise DataError(f"{where}: count={row.get('count')!r}, expected an integer")
            clip = clip_of_video(table.parent / row["video"], action=row.get("action") or "unknown")
            clip = replace(clip, id=row["video"], count=counts[0], cycles=cycles or None)
            yield Labelled(clip, row.get("kind") or "", counts)


# --- the answers


def look_at(clips: Sequence[Clip], num_processes: int) -> list[Seen]:
    """What the detector and its simpler rivals say; labels are taken off first."""
    bare = [replace(clip, count=0, cycles=None, action="unknown") for clip in clips]
    context = get_context("spawn")
    with ProcessPoolExecutor(num_processes, context) as pool, one_thread_each():
        return list(pool.map(_look, bare, chunksize=2))


def _look(clip: Clip) -> Seen:
    cv2.setNumThreads(1)
    found = detect_cycles(clip)
    problem = NOT_SURE if found.reading is None else None
    detector = Prediction(clip.id, found.reading, cycles=found.cycles, problem=problem)
    grey, fps = read_grey(clip)
    features = features_of_grey(grey.astype(np.float32), fps)
    moves = float(features.values.std(axis=0).max()) > features.least_motion
    spectrum = _by_spectrum(features.values, fps) if moves else 0
    components = _by_component(features.values[:, 0], fps) if moves else 0
    return Seen(detector, found.verdict, found.confidence, spectrum, components)


def _by_spectrum(values: np.ndarray, fps: float) -> int:
    """Repetitions if all of the clip had the period of the strongest line. Values are [T, D]."""
    num = len(values)
    steady = detrend(values.astype(np.float64), axis=0) * hann(num, sym=False)[:, None]
    power = np.square(np.abs(np.fft.rfft(steady, 4 * num, axis=0))).sum(axis=1)
    frequencies = np.fft.rfftfreq(4 * num, 1.0 / fps)
    power[(frequencies < 1.0 / MAX_PERIOD_S) | (frequencies > 1.0 / MIN_PERIOD_S)] = 0.0
    return round(float(frequencies[power.argmax()]) * num / fps)


def _by_component(signal: np.ndarray, fps: float) -> int:
    """Peaks of a signal [T], a quarter of its range high."""
    smooth = gaussian_filter1d(signal, 0.1 * fps)
    apart = max(1, round(MIN_PERIOD_S * fps))
    return len(find_peaks(smooth, prominence=0.25 * float(np.ptp(smooth)), distance=apart)[0])


def of_components(clips: Sequence[Labelled], seen: Sequence[Seen]) -> dict[str, list[Prediction]]:
    """The rivals' answers."""
    pairs = [(one.clip.id, found) for one, found in zip(clips, seen, strict=True)]
    return {
        "spectrum": [Prediction(name, found.spectrum) for name, found in pairs],
        "components": [Prediction(name, found.components) for name, found in pairs],
    }


def constants(clips: Sequence[Labelled]) -> dict[str, list[Prediction]]:
    """The answers that look at no video."""
    median = round(float(np.median([one.clip.count for one in clips])))
    names = [one.clip.id for one in clips]
    return {f"constant {n}": constant_predictions(names, n) for n in sorted({0, median})}


def by_model(clips: Sequence[Labelled], checkpoint: Path) -> list[Prediction]:
    """The answers of a checkpoint, with the settings that it was trained with."""
    from actrep_ray.cli.inputs import check_model
    from actrep_ray.config import load_recipe, override
    from actrep_ray.evaluation.predictors import predict, with_whole_weights
    from actrep_ray.models.qwen_vl import QwenVLInputs
    from actrep_ray.rollout.worker import start_engine, with_own_device
    from actrep_ray.run.model_folder import recipe_of

    model = check_model(checkpoint)
    recipe = override(
        recipe_of(model) or load_recipe(None), [f"model.path={json.dumps(str(model))}"]
    )
    inputs = QwenVLInputs(model)
    engine = start_engine(with_own_device(with_whole_weights(recipe)), model)
    try:
        return predict([one.clip for one in clips], engine, inputs, recipe)
    finally:
        engine.shutdown()


# --- the tables


def report(
    clips: Sequence[Labelled], seen: Sequence[Seen], answers: dict[str, list[Prediction]]
) -> None:
    """Print everything; the JSON object is the last line."""
    kinds = {one.clip.id: one.kind for one in clips}
    rows: dict[str, dict[str, Figures]] = {}
    for name, predictions in answers.items():
        nearest = [_nearest(one, p) for one, p in zip(clips, predictions, strict=True)]
        task = load_task("counting")
        labels = labels_of(nearest, task)
        everything = dict.fromkeys(kinds, ALL)
        rows[name] = score_cells(predictions, labels, everything, task)
        if name == "periodicity" or name.startswith("checkpoint"):
            rows[name] |= score_cells(predictions, labels, kinds, task)
    print(f"| answers | kind | clips | {' | '.join(('OBO', 'exact', 'MAE'))} | cycle F1 |")
    print("|---|---|---|---|---|---|---|")
    record: dict[str, object] = {}
    for name, cells in rows.items():
        for kind, figures in sorted(cells.items(), key=lambda item: (item[0] != ALL, item[0])):
            f1 = _mean_f1(clips, answers[name], kind)
            told = " | ".join(
                f"{v.value:.3f} [{v.low:.2f}, {v.high:.2f}]"
                for v in map(figures.__getitem__, FIGURES)
            )
            shown = "–" if f1 is None else f"{f1:.3f}"
            print(f"| {name} | {kind} | {figures.num_clips} | {told} | {shown} |")
            record[f"{name}/{kind}"] = {
                "num_clips": figures.num_clips,
                "cycle_f1": f1,
                **{key: round(figures[key].value, 4) for key in FIGURES},
            }
    print(json.dumps(record | {"confusion": confusion(clips, seen), **calibration(clips, seen)}))


def _nearest(one: Labelled, prediction: Prediction) -> Clip:
    """The clip with the one of its right counts that an answer is nearest to."""
    reading = prediction.reading
    answered = reading if isinstance(reading, int) else one.counts[0]
    count = min(one.counts, key=lambda right: abs(right - answered))
    kept = one.clip.cycles if count == one.clip.count else None
    return replace(one.clip, count=count, cycles=kept)


def _mean_f1(
    clips: Sequence[Labelled], predictions: Sequence[Prediction], kind: str
) -> float | None:
    """Mean F1 of cycles that match one to one, over the clips that have marks."""
    scores = [
        agreement(p.cycles, one.clip.cycles)
        for one, p in zip(clips, predictions, strict=True)
        if one.clip.cycles and kind in (ALL, one.kind)
    ]
    has_cycles = any(p.cycles for p in predictions)
    return round(float(np.mean(scores)), 4) if scores and has_cycles else None


def confusion(clips: Sequence[Labelled], seen: Sequence[Seen]) -> dict[str, dict[str, int]]:
    """What the detector said of the clips of each kind; printed as a table, too."""
    table: dict[str, Counter[str]] = {}
    for one, found in zip(clips, seen, strict=True):
        reading = found.detector.reading
        error = 0 if reading is None else int(reading) - _nearest(one, found.detector).count
        if reading is None:
            said = "not sure"
        elif found.verdict == IN_DOUBT:
            said = "one event"
        elif abs(error) <= 1:
            said = "one off" if error else "exact"
        else:
            said = "too few" if error < 0 else "too many"
        table.setdefault(one.kind, Counter())[said] += 1
    print(f"\n| the detector says | {' | '.join(SAID)} |\n|---|{'---|' * len(SAID)}")
    for kind, counted in sorted(table.items()):
        print(f"| {kind} | {' | '.join(str(counted[column]) for column in SAID)} |")
    return {kind: dict(counted) for kind, counted in table.items()}


def calibration(clips: Sequence[Labelled], seen: Sequence[Seen]) -> dict[str, object]:
    """The reliability curve of the answers that are sure, and its expected calibration error."""
    sure = [
        (found.confidence, found.detector.reading in one.counts)
        for one, found in zip(clips, seen, strict=True)
        if found.verdict != IN_DOUBT
    ]
    repeats = [found for one, found in zip(clips, seen, strict=True) if max(one.counts) > 1]
    answered = sum(found.verdict != IN_DOUBT for found in repeats)
    false = sum(
        found.verdict == "count"
        for one, found in zip(clips, seen, strict=True)
        if max(one.counts) <= 1
    )
    print("\n| confidence | answers | mean | right |\n|---|---|---|---|")
    error = 0.0
    for low, high in pairwise(BINS):
        inside = [pair for pair in sure if low < pair[0] <= high or (not low and not pair[0])]
        if inside:
            mean, right = (float(np.mean(column)) for column in zip(*inside, strict=True))
            error += len(inside) / len(sure) * abs(mean - right)
            told = wilson_interval(sum(r for _, r in inside), len(inside))
            print(f"| {low:.1f} to {high:.1f} | {len(inside)} | {mean:.2f} | {told} |")
    exact = wilson_interval(sum(r for _, r in sure), len(sure)) if sure else None
    print(f"\nnot sure or one event: {len(seen) - len(sure)} of {len(seen)} clips")
    print(f"exact among the others: {exact}; expected calibration error {error:.3f}")
    print(f"of {len(repeats)} clips that repeat, {answered} have an answer that is sure")
    print(f"of {len(seen) - len(repeats)} that do not, {false} are given as repetitions")
    return {
        "ece": round(error, 4),
        "sure": len(sure),
        "exact_if_sure": None if exact is None else round(exact.value, 4),
        "answered_of_repeating": [answered, len(repeats)],
        "false_repetitions": [false, len(seen) - len(repeats)],
    }


if __name__ == "__main__":
    main()
