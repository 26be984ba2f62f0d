"""What the periodicity detector makes of rendered clips of each level, and what a clip costs.

Test splits of `actrep prepare synthetic`: easy of seed 0, of which the quickstart's marked kind is,
medium and hard of seed 5. "Constant" answers the median of the counts of a train split.

    python benchmarks/periodicity_levels.py [--quick]

One clip after the other, each library with one thread; CPU seconds are those of this process and of
the one that decodes. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cpu import cpu_seconds

from actrep_ray.evaluation.predictions import Prediction, constant_predictions
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.periodicity.detector import agreement, detect_cycles
from data_prep.processes import one_thread_each
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.dataset import write_dataset
from data_prep.video.guard import end_processes

LEVELS = {"easy": (0, 2400, 240), "medium": (5, 160, 120), "hard": (5, 160, 120)}
"""Seed, clips of the train split, and of the test split."""


def main() -> None:
    """Render and count level by level, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--quick", action="store_true", help="8 clips a level")
    args = options.parse_args()
    cv2.setNumThreads(1)
    found = {}
    with one_thread_each():
        for level, (seed, num_train, num_test) in LEVELS.items():
            found[level] = measure(level, seed, num_train, 8 if args.quick else num_test)
            print(f"{level}: {found[level]}")
    print(json.dumps({"benchmark": "periodicity_levels", "quick": args.quick, "levels": found}))


def measure(level: str, seed: int, num_train: int, num_test: int) -> dict[str, Any]:
    """Figures of one level."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_dataset(Path(folder), level=level, num_clips={"test": num_test}, seed=seed)
        clips = list(read_clips(path))
        predictions, f1, cpu_s = count(clips)
    task = load_task("counting")
    labels = labels_of(clips, task)
    train = [clip_spec(level, seed, "train", i).clip.count for i in range(num_train)]
    constant = constant_predictions(labels, round(statistics.median(train)))
    scores = score_predictions(predictions, labels, task)
    right_zeros = [p.reading == 0 for p in predictions if labels[p.clip_id].count == 0]
    return {
        "num_clips": len(clips),
        **{key: [scores[key].value, scores[key].low, scores[key].high] for key in ("obo", "obz")},
        **{key: scores[key].value for key in ("mae", "rmse")},
        "obo_of_constant": score_predictions(constant, labels, task)["obo"].value,
        "zeros": len(right_zeros),
        "zeros_right": sum(right_zeros),
        "mean_s": float(np.mean([clip.duration_s for clip in clips])),
        "cycle_f1": f1,
        "cpu_s": cpu_s / len(clips),
    }


def count(clips: Sequence[Clip]) -> tuple[list[Prediction], float, float]:
    """What the detector says of each clip, mean F1 of its cycles, and CPU seconds of all."""
    began = cpu_seconds()
    seen = [(clip, detect_cycles(clip)) for clip in clips]
    end_processes()  # else the seconds of the one that decodes are not known
    used = cpu_seconds() - began
    f1 = np.mean([agreement(found.cycles, clip.cycles or ()) for clip, found in seen])
    return [Prediction(clip.id, found.reading) for clip, found in seen], float(f1), used


if __name__ == "__main__":
    main()
