"""The folder of a synthetic data set, rendered by several processes.

A second writer of the same folder waits for the first::

    OUT_DIR/dataset.json      settings and their fingerprint
    OUT_DIR/clips.jsonl       one line of `data_prep.schema` per clip
    OUT_DIR/tracks.jsonl      one line per clip: where the moving part is in every video frame
    OUT_DIR/videos/*.mp4
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.files import (
    DataError,
    read_jsonl,
    read_object,
    sync_folder,
    write_json,
    write_lines,
)
from data_prep.locks import locked
from data_prep.partial_files import remove_leftovers
from data_prep.processes import die_with
from data_prep.schema import SPLITS, Clip, write_clips
from data_prep.synthetic.clip import check_request, clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.synthetic.timeline import Track
from data_prep.video_writer import encode_mp4

# Raise it whenever the same (level, seed, split, index) would give another video or other labels.
RENDERER_VERSION = 1

_MAX_WAIT_S = 3600.0  # for another process that renders into the same folder
_CHUNK = 16  # clips that a worker renders between two progress reports

Row = tuple[Clip, str]


def write_dataset(
    out_dir: Path,
    *,
    level: str,
    num_clips: dict[str, int],
    seed: int,
    num_processes: int = 2,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render a data set; a finished one with the same settings is left as it is.

    A folder that an interrupted call left behind is completed. One written with other settings is
    refused, or written anew. One that holds a `clips.jsonl` of another origin is refused.

    Args:
        out_dir: The folder to write.
        level: A key of `LEVELS`.
        num_clips: Clips per split, for example `{"train": 600, "test": 200}`.
        seed: Clips depend on it, on the level, the split and their index, on nothing else.
        num_processes: Processes that render; the result does not depend on it.
        overwrite: Whether a data set of other settings gives way.
        progress: Called with (clips done, clips in all).

    Returns:
        The path of `clips.jsonl`.

    Raises:
        DataError: for an unknown level or split, a negative number, a folder that belongs to
            something else, or one that another process renders into for too long.
    """
    check_request(level, num_clips, seed, num_processes)
    out_dir = Path(out_dir)
    clips_path = out_dir / "clips.jsonl"
    settings = {
        "renderer_version": RENDERER_VERSION,
        "level": level,
        "seed": seed,
        "num_clips": {s: num_clips[s] for s in SPLITS if s in num_clips},
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    (out_dir / "videos").mkdir(parents=True, exist_ok=True)
    waits_for = "another process that renders into the folder"
    with locked(out_dir / ".lock", timeout_s=_MAX_WAIT_S, waits_for=waits_for):
        if not _prepare_folder(out_dir, settings | {"fingerprint": fingerprint}, overwrite):
            return clips_path
        jobs = [(s, i) for s in SPLITS for i in range(num_clips.get(s, 0))]
        rows = []
        for done in _render_all(out_dir, level, seed, jobs, num_processes):
            rows += done
            if progress:
                progress(len(rows), len(jobs))
        sync_folder(out_dir / "videos")
        write_lines(out_dir / "tracks.jsonl", (track for _, track in rows))
        write_clips(clips_path, (clip for clip, _ in rows))
    return clips_path


def read_tracks(path: Path) -> dict[str, Track]:
    """The tracks of a data set by clip id.

    Raises:
        DataError: naming the file and line of the first row that is no track.
    """
    tracks = {}
    for row in read_jsonl(path, "the tracks of a synthetic data set"):
        try:
            times, position, moving = (row.values[k] for k in ("times_s", "position", "moving"))
            tracks[row.values["id"]] = Track(
                np.array(times, float), np.array(position, float), np.array(moving, bool)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{row.where}: not the track of a clip ({error!r})") from error
    return tracks


def _prepare_folder(out_dir: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Make the folder ready for these settings; False if it is finished already."""
    about, clips = out_dir / "dataset.json", out_dir / "clips.jsonl"
    if clips.exists() and not about.exists():
        raise DataError(f"{clips}: exists without a dataset.json, expected a folder of our own")
    is_ours = about.exists() and read_object(about, "settings of a data set") == settings
    if is_ours and clips.exists():
        return False
    if clips.exists() and not is_ours and not overwrite:
        raise DataError(f"{out_dir}: {_settings_told(about, settings)}")
    clips.unlink(missing_ok=True)
    if not is_ours:
        for video in (out_dir / "videos").glob("*.mp4"):
            video.unlink()
        write_json(about, settings)
    remove_leftovers(out_dir / "videos", are_all_dead=True)  # we hold the lock
    return True


def _settings_told(about: Path, wanted: dict[str, Any]) -> str:
    found = read_object(about, "settings of a data set")
    told = [
        f"{key}={found.get(key)!r} and not {wanted[key]!r}"
        for key in wanted
        if key != "fingerprint" and found.get(key) != wanted[key]
    ]
    differ = ", ".join(told)
    return f"holds a data set with {differ}; give --overwrite, or another folder"


def _render_all(
    out_dir: Path, level: str, seed: int, jobs: list[tuple[str, int]], num_processes: int
) -> Iterator[list[Row]]:
    """Yield the rows of chunk after chunk, in the order of the jobs."""
    chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
    if num_processes == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield _render_chunk(out_dir, level, seed, chunk)
        return
    # spawn: the caller may hold threads (Ray, torch), which a forked child must not inherit
    with ProcessPoolExecutor(
        num_processes, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)
    ) as executor:
        waiting = iter(chunks)
        running = [
            executor.submit(_render_chunk, out_dir, level, seed, c)
            for c in islice(waiting, 2 * num_processes)
        ]
        try:
            while running:
                rows = running.pop(0).result()
                for chunk in islice(waiting, 1):
                    running.append(executor.submit(_render_chunk, out_dir, level, seed, chunk))
                yield rows
        finally:
            executor.shutdown(cancel_futures=True)


def _render_chunk(out_dir: Path, level: str, seed: int, jobs: list[tuple[str, int]]) -> list[Row]:
    cv2.setNumThreads(1)
    rows = []
    for split, index in jobs:
        spec = clip_spec(level, seed, split, index)
        path = out_dir / spec.clip.video
        if not path.exists() or not path.stat().st_size:  # emptied by a loss of power
            encode_mp4(path, draw_clip(spec), spec.fps)
        track = {
            "id": spec.clip.id,
            "times_s": [round(t, 4) for t in spec.track.times_s.tolist()],
            "position": [round(p, 4) for p in spec.track.position.tolist()],
            "moving": spec.track.is_moving.tolist(),
        }
        rows.append((spec.clip, json.dumps(track)))
    return rows
