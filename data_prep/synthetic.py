"""Synthetic repetition videos: H.264 files with exact cycle marks and motion tracks.

Owns the timeline of a clip (lead-in, cycles of varying speed, pauses, lead-out), the five motions,
the drawing at the levels easy, medium and hard, and the folder that `write_dataset` makes::

    OUT_DIR/dataset.json      settings and their fingerprint
    OUT_DIR/clips.jsonl       one line of `data_prep.schema` per clip
    OUT_DIR/tracks.jsonl      one line per clip: where the moving part is in every video frame
    OUT_DIR/videos/*.mp4

A timeline of three cycles with one pause (position 0 is the rest pose, 1 the furthest point)::

    1 |        /\\      /\\                 /\\
      |       /  \\    /  \\               /  \\
    0 |______/    \\__/    \\_____________/    \\_______
        lead-in  cycle  cycle   pause    cycle  lead-out

Everything about a clip follows from (level, seed, split, index) alone. Rewards and models never
read the tracks; they describe motion, not counts.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.processes import die_with
from data_prep.schema import SPLITS, Clip, Cycle, write_clips

# Raise it whenever the same (level, seed, split, index) would give another video or other labels.
RENDERER_VERSION = 1

Frames = NDArray[np.uint8]  # [T, H, W, 3] RGB
Image = NDArray[np.uint8]  # [H, W, 3] RGB
Colour = tuple[int, int, int]
Point = tuple[float, float]

_LEAD_S = 0.3  # shortest lead-in and lead-out
_DURATION_STEP_S = 0.5
_PAUSE_S = (0.4, 1.5)
_CHUNK = 16  # clips that a worker renders between two progress reports


@dataclass(frozen=True)
class Level:
    """What a level draws from. Ranges are (lowest, highest), lengths are in pixels or seconds."""

    frame_rates: tuple[int, ...]
    sizes: tuple[int, ...]
    duration_s: tuple[float, float]
    period_s: tuple[float, float]
    max_count: int
    count_spread: float  # sigma of the log-normal that shapes the counts
    tempo_factor: float  # a cycle's pace stays within base / factor ... base * factor
    pause_probability: float
    noise: tuple[int, int]  # peak of the uniform pixel noise, grey values
    lighting: float  # peak relative change of brightness
    jitter: float  # standard deviation of the camera's shift, fraction of the frame
    num_distractors: tuple[int, int]
    num_bars: tuple[int, int]  # bars in front of the figure


LEVELS = {
    "easy": Level(
        frame_rates=(12, 15),
        sizes=(64,),
        duration_s=(6.0, 12.0),
        period_s=(0.8, 2.4),
        max_count=12,
        count_spread=0.85,
        tempo_factor=1.25,
        pause_probability=0.05,
        noise=(2, 4),
        lighting=0.0,
        jitter=0.0,
        num_distractors=(0, 0),
        num_bars=(0, 0),
    ),
    "medium": Level(
        frame_rates=(12, 15),
        sizes=(64, 80),
        duration_s=(6.0, 16.0),
        period_s=(0.8, 2.6),
        max_count=16,
        count_spread=0.9,
        tempo_factor=1.5,
        pause_probability=0.10,
        noise=(6, 12),
        lighting=0.2,
        jitter=0.008,
        num_distractors=(1, 3),
        num_bars=(0, 0),
    ),
    "hard": Level(
        frame_rates=(24, 30),
        sizes=(64, 80, 96),
        duration_s=(6.0, 20.0),
        period_s=(0.7, 2.8),
        max_count=24,
        count_spread=1.0,
        tempo_factor=2.0,
        pause_probability=0.18,
        noise=(12, 22),
        lighting=0.35,
        jitter=0.018,
        num_distractors=(2, 5),
        num_bars=(1, 2),
    ),
}

_ZERO_PROBABILITY = 0.05
_COUNT_MODE = 3


@dataclass(frozen=True)
class Track:
    """Where the moving part is in every video frame; all arrays have shape [T].

    Attributes:
        times_s: Time of each frame, seconds from the start of the clip.
        position: 0 at the rest pose, 1 at the furthest point; for `arm_rotation` the angle as a
            fraction of a turn.
        is_moving: False in lead-in, pauses and lead-out.
    """

    times_s: NDArray[np.float64]
    position: NDArray[np.float64]
    is_moving: NDArray[np.bool_]


@dataclass(frozen=True)
class Timeline:
    """What moves when, without any pixels.

    Attributes:
        action: A key of `MOTIONS`.
        duration_s: Length of the clip.
        cycles: (start, end) in seconds, rounded to milliseconds; neighbours share their boundary
            unless a pause lies between.
        one_way: For a clip without cycles that moves all the same: (start, end, position reached);
            the part stays there.
    """

    action: str
    duration_s: float
    cycles: tuple[Cycle, ...]
    one_way: tuple[float, float, float] | None = None

    def track_at(self, times_s: NDArray[np.float64]) -> Track:
        """The exact track at any times [T], seconds."""
        position = np.zeros(len(times_s))
        is_moving = np.zeros(len(times_s), dtype=bool)
        if self.cycles:
            starts, ends = np.array(self.cycles).T
            cycle = np.maximum(np.searchsorted(starts, times_s, side="right") - 1, 0)
            phase = (times_s - starts[cycle]) / (ends[cycle] - starts[cycle])
            is_moving = (phase >= 0) & (phase < 1)
            position[is_moving] = MOTIONS[self.action].profile(phase[is_moving])
        elif self.one_way:
            start, end, reached = self.one_way
            phase = np.clip((times_s - start) / (end - start), 0.0, 1.0)
            position = reached * (0.5 - 0.5 * np.cos(np.pi * phase))
            is_moving = (phase > 0) & (phase < 1)
        return Track(times_s, position, is_moving)


@dataclass(frozen=True)
class SyntheticClip:
    """One rendered clip.

    Attributes:
        frames: RGB, uint8 [T, H, W, 3].
        fps: Frames per second.
        clip: The canonical line; `clip.video` is relative to the data set's folder.
        timeline: Action and cycles, exact at any time.
        track: The track at the times of the frames.
    """

    frames: Frames
    fps: int
    clip: Clip
    timeline: Timeline
    track: Track

    @property
    def action(self) -> str:
        """Name of the motion."""
        return self.timeline.action

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        """(start, end) of each repetition, seconds."""
        return self.timeline.cycles


def write_dataset(
    out_dir: Path,
    *,
    level: str,
    num_clips: dict[str, int],
    seed: int,
    num_processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render a data set; a finished one with the same settings is left as it is.

    A folder that an interrupted call left behind is completed. One written with other settings is
    written anew. One that holds a `clips.jsonl` of another origin is refused.

    Args:
        out_dir: The folder to write.
        level: A key of `LEVELS`.
        num_clips: Clips per split, for example `{"train": 600, "test": 200}`.
        seed: Clips depend on it, on the level, the split and their index, on nothing else.
        num_processes: Processes that render; the result does not depend on it.
        progress: Called with (clips done, clips in all).

    Returns:
        The path of `clips.jsonl`.

    Raises:
        ValueError: for an unknown level or split, a negative number, or a folder that belongs to
            something else.
    """
    _check_request(level, num_clips, seed, num_processes)
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
    with _only_writer(out_dir):
        if not _prepare_folder(out_dir, settings | {"fingerprint": fingerprint}):
            return clips_path
        jobs = [(s, i) for s in SPLITS for i in range(num_clips.get(s, 0))]
        rows = []
        for done in _render_all(out_dir, level, seed, jobs, num_processes):
            rows += done
            if progress:
                progress(len(rows), len(jobs))
        _write_atomic(out_dir / "tracks.jsonl", "".join(track + "\n" for _, track in rows).encode())
        write_clips(clips_path, (clip for clip, _ in rows))
    return clips_path


