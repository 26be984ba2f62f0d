"""Reasoning data: the answer that a model should give about a clip, written from its annotation.

Owns the wording; the layout belongs to `rewards.response`. Every text is parsed back before it is
handed out, so that no reference answer can miss the reward that it is meant to teach.
"""

from data_prep.schema import Clip, DataError
from rewards.response import Response, parse, render

# What is seen, and from where to where one repetition goes.
_WORDING: dict[str, tuple[str, str]] = {
    "ball_bounce": ("A ball bounces.", "from the floor, up, and back to the floor"),
    "pendulum_swing": ("A pendulum swings.", "from one side to the other and back"),
    "squat": ("A person squats.", "from standing, down, and back to standing"),
    "arm_raise": ("A person raises both arms.", "from arms down, up, and back down"),
    "arm_rotation": ("A person turns one arm.", "one full turn of the arm"),
}

_CHECK_SOME = "the repetitions follow each other in order"
_CHECK_NONE = "no motion is repeated"


def wording(action: str) -> tuple[str, str]:
    """What is seen and what one repetition is, for an action name such as `push_up`."""
    if action in _WORDING:
        return _WORDING[action]
    name = action.replace("_", " ")
    return f"The video shows {name}.", f"one full {name}, from start to end"


def render_answer(clip: Clip, *, dialect: str = "think") -> str:
    """The reference answer of a clip, from its cycles.

    Raises:
        DataError: naming the clip, if it has no cycles, if they disagree with its count, or if the
            text would not be read back as what was meant.
    """
    if clip.cycles is None:
        raise DataError(f"clip {clip.id!r}: cycles=null, expected cycle marks to reason from")
    if len(clip.cycles) != clip.count:
        raise DataError(
            f"clip {clip.id!r}: count={clip.count} but {len(clip.cycles)} cycles are marked"
        )
    observation, definition = wording(clip.action)
    response = Response(
        observation=observation,
        definition=definition,
        cycles=tuple((round(start, 1), round(end, 1)) for start, end in clip.cycles),
        check=_CHECK_SOME if clip.count else _CHECK_NONE,
        total=clip.count,
        answer=clip.count,
    )
    text = render(response, dialect=dialect)
    parsed = parse(text)
    if not parsed.is_well_formed or parsed.count != clip.count:
        raise DataError(f"clip {clip.id!r}: the rendered answer does not parse: {parsed.problems}")
    return text
