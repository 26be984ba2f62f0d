"""How often a clip is said to look unlike a training: one that does not, and one that does.

Each set is divided by chance into clips that stand for a training and others; of those, and of the
clips of every other set, the share that is taken for foreign, as a mean over such divisions.

    python benchmarks/looks.py NAME=clips.jsonl NAME=FOLDER_OF_VIDEOS ... [--clips 16 24 48]

    actrep prepare synthetic --level easy --train 100 --validation 0 --test 0 --seed 9 --out E
    python benchmarks/looks.py easy=E/clips.jsonl filmed=videos

The last line is one JSON object.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.looks import SLACK, Looks, look_of
from data_prep.schema import read_clips
from data_prep.video import clip_of_video, plan_frames

Array = NDArray[np.float64]
FRAMES = {
    "fps": 4.0,
    "min_frames": 4,
    "max_frames": 64,
    "min_pixels": 1024,
    "max_pixels": 1024,
    "factor": 32,
}
DIVISIONS = 20


def main() -> None:
    """Look at every clip once, then divide again and again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--clips", type=int, nargs="+", default=[16, 24, 48])
    args = parser.parse_args()
    sets = {name: looks(Path(path)) for name, _, path in (one.partition("=") for one in args.sets)}
    rng = np.random.default_rng(0)
    result = {}
    print("| trained on | clips | others of it |" + "".join(f" {name} |" for name in sets))
    print("|---|---|---|" + "---|" * len(sets))
    for name, rows in sets.items():
        for num in args.clips:
            if len(rows) < num + 8:
                continue
            shares = np.mean([divided(rng, rows, num, sets) for _ in range(DIVISIONS)], axis=0)
            found = dict(zip(("itself", *sets), shares.round(3).tolist(), strict=True))
            result[f"{name}/{num}"] = found
            told = [f"{found[other]:.2f}" if other != name else "" for other in sets]
            print(f"| {name} | {num} | {found['itself']:.3f} | " + " | ".join(told) + " |")
    print(json.dumps({"benchmark": "looks", "shares": result}))


def looks(path: Path) -> Array:
    """What each clip of a file of clips, or each video of a folder, looks like. [N, K]"""
    if path.is_dir():
        clips = [clip_of_video(one) for one in sorted(path.glob("*.mp4"))]
    else:
        clips = list(read_clips(path))
    return np.stack([look_of(plan_frames(clip, **FRAMES)) for clip in clips])  # type: ignore[arg-type]


def divided(rng: np.random.Generator, rows: Array, num: int, sets: dict[str, Array]) -> list[float]:
    """Shares taken for foreign: of the clips left over, and of each set."""
    order = rng.permutation(len(rows))
    training = Looks.of(list(rows[order[:num]]))
    return [
        float(np.mean([training.distance(row) > SLACK for row in some]))
        for some in (rows[order[num:]], *sets.values())
    ]


if __name__ == "__main__":
    main()
