"""What happens in clips of the level real-like: their kinds, cuts and pauses, without any pixels.

Each kind is one thing that real footage has and the other levels do not. A clip is of one kind, so
that figures can be told by kind; its line has `kind:NAME` among its flags.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from data_prep.schema import Clip
from data_prep.synthetic.levels import Level, count_weights
from data_prep.synthetic.motions import FIGURE_MOTIONS, MOTIONS
from data_prep.synthetic.timeline import LEAD_S, Timeline, draw_one_way, draw_repetitions

CUT_S = (0.1, 0.5)  # from the end of a repetition to the cut, and from there to the next
BLACK_S = (0.6, 1.5)  # of black between two shots
FADE_S = (0.5, 1.0)  # of a cross-fade
JERK_S = 1.2  # in which the camera is picked up or put down

_FLAG = "kind:"
_MOST_IN_A_SHOT = 6
_ONE_WAY = 0.5  # probability that an event does not return
_SECOND_CUT = 0.4


@dataclass(frozen=True)
class Cut:
    """Where one shot gives way to another.

    Attributes:
        start_s: Where the first shot is no longer seen alone.
        end_s: From where the second is seen alone; a hard cut has equal times.
        is_fade: Whether both are mixed in between; it is black otherwise.
    """

    start_s: float
    end_s: float
    is_fade: bool = False


@dataclass(frozen=True)
class Scene:
    """What happens in a clip.

    Attributes:
        kind: A key of `KINDS`.
        timeline: Action and cycles.
        cuts: Between the shots, in order.
        jerk_s: When the camera is picked up or put down, (start, end); None: it is not.
    """

    kind: str
    timeline: Timeline
    cuts: tuple[Cut, ...] = ()
    jerk_s: tuple[float, float] | None = None


def kind_of(clip: Clip) -> str:
    """The kind that a clip's flags name; "" where they name none."""
    return next((f.removeprefix(_FLAG) for f in clip.flags if f.startswith(_FLAG)), "")


def flags_of(scene: Scene) -> tuple[str, ...]:
    """The flags of a clip."""
    return (f"{_FLAG}{scene.kind}",)


def draw_scene(rng: np.random.Generator, level: Level, fps: int) -> Scene:
    """Draw a kind and a clip of it."""
    kind = str(rng.choice(list(KINDS)))
    return KINDS[kind](rng, level, fps, kind)


def _draw_count(rng: np.random.Generator, level: Level, low: int, high: int) -> int:
    """A count of the level between two, both included."""
    weights = count_weights(level)[low : high + 1]
    return low + int(rng.choice(len(weights), p=weights / weights.sum()))


def _repeated(rng: np.random.Generator, level: Level, fps: int, kind: str) -> Scene:
    action = str(rng.choice(_ACTIONS_OF.get(kind, tuple(MOTIONS))))
    count = _draw_count(rng, level, 2, level.max_count)
    return Scene(kind, draw_repetitions(rng, level, fps, action, count))


def _in_shots(rng: np.random.Generator, level: Level, fps: int, kind: str) -> Scene:
    """Two or three shots of the same exercise, each with two repetitions or more."""
    num_shots = 2 + int(rng.random() < _SECOND_CUT)
    counts = [_draw_count(rng, level, 2, _MOST_IN_A_SHOT) for _ in range(num_shots)]
    once = replace(level, duration_s=(level.duration_s[0] / 2.0, level.duration_s[1] / 2.0))
    action = str(rng.choice(list(MOTIONS)))
    shots = [draw_repetitions(rng, once, fps, action, count) for count in counts]
    between = {"cuts": (0.0, 0.0), "black": BLACK_S, "fade": FADE_S}[kind]
    cycles, cuts, start = [], [], 0.0
    for k, shot in enumerate(shots):
        low = shot.cycles[0][0] - rng.uniform(*CUT_S) if k else 0.0
        high = shot.cycles[-1][1] + rng.uniform(*CUT_S) if k + 1 < num_shots else shot.duration_s
        cycles += [(start + a - low, start + b - low) for a, b in shot.cycles]
        end = start + high - low
        length = rng.uniform(*between)
        start = end + length
        if k + 1 < num_shots:
            cuts.append(Cut(_in_frames(end, fps), _in_frames(start, fps), kind == "fade"))
    rounded = tuple((round(a, 3), round(b, 3)) for a, b in cycles)
    return Scene(kind, Timeline(action, _whole_steps(end), rounded), tuple(cuts))


def _jerk(rng: np.random.Generator, level: Level, fps: int, kind: str) -> Scene:
    """The camera is put down before the first repetition or picked up after the last."""
    scene = _repeated(rng, level, fps, kind)
    timeline = scene.timeline
    duration = _whole_steps(timeline.duration_s + JERK_S)
    if rng.random() < 0.5:
        return replace(
            scene,
            timeline=replace(timeline, duration_s=duration),
            jerk_s=(duration - JERK_S, duration),
        )
    late = duration - timeline.duration_s
    cycles = tuple((round(a + late, 3), round(b + late, 3)) for a, b in timeline.cycles)
    moved = replace(timeline, duration_s=duration, cycles=cycles)
    return replace(scene, timeline=moved, jerk_s=(0.0, JERK_S))


def _once(rng: np.random.Generator, level: Level, fps: int, kind: str) -> Scene:
    """One event: it returns and is one repetition, or stays where it went."""
    action = str(rng.choice(list(MOTIONS)))
    timeline = draw_repetitions(rng, level, fps, action, 1)
    if rng.random() < _ONE_WAY:
        one_way = draw_one_way(rng, timeline.duration_s)
        timeline = replace(timeline, cycles=(), one_way=one_way)
    return Scene(kind, timeline)


def _nothing(rng: np.random.Generator, level: Level, fps: int, kind: str) -> Scene:
    action = str(rng.choice(list(MOTIONS)))
    timeline = draw_repetitions(rng, level, fps, action, 1)
    return Scene(kind, replace(timeline, cycles=()))


def _in_frames(time_s: float, fps: int) -> float:
    return round(time_s * fps) / fps


def _whole_steps(time_s: float) -> float:
    """At least as long, and a whole number of seconds: of frames at every rate."""
    return float(np.ceil(time_s + LEAD_S))


Draw = Callable[[np.random.Generator, Level, int, str], Scene]

KINDS: dict[str, Draw] = {
    "plain": _repeated,
    "cuts": _in_shots,
    "black": _in_shots,
    "fade": _in_shots,
    "pan": _repeated,
    "jerk": _jerk,
    "shake": _repeated,
    "light": _repeated,
    "small": _repeated,
    "symmetric": _repeated,
    "half_turn": _repeated,
    "travelling": _repeated,
    "wandering": _nothing,
    "once": _once,
    "still": _nothing,
}
# What is done in clips of a kind; in those of the others, any of `MOTIONS`.
_ACTIONS_OF = {
    "small": ("hand_wave",),
    "symmetric": ("jumping_jack",),
    "half_turn": ("bar_turn",),
    "travelling": ("squat", "arm_raise", "arm_rotation", "jumping_jack"),
}
assert set().union(*_ACTIONS_OF.values()) <= MOTIONS.keys() | FIGURE_MOTIONS.keys()
