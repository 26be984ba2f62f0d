"""How fast annotation rows are converted, against reading and writing them and nothing else.

Makes a table of the shape of RepCount-A's (302 mark columns, 16 cycles a row on average) with a
video for every row, and converts it; each video is probed in a decoding process, whose time counts.
The baseline reads the same table with csv.DictReader and writes every row with json.dumps.

    python benchmarks/converters.py [--quick] [--rows 10000]

The last line is one JSON object: rows per second of processor time of the conversion with a probe
for every row, of the conversion when all rows are of one video, and of the baseline; their ratios;
microseconds for a probe, and how many of them the decoding process takes; and the seconds that
10,000 rows take, by the processor and by the clock (the bar is 20). What it takes to start and end
a decoding process, once, is left out.
"""

import argparse
import csv
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.converters.conversion import convert
from data_prep.converters.table import TableFormat, table
from data_prep.video.guard import end_processes, probe_guarded
from data_prep.video_writer import encode_mp4

FPS, NUM_FRAMES = 25, 250
COLUMNS = ["id", "type", "name", "count", *(f"L{i}" for i in range(1, 303))]
GOAL_ROWS, GOAL_S = 10_000, 20.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="2,000 rows")
    options.add_argument("--rows", type=int, default=10_000)
    args = options.parse_args()
    num_rows = 2_000 if args.quick else args.rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_videos(folder / "videos", num_rows)
        several = write_table(folder / "train.csv", num_rows, lambda i: f"{i}.mp4")
        one = write_table(folder / "one" / "train.csv", num_rows, lambda i: "0.mp4")
        probe_guarded(folder / "videos" / "0.mp4")
        start = timed(lambda: restart(folder / "videos" / "0.mp4"))
        baseline = timed(lambda: bare(several, folder / "bare.jsonl"))
        probes = timed(lambda: converted(several, folder / "videos", folder / "a", num_rows))
        probe_guarded(folder / "videos" / "0.mp4")  # is remembered: no process is needed
        rows = timed(lambda: converted(one, folder / "videos", folder / "b", num_rows))
    probes = probes.less(start)
    result = {
        "benchmark": "converters",
        "quick": args.quick,
        "rows": num_rows,
        "rows_per_s": round(num_rows / probes.cpu_s, 1),
        "rows_per_s_one_video": round(num_rows / rows.cpu_s, 1),
        "bare_rows_per_s": round(num_rows / baseline.cpu_s, 1),
        "ratio_to_bare": round(baseline.cpu_s / probes.cpu_s, 3),
        "ratio_to_bare_one_video": round(baseline.cpu_s / rows.cpu_s, 3),
        "probe_us": round(1e6 * (probes.cpu_s - rows.cpu_s) / num_rows, 1),
        "of_it_in_decoding_process_us": round(1e6 * probes.child_s / num_rows, 1),
        "cpu_s_for_10000_rows": round(GOAL_ROWS * probes.cpu_s / num_rows, 2),
        "wall_s_for_10000_rows": round(GOAL_ROWS * probes.wall_s / num_rows, 2),
        "goal_s": GOAL_S,
    }
    print(json.dumps(result))


def write_videos(folder: Path, number: int) -> None:
    """One video under as many names."""
    folder.mkdir()
    encode_mp4(folder / "0.mp4", np.zeros((NUM_FRAMES, 64, 64, 3), np.uint8), FPS)
    for i in range(1, number):
        os.link(folder / "0.mp4", folder / f"{i}.mp4")


def write_table(path: Path, number: int, name: Callable[[int], str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i in range(number):
            bounds = sorted(draw.sample(range(NUM_FRAMES), draw.randint(2, 32)))
            marks = [mark for pair in pairwise(bounds) for mark in pair]
            cells = [i, f"squat {i}", name(i), len(bounds) - 1, *marks]
            writer.writerow(cells + [""] * (len(COLUMNS) - len(cells)))
    return path


def bare(path: Path, out: Path) -> None:
    with path.open(newline="") as rows, out.open("w") as lines:
        for row in csv.DictReader(rows):
            lines.write(json.dumps(row) + "\n")


def converted(path: Path, videos: Path, out: Path, num_rows: int) -> None:
    layout = TableFormat(columns={"video": "name", "action": "type"}, marks="L", unit="frames")
    summary = convert(table([path], layout=layout), videos=videos, out=out)
    assert summary.num_written == num_rows, summary


def restart(video: Path) -> None:
    """What a conversion of one row of one video does with decoding processes."""
    os.utime(video)
    probe_guarded(video)


class Timing(NamedTuple):
    """Seconds: of processor time, those of decoding processes in it, and of the clock."""

    cpu_s: float
    child_s: float
    wall_s: float

    def less(self, other: "Timing") -> "Timing":
        """Without what the other took."""
        return Timing(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def timed(job: Callable[[], None]) -> Timing:
    """A job that begins without decoding processes and ends those that it started.

    Processor time holds on a busy machine; the clock's is longer there.
    """
    end_processes()
    wall, own, child = time.perf_counter(), time.process_time(), child_seconds()
    job()
    end_processes()  # until then their time is not told
    own, child = time.process_time() - own, child_seconds() - child
    return Timing(own + child, child, time.perf_counter() - wall)


def child_seconds() -> float:
    """Processor time of processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