def render_clip(level: str, seed: int, split: str, index: int) -> SyntheticClip:
    """Draw one clip; a pure function of its arguments."""
    plan = plan_clip(level, seed, split, index)
    return SyntheticClip(_draw_clip(plan), plan.fps, plan.clip, plan.timeline, plan.track)


def encode_mp4(path: Path, frames: Frames, fps: int) -> None:
    """Write frames [T, H, W, 3] as H.264, atomically; equal input gives equal bytes.

    One thread and closed groups of pictures, so that any decoder can seek exactly.
    """
    height, width = frames.shape[1:3]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    options = {
        "preset": "ultrafast",
        "crf": "20",
        "x264-params": "keyint=48:scenecut=0:open-gop=0:threads=1",
    }
    try:
        with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in frames:
                planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tracks(path: Path) -> dict[str, Track]:
    """The tracks of a data set by clip id."""
    tracks = {}
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            tracks[row["id"]] = Track(
                np.array(row["times_s"]), np.array(row["position"]), np.array(row["moving"], bool)
            )
    return tracks


def count_weights(level: str) -> NDArray[np.float64]:
    """Probability of each count 0 .. max_count, [max_count + 1].

    A log-normal with its mode at 3 cut at the level's largest count: the long tail of RepCount-A's
    training split (bins 1-5 / 6-10 / 11-20 / 21-40 / 41+ hold 238 / 175 / 154 / 150 / 40 videos),
    scaled to what short clips can hold.
    """
    spec = LEVELS[level]
    counts = np.arange(1, spec.max_count + 1)
    centre = math.log(_COUNT_MODE) + spec.count_spread**2
    shape = np.exp(-((np.log(counts) - centre) ** 2) / (2 * spec.count_spread**2)) / counts
    return np.concatenate([[_ZERO_PROBABILITY], (1 - _ZERO_PROBABILITY) * shape / shape.sum()])


