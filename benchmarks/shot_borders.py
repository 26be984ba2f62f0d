"""Borders between shots: what `find_shots` sees of those that are there, beside PySceneDetect.

Rendered real-like clips of each kind; a border is found if one is told within it or 0.3 s beside
it, and what is told elsewhere is false. PySceneDetect is no requirement of the project:

    pip install --no-deps --target DIR scenedetect
    PYTHONPATH=DIR python benchmarks/shot_borders.py [--clips 20] [--seed 21]

Its detectors have their default thresholds; "with fades" adds the one that looks for black. CPU
seconds are of all processes, decoding included. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
from cpu import cpu_seconds

from data_prep.periodicity.features import read_grey
from data_prep.periodicity.shots import find_shots
from data_prep.processes import one_thread_each
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.real_like import KINDS
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video.guard import end_processes
from data_prep.video_writer import encode_mp4

Borders = list[tuple[float, float]]
"""Start and end of each, seconds; a cut's are equal."""

BESIDE_S = 0.3
MOST_CLIPS = 20_000  # that are drawn until there are enough of each kind


@dataclass(frozen=True)
class Shown:
    """A clip, and the borders that were drawn into it."""

    path: Path
    kind: str
    borders: Borders


def main() -> None:
    """Render, look, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--clips", type=int, default=20, help="of each kind")
    options.add_argument("--seed", type=int, default=21)
    args = options.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, one_thread_each():
        shown = list(render(Path(folder), args.clips, args.seed))
        found = {name: measure(shown, look) for name, look in detectors().items()}
    print(f"{len(shown)} clips\n")
    print(table(found))
    print(json.dumps({"benchmark": "shot_borders", "clips": len(shown), "detectors": found}))


def render(folder: Path, num_each: int, seed: int) -> Iterator[Shown]:
    """As many clips of each kind."""
    left = dict.fromkeys(KINDS, num_each)
    for number in range(MOST_CLIPS):
        if not any(left.values()):
            return
        spec = clip_spec("real-like", seed, "train", number)
        assert spec.scene is not None
        if not left[spec.scene.kind]:
            continue
        left[spec.scene.kind] -= 1
        path = folder / f"{number}.mp4"
        encode_mp4(path, draw_clip(spec), spec.fps)
        yield Shown(path, spec.scene.kind, [(cut.start_s, cut.end_s) for cut in spec.scene.cuts])


# --- detectors


def detectors() -> dict[str, Callable[[Path], Borders]]:
    """By name; PySceneDetect's if it is there."""
    found: dict[str, Callable[[Path], Borders]] = {"find_shots": _ours}
    try:
        import scenedetect
    except ImportError:
        print("PySceneDetect is not installed: left out")
        return found
    content, adaptive = scenedetect.ContentDetector, scenedetect.AdaptiveDetector
    black, histogram = scenedetect.ThresholdDetector, scenedetect.HistogramDetector
    made: dict[str, tuple[Callable[[], Any], ...]] = {
        "ContentDetector": (content,),
        "ContentDetector with fades": (content, black),
        "AdaptiveDetector": (adaptive,),
        "AdaptiveDetector with fades": (adaptive, black),
        "HistogramDetector": (histogram,),
    }

    def theirs(makers: tuple[Callable[[], Any], ...], path: Path) -> Borders:
        manager = scenedetect.SceneManager()
        for make in makers:
            manager.add_detector(make())
        manager.detect_scenes(scenedetect.open_video(str(path)))
        starts = [start.seconds for start, _ in manager.get_scene_list()][1:]
        return [(start, start) for start in starts]

    return found | {name: partial(theirs, makers) for name, makers in made.items()}


def _ours(path: Path) -> Borders:
    grey, fps = read_grey(clip_of_video(path))
    shots = find_shots(grey, fps)
    return [(a[1] / fps, b[0] / fps) for a, b in pairwise(shots)]


# --- figures


def measure(shown: list[Shown], look: Callable[[Path], Borders]) -> dict[str, Any]:
    """Borders that are there, those found and the false ones, by kind, and CPU seconds a clip."""
    counted = {kind: {"there": 0, "found": 0, "false": 0} for kind in KINDS}
    began = cpu_seconds()
    for one in shown:
        told = look(one.path)
        of_kind = counted[one.kind]
        of_kind["there"] += len(one.borders)
        of_kind["found"] += sum(any(is_of(a, b) for b in told) for a in one.borders)
        of_kind["false"] += sum(not any(is_of(a, b) for a in one.borders) for b in told)
    end_processes()
    return {"cpu_s": (cpu_seconds() - began) / len(shown), "kinds": counted}


def is_of(border: tuple[float, float], told: tuple[float, float]) -> bool:
    """Whether what is told lies within a border, or beside it by no more than is allowed."""
    return told[0] <= border[1] + BESIDE_S and told[1] >= border[0] - BESIDE_S


def table(found: dict[str, dict[str, Any]]) -> str:
    """Found of those that are there, and false ones, in clips with and without shots."""
    with_shots = ("cuts", "fade", "black")
    lines = ["| | cuts | fades | black | false there | false in other kinds | CPU s a clip |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        kinds = one["kinds"]
        cells = [f"{kinds[kind]['found']} of {kinds[kind]['there']}" for kind in with_shots]
        false = sum(kinds[kind]["false"] for kind in with_shots)
        others = sum(counted["false"] for kind, counted in kinds.items() if kind not in with_shots)
        lines.append(f"| {name} | {' | '.join(cells)} | {false} | {others} | {one['cpu_s']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