# --- the data set's folder -----------------------------------------------------------------------


def _check_request(level: str, num_clips: dict[str, int], seed: int, num_processes: int) -> None:
    if level not in LEVELS:
        raise ValueError(f"level={level!r}, expected one of {', '.join(LEVELS)}")
    if seed < 0:
        raise ValueError(f"seed={seed}, expected an integer of at least 0")
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes}, expected at least 1")
    for split, number in num_clips.items():
        if split not in SPLITS:
            raise ValueError(f"num_clips: split {split!r}, expected one of {', '.join(SPLITS)}")
        if number < 0:
            raise ValueError(f"num_clips[{split!r}]={number}, expected at least 0")
    if not sum(num_clips.values()):
        raise ValueError(f"num_clips={num_clips}, expected at least one clip")


@contextmanager
def _only_writer(out_dir: Path) -> Iterator[None]:
    """Let a second writer of the same folder wait for the first."""
    with (out_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare_folder(out_dir: Path, settings: dict[str, Any]) -> bool:
    """Make the folder ready for these settings; False if it is finished already."""
    about, clips = out_dir / "dataset.json", out_dir / "clips.jsonl"
    if clips.exists() and not about.exists():
        raise ValueError(f"{clips}: exists without a dataset.json, expected a folder of our own")
    is_ours = about.exists() and json.loads(about.read_bytes()) == settings
    if is_ours and clips.exists():
        return False
    clips.unlink(missing_ok=True)
    if not is_ours:
        for video in (out_dir / "videos").glob("*.mp4"):
            video.unlink()
        _write_atomic(about, (json.dumps(settings, indent=2) + "\n").encode())
    for leftover in (out_dir / "videos").glob(".*.partial"):
        leftover.unlink()
    return True


def _write_atomic(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


Row = tuple[Clip, str]


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
    ) as pool:
        waiting = iter(chunks)
        running = [
            pool.submit(_render_chunk, out_dir, level, seed, c)
            for c in islice(waiting, 2 * num_processes)
        ]
        try:
            while running:
                rows = running.pop(0).result()
                for chunk in islice(waiting, 1):
                    running.append(pool.submit(_render_chunk, out_dir, level, seed, chunk))
                yield rows
        finally:
            pool.shutdown(cancel_futures=True)


def _render_chunk(out_dir: Path, level: str, seed: int, jobs: list[tuple[str, int]]) -> list[Row]:
    cv2.setNumThreads(1)
    rows = []
    for split, index in jobs:
        plan = plan_clip(level, seed, split, index)
        path = out_dir / plan.clip.video
        if not path.exists():
            encode_mp4(path, _draw_clip(plan), plan.fps)
        track = {
            "id": plan.clip.id,
            "times_s": [round(t, 4) for t in plan.track.times_s.tolist()],
            "position": [round(p, 4) for p in plan.track.position.tolist()],
            "moving": plan.track.is_moving.tolist(),
        }
        rows.append((plan.clip, json.dumps(track)))
    return rows


# --- the timeline --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipPlan:
    """A clip before it is drawn: all labels, no pixels.

    Attributes:
        level: What the clip was drawn from.
        fps: Frames per second.
        clip: The canonical line.
        timeline: Action and cycles.
        track: The track at the times of the frames.
        look_seed: Seeds colours, scenery, light, camera and noise.
    """

    level: Level
    fps: int
    clip: Clip
    timeline: Timeline
    track: Track
    look_seed: np.random.SeedSequence


def plan_clip(level: str, seed: int, split: str, index: int) -> ClipPlan:
    """The labels of one clip, a thousand times cheaper than `render_clip` and equal to its."""
    _check_request(level, {split: index + 1}, seed, 1)
    spec = LEVELS[level]
    entropy = (seed, list(LEVELS).index(level), SPLITS.index(split), index)
    time_seed, look_seed = np.random.SeedSequence(entropy).spawn(2)
    rng = np.random.default_rng(time_seed)
    fps = int(rng.choice(spec.frame_rates))
    size = int(rng.choice(spec.sizes))
    timeline = _draw_timeline(rng, level, fps)
    num_frames = round(timeline.duration_s * fps)
    clip = Clip(
        id=f"{level}-{seed}-{split}-{index:05d}",
        dataset="synthetic",
        split=split,
        video=f"videos/{split}-{index:05d}.mp4",
        start_s=0.0,
        end_s=timeline.duration_s,
        video_fps=float(fps),
        num_frames=num_frames,
        width=size,
        height=size,
        action=timeline.action,
        count=len(timeline.cycles),
        cycles=timeline.cycles,
        cycles_source="synthetic",
    )
    track = timeline.track_at(np.arange(num_frames) / fps)
    return ClipPlan(spec, fps, clip, timeline, track, look_seed)


def _draw_timeline(rng: np.random.Generator, level: str, fps: int) -> Timeline:
    spec = LEVELS[level]
    action = str(rng.choice(list(MOTIONS)))
    weights = count_weights(level)
    count = int(rng.choice(len(weights), p=weights))
    # only durations with a whole number of frames: 15 fps rules out the half seconds
    steps = np.arange(spec.duration_s[0], spec.duration_s[1] + 1e-6, _DURATION_STEP_S)
    durations = steps[np.isclose(steps * fps % 1.0, 0.0)]
    if count == 0:
        duration = float(rng.choice(durations))
        return Timeline(action, duration, (), _draw_one_way(rng, duration))
    room = spec.duration_s[1] - 2 * _LEAD_S
    periods = _draw_periods(rng, spec, count, room)
    gaps = _draw_pauses(rng, spec, count, room - periods.sum())
    active = periods.sum() + gaps.sum()
    duration = float(rng.choice(durations[durations >= active + 2 * _LEAD_S - 1e-9]))
    lead_in = _LEAD_S + rng.uniform(0.0, max(0.0, duration - active - 2 * _LEAD_S))
    starts = lead_in + np.concatenate([[0.0], np.cumsum(periods[:-1] + gaps)])
    ends = starts + periods
    ends[:-1] = np.where(gaps == 0.0, starts[1:], ends[:-1])  # shared to the last bit
    cycles = tuple(zip(np.round(starts, 3).tolist(), np.round(ends, 3).tolist(), strict=True))
    return Timeline(action, duration, cycles)


def _draw_one_way(rng: np.random.Generator, duration: float) -> tuple[float, float, float] | None:
    """Half of the clips without a repetition stand still, half move once and never return."""
    if rng.random() < 0.5:
        return None
    start = rng.uniform(_LEAD_S, 0.4 * duration)
    end = start + rng.uniform(1.5, 0.5 * duration)
    return round(start, 3), round(end, 3), float(rng.uniform(0.6, 0.95))


def _draw_periods(
    rng: np.random.Generator, spec: Level, count: int, room: float
) -> NDArray[np.float64]:
    """Lengths of the cycles [count], seconds: a base pace, a slow drift, a little unevenness."""
    shortest, longest = spec.period_s
    base = math.exp(rng.uniform(math.log(shortest), math.log(min(longest, room / count))))
    drift = np.cumsum(rng.normal(size=count))
    drift -= (drift.max() + drift.min()) / 2
    drift /= max(float(np.abs(drift).max()), 1e-9)
    drift *= rng.uniform(0.0, 0.9) * math.log(spec.tempo_factor)
    unevenness = rng.uniform(-0.1, 0.1, size=count) * math.log(spec.tempo_factor)
    periods = np.clip(base * np.exp(drift + unevenness), shortest, longest)
    if periods.sum() > room:  # squeeze towards the shortest period, which always fits
        floor = count * shortest
        periods = shortest + (periods - shortest) * (room - floor) / (periods.sum() - floor)
    return periods


def _draw_pauses(
    rng: np.random.Generator, spec: Level, count: int, room: float
) -> NDArray[np.float64]:
    """Length of the pause after each cycle but the last [count - 1], seconds, mostly 0."""
    gaps = np.zeros(count - 1)
    for i in range(count - 1):
        if rng.random() < spec.pause_probability:
            pause = rng.uniform(*_PAUSE_S)
            if pause <= room:
                gaps[i] = pause
                room -= pause
    return gaps


# --- the picture ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How one clip looks. Lengths are fractions of the frame, colours are RGB."""

    background: Colour
    colour: Colour  # the moving part
    dim: Colour  # the parts that stand still
    accent: Colour  # the hand or bob
    mirror: bool
    scale: float
    shift: Point
    amplitude: float  # 0 .. 1 within what the motion allows
    limb: float


class _Pen:
    """Draws in fractions of the frame, anti-aliased, with 1/16 pixel precision."""

    def __init__(self, image: Image, mirror: bool) -> None:
        self.image = image
        self.size = image.shape[0]
        self.mirror = mirror

    def _at(self, point: Point) -> tuple[int, int]:
        x = 1.0 - point[0] if self.mirror else point[0]
        return round(x * self.size * 16), round(point[1] * self.size * 16)

    def line(self, a: Point, b: Point, width: float, colour: Colour) -> None:
        thickness = max(1, round(width * self.size))
        cv2.line(self.image, self._at(a), self._at(b), colour, thickness, cv2.LINE_AA, 4)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        radius16 = round(radius * self.size * 16)
        cv2.circle(self.image, self._at(centre), radius16, colour, -1, cv2.LINE_AA, 4)


def _draw_ball(pen: _Pen, look: Look, position: float) -> None:
    floor, radius = 0.95, 0.125 * look.scale
    x = 0.5 + 4.0 * look.shift[0]
    travel = 0.48 + 0.1 * look.amplitude
    pen.line((0.0, floor + 0.02), (1.0, floor + 0.02), 0.04, look.dim)
    pen.disc((x, floor - radius - travel * position), radius, look.colour)


def _draw_pendulum(pen: _Pen, look: Look, position: float) -> None:
    pivot = (0.5 + 0.5 * look.shift[0], 0.1)
    length = 0.64 * look.scale
    angle = math.radians(30.0 + 5.0 * look.amplitude) * (2.0 * position - 1.0)
    bob = (pivot[0] + length * math.sin(angle), pivot[1] + length * math.cos(angle))
    pen.line((pivot[0] - 0.15, 0.08), (pivot[0] + 0.15, 0.08), 0.05, look.dim)
    pen.line(pivot, bob, 0.8 * look.limb, look.colour)
    pen.disc(bob, 0.12, look.accent)


def _draw_squat(pen: _Pen, look: Look, position: float) -> None:
    scale, x, floor = look.scale, 0.5 + 2.0 * look.shift[0], 0.96
    leg = 0.46 * scale
    hips = floor - leg + (0.40 + 0.02 * look.amplitude) * position
    shoulders = hips - 0.26 * scale
    half = (floor - hips) / 2.0
    knee = math.sqrt(max(0.0, (leg / 2.0) ** 2 - half**2))
    for side in (-1.0, 1.0):
        joint = (x + side * (0.07 + knee), hips + half)
        pen.line((x + side * 0.05, hips), joint, look.limb, look.colour)
        pen.line(joint, (x + side * 0.10, floor), look.limb, look.colour)
        hand = (x + side * 0.22, shoulders + 0.2 * (1.0 - position))
        pen.line((x, shoulders), hand, look.limb, look.colour)
    pen.line((x, hips), (x, shoulders), 1.2 * look.limb, look.colour)
    pen.disc((x, shoulders - 0.10 * scale), 0.09 * scale, look.accent)


def _draw_standing(pen: _Pen, look: Look, colour: Colour, shoulders: Point, hips: float) -> None:
    """Trunk, legs and head of a figure that stays where it is."""
    x = shoulders[0]
    pen.line(shoulders, (x, hips), 1.2 * look.limb, colour)
    for side in (-1.0, 1.0):
        pen.line((x, hips), (x + side * 0.13, 0.96), look.limb, colour)
    pen.disc((x, shoulders[1] - 0.14), 0.085, colour)


def _draw_arm_raise(pen: _Pen, look: Look, position: float) -> None:
    shoulders = (0.5 + 2.0 * look.shift[0], 0.42 + 0.5 * look.shift[1])
    _draw_standing(pen, look, look.dim, shoulders, 0.66)
    length = 0.33 * look.scale
    angle = math.radians(15.0 + (130.0 + 20.0 * look.amplitude) * position)
    for side in (-1.0, 1.0):
        start = (shoulders[0] + side * 0.03, shoulders[1])
        hand = (start[0] + side * length * math.sin(angle), start[1] + length * math.cos(angle))
        pen.line(start, hand, look.limb, look.colour)
        pen.disc(hand, 0.07, look.accent)


def _draw_arm_rotation(pen: _Pen, look: Look, position: float) -> None:
    shoulder = (0.5 + 0.4 * look.shift[0], 0.5 + 0.4 * look.shift[1])
    _draw_standing(pen, look, look.dim, shoulder, 0.74)
    length = (0.34 + 0.03 * look.amplitude) * look.scale
    angle = 2.0 * math.pi * position
    hand = (shoulder[0] + length * math.sin(angle), shoulder[1] + length * math.cos(angle))
    pen.line(shoulder, hand, look.limb, look.colour)
    pen.disc(hand, 0.09, look.accent)


@dataclass(frozen=True)
class Motion:
    """One kind of repetition: its course over a cycle and its picture.

    Attributes:
        profile: Position [N] for phases [N] in [0, 1).
        draw: Draws the figure at a position.
    """

    profile: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    draw: Callable[[_Pen, Look, float], None]


def _raised_cosine(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * phase)


def _free_fall(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return 4.0 * phase * (1.0 - phase)


def _constant_speed(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return phase


MOTIONS = {
    "ball_bounce": Motion(_free_fall, _draw_ball),
    "pendulum_swing": Motion(_raised_cosine, _draw_pendulum),
    "squat": Motion(_raised_cosine, _draw_squat),
    "arm_raise": Motion(_raised_cosine, _draw_arm_raise),
    "arm_rotation": Motion(_constant_speed, _draw_arm_rotation),
}


def _draw_clip(plan: ClipPlan) -> Frames:
    """All frames of a plan, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(plan.look_seed)
    size, num_frames = plan.clip.width, plan.clip.num_frames
    look = _draw_look(rng)
    scenery = _draw_scenery(rng, plan.level, look, plan.clip.duration_s)
    gains = _draw_gains(rng, plan.level, plan.track.times_s)
    shifts = _draw_shifts(rng, plan.level, num_frames, plan.fps) * size
    draw = MOTIONS[plan.timeline.action].draw
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    frames[:] = look.background
    for i, time_s in enumerate(plan.track.times_s.tolist()):
        pen = _Pen(frames[i], look.mirror)
        scenery.draw_behind(pen, time_s)
        draw(pen, look, float(plan.track.position[i]))
        scenery.draw_in_front(pen, time_s)
        if plan.level.jitter:
            move = np.array([[1.0, 0.0, shifts[i, 0]], [0.0, 1.0, shifts[i, 1]]])
            frames[i] = cv2.warpAffine(
                frames[i], move, (size, size), borderMode=cv2.BORDER_REPLICATE
            )
        if plan.level.lighting:
            frames[i] = cv2.convertScaleAbs(frames[i], alpha=float(gains[i]))
    _add_noise(rng, plan.level, frames)
    return frames


def _add_noise(rng: np.random.Generator, level: Level, frames: Frames) -> None:
    """Add uniform brightness noise, anew for every pixel and frame, in place."""
    peak = int(rng.integers(level.noise[0], level.noise[1] + 1))
    for frame in frames:
        noise = rng.integers(-peak, peak + 1, size=frame.shape[:2], dtype=np.int8)
        cv2.add(frame, cv2.merge((noise, noise, noise)), dst=frame, dtype=cv2.CV_8U)


def _brightness(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _draw_colour(rng: np.random.Generator, low: float, high: float, saturation: float) -> Colour:
    """A random hue whose brightness lies in [low, high]."""
    hue = rng.dirichlet((1.0, 1.0, 1.0)) * 3.0
    target = rng.uniform(low, high)
    mixed = target * ((1.0 - saturation) + saturation * hue)
    r, g, b = (round(float(v)) for v in np.clip(mixed, 5, 250))
    shift = round(target - _brightness((r, g, b)))
    r, g, b = (min(250, max(5, v + shift)) for v in (r, g, b))
    return r, g, b


def _draw_look(rng: np.random.Generator) -> Look:
    """Colours with a strong contrast (dark on bright or bright on dark), place and size."""
    is_dark = rng.random() < 0.6
    background = _draw_colour(rng, *((15, 60) if is_dark else (185, 235)), 0.3)
    colour = _draw_colour(rng, *((180, 230) if is_dark else (25, 70)), 0.5)
    accent = _draw_colour(rng, *((170, 230) if is_dark else (25, 90)), 0.8)
    dim = tuple(round(0.6 * b + 0.4 * c) for b, c in zip(background, colour, strict=True))
    return Look(
        background=background,
        colour=colour,
        dim=(dim[0], dim[1], dim[2]),
        accent=accent,
        mirror=bool(rng.random() < 0.5),
        scale=float(rng.uniform(0.95, 1.04)),
        shift=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.05, 0.05))),
        amplitude=float(rng.uniform(0.0, 1.0)),
        limb=float(rng.uniform(0.085, 0.11)),
    )


@dataclass(frozen=True)
class _Shape:
    """A disc or bar that stands still or drifts in one direction."""

    start: Point
    end: Point  # where it is at the end of the clip
    radius: float
    colour: Colour
    is_disc: bool


@dataclass(frozen=True)
class _Scenery:
    """What is drawn around the figure: distractors behind it, bars in front of it."""

    distractors: tuple[_Shape, ...]
    bars: tuple[tuple[float, float, bool, Colour], ...]  # (place, width, upright, colour)
    duration_s: float

    def draw_behind(self, pen: _Pen, time_s: float) -> None:
        share = time_s / self.duration_s
        for shape in self.distractors:
            x = shape.start[0] + share * (shape.end[0] - shape.start[0])
            y = shape.start[1] + share * (shape.end[1] - shape.start[1])
            if shape.is_disc:
                pen.disc((x, y), shape.radius, shape.colour)
            else:
                half = 1.5 * shape.radius
                pen.line((x - half, y), (x + half, y), 1.2 * shape.radius, shape.colour)

    def draw_in_front(self, pen: _Pen, time_s: float) -> None:
        for place, width, is_upright, colour in self.bars:
            if is_upright:
                pen.line((place, -0.2), (place, 1.2), width, colour)
            else:
                pen.line((-0.2, place), (1.2, place), width, colour)


def _draw_scenery(
    rng: np.random.Generator, level: Level, look: Look, duration_s: float
) -> _Scenery:
    base = _brightness(look.background)
    towards = 1.0 if base < 128 else -1.0
    distractors = []
    for _ in range(rng.integers(level.num_distractors[0], level.num_distractors[1] + 1)):
        start = rng.uniform(0.05, 0.95, size=2)
        drift = rng.uniform(-0.5, 0.5, size=2) * (rng.random() < 0.5)
        grey = base + towards * rng.uniform(25, 70)
        distractors.append(
            _Shape(
                start=(float(start[0]), float(start[1])),
                end=(float(start[0] + drift[0]), float(start[1] + drift[1])),
                radius=float(rng.uniform(0.05, 0.11)),
                colour=_draw_colour(rng, grey, grey + 1.0, 0.6),
                is_disc=bool(rng.random() < 0.5),
            )
        )
    bars = []
    for _ in range(rng.integers(level.num_bars[0], level.num_bars[1] + 1)):
        grey = base + towards * rng.uniform(40, 90)
        colour = _draw_colour(rng, grey, grey + 1.0, 0.4)
        place, width = rng.uniform(0.15, 0.85), rng.uniform(0.07, 0.13)
        bars.append((float(place), float(width), bool(rng.random() < 0.5), colour))
    return _Scenery(tuple(distractors), tuple(bars), duration_s)


def _draw_gains(
    rng: np.random.Generator, level: Level, times_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Brightness factor of each frame [T]: two slow waves that are no multiple of one another."""
    gains = np.ones(len(times_s))
    for share in (0.6, 0.4):
        period, phase = rng.uniform(3.0, 9.0), rng.uniform(0.0, 2.0 * np.pi)
        gains += level.lighting * share * np.sin(2.0 * np.pi * times_s / period + phase)
    return gains


def _draw_shifts(
    rng: np.random.Generator, level: Level, num_frames: int, fps: int
) -> NDArray[np.float64]:
    """Shift of the camera in each frame [T, 2], fractions of the frame: a pulled-back walk."""
    keep = math.exp(-1.0 / (0.35 * fps))  # forgets a shift after about a third of a second
    steps = rng.normal(size=(num_frames, 2)) * level.jitter * math.sqrt(1.0 - keep**2)
    for i in range(1, num_frames):
        steps[i] += keep * steps[i - 1]
    return steps
