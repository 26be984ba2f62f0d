"""Reasoning data: the answer that a model should give about a clip, written from its annotation.

Owns the wording, and the test that every reference answer passes, whoever wrote it: it reads back,
agrees with the count and the marks, and earns the full reward that it is meant to teach. The
layout of an answer belongs to `rewards.grammar`; what asks others for answers to
`data_prep.teachers`.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data_prep.files import DataError, read_jsonl
from data_prep.references import reference_of
from data_prep.schema import Clip
from rewards.compose import score
from rewards.cycles import cycle_f1
from rewards.grammar.layout import Cycle
from rewards.grammar.read import ParsedResponse, parse
from rewards.grammar.write import Response, render, round_cycles
from rewards.reference import Reference

# What is seen, and from where to where one repetition goes. The first phrasing of each is the
# default; none may say how often, so that it holds for every count.
_OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "ball_bounce": (
        "A ball bounces.",
        "A ball falls to the floor and springs back.",
        "A ball moves up and down above the floor.",
        "The video shows a bouncing ball.",
    ),
    "pendulum_swing": (
        "A pendulum swings.",
        "A weight hangs from a fixed point and swings.",
        "A pendulum moves between left and right.",
        "The video shows a swinging pendulum.",
    ),
    "squat": (
        "A person squats.",
        "A person bends the knees and stands up.",
        "A figure goes down into a squat and rises.",
        "The video shows a person who squats.",
    ),
    "arm_raise": (
        "A person raises both arms.",
        "A person lifts the arms and lowers them.",
        "Both arms of a figure go up and come down.",
        "The video shows a person who raises the arms.",
    ),
    "arm_rotation": (
        "A person turns one arm.",
        "A person swings one arm around in a circle.",
        "One arm of a figure circles around the shoulder.",
        "The video shows a person whose arm goes around.",
    ),
}
_DEFINITIONS: dict[str, tuple[str, ...]] = {
    "ball_bounce": (
        "from the floor, up, and back to the floor",
        "the ball leaves the floor and lands on it",
        "one rise of the ball and the fall that follows",
    ),
    "pendulum_swing": (
        "from one side to the other and back",
        "there and back, to the side where it began",
        "one full swing, over the middle and back over it",
    ),
    "squat": (
        "from standing, down, and back to standing",
        "the way down and the way up",
        "one bend of the knees until the body is upright",
    ),
    "arm_raise": (
        "from arms down, up, and back down",
        "the arms leave the sides, rise and come back",
        "one lift of the arms and their return",
    ),
    "arm_rotation": (
        "one full turn of the arm",
        "the arm goes once around, back to where it began",
        "a whole circle of the arm",
    ),
}

_OBSERVATIONS_NONE = (
    "Nothing that moves in the video does so again.",
    "The video shows no complete repetition.",
)
_CHECK_SOME = "the repetitions follow each other in order"
_CHECK_NONE = "no motion is repeated"
_CHECKS_NONE = (
    _CHECK_NONE,
    "no repetition is completed",
    "nothing comes back to where it began and starts again",
)


class AnswerError(DataError):
    """A clip that no reference answer can be written for.

    Attributes:
        reason: Why, in a word: "no_marks", "marks_differ_from_count", "bad_marks" or a reason of
            `rejection`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def wording(action: str) -> tuple[str, str]:
    """What is seen and what one repetition is, for an action name such as `push_up`."""
    observations, definitions = _phrasings(action)
    return observations[0], definitions[0]


def render_answer(clip: Clip, *, dialect: str = "think", variety: int = 1, seed: int = 0) -> str:
    """The reference answer of a clip, from its cycles.

    Args:
        clip: With marks that agree with its count.
        dialect: Tag of the reasoning.
        variety: How many phrasings of each section are drawn from; 1 takes the first of each.
        seed: Of the draw, which depends on it and on the clip's id alone.

    Raises:
        AnswerError: naming the clip, if it has no cycles, if they disagree with its count, or if
            the text would not be read back as what was meant and earn the full reward.
    """
    assert variety >= 1, f"variety={variety}, expected at least 1"
    if clip.cycles is None:
        raise AnswerError(
            f"clip {clip.id!r}: cycles=null, expected cycle marks to reason from", "no_marks"
        )
    if len(clip.cycles) != clip.count:
        raise AnswerError(
            f"clip {clip.id!r}: count={clip.count} but {len(clip.cycles)} cycles are marked",
            "marks_differ_from_count",
        )

    def choose(section: str, options: Sequence[str]) -> str:
        return options[_draw(f"{seed}:{section}:{clip.id}", min(variety, len(options)))]

    observations, definitions = _phrasings(clip.action)
    if clip.count == 0:
        observations = (observations[0], *_OBSERVATIONS_NONE)
    try:
        cycles = round_cycles(clip.cycles)
        response = Response(
            observation=choose("observation", observations),
            definition=choose("definition", definitions),
            cycles=cycles,
            check=choose("check", _checks(cycles)),
            total=clip.count,
            answer=clip.count,
        )
    except ValueError as error:
        raise AnswerError(f"clip {clip.id!r}: {error}", "bad_marks") from error
    text = render(response, dialect=dialect)
    if reason := rejection(text, clip, dialect=dialect):
        raise AnswerError(
            f"clip {clip.id!r}: its reference answer is not one to learn from ({reason}); are its "
            f"cycles {clip.cycles} right?",
            reason,
        )
    return text


def rejection(text: str, clip: Clip, *, dialect: str = "think") -> str | None:
    """Why a text may not be learnt as the answer about a clip; None if it may.

    It has to read back without a problem ("malformed"), have the clip's count as its answer
    ("wrong_count") and as its total and number of listed repetitions ("inconsistent"), list each
    repetition where it is marked ("wrong_cycles") or at all where the clip has no marks
    ("no_cycles"), and earn the full default reward ("less_than_full_reward").
    """
    parsed = parse(text, dialect=dialect)
    if not parsed.is_well_formed:
        return "malformed" if parsed.count in (None, clip.count) else "wrong_count"
    if parsed.count != clip.count:
        return "wrong_count"
    reference = reference_of(clip)
    if clip.count and not parsed.cycles and not reference.cycles:
        return "no_cycles"
    if parsed.total != clip.count or len(parsed.cycles) != clip.count:
        return "inconsistent"
    if not _agrees(parsed, reference):
        return "wrong_cycles"
    return None if score(text, reference).total >= 1.0 - 1e-9 else "less_than_full_reward"


def read_answers(path: str | Path) -> dict[str, str]:
    """The texts of a file that `actrep cot` wrote, by clip id.

    Raises:
        DataError: naming the file and line of the first bad row.
    """
    answers: dict[str, str] = {}
    for row in read_jsonl(path, "a file that `actrep cot` wrote"):
        name, text = row.values.get("id"), row.values.get("text")
        if not isinstance(name, str) or name in answers:
            raise DataError(f"{row.where}: id={name!r}, expected a new id")
        if not isinstance(text, str):
            raise DataError(f"{row.where}: text={text!r}, expected the text of an answer")
        answers[name] = text
    return answers


def _phrasings(action: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if action in _OBSERVATIONS:
        return _OBSERVATIONS[action], _DEFINITIONS[action]
    name = action.replace("_", " ")
    return (
        (
            f"The video shows {name}.",
            f"The action in the video is {name}.",
            f"What is seen is {name}.",
            f"The motion in view: {name}.",
        ),
        (
            f"one full {name}, from start to end",
            f"one {name}, until everything is back where it began",
            f"one {name}, completed",
        ),
    )


def _checks(cycles: Sequence[Cycle]) -> tuple[str, ...]:
    """Checks that are true of these cycles. Their only numbers are the count and times."""
    if not cycles:
        return _CHECKS_NONE
    first, last = cycles[0][0], cycles[-1][1]
    lengths = [end - start for start, end in cycles]
    if len(cycles) == 1:
        return (
            _CHECK_SOME,
            f"the only repetition lies between {first:.1f}s and {last:.1f}s",
            f"the motion comes back once, after {lengths[0]:.1f}s",
            "nothing of the kind comes before or after it",
        )
    pause = max(b[0] - a[1] for a, b in pairwise(cycles))
    return (
        _CHECK_SOME,
        f"the {len(cycles)} repetitions lie between {first:.1f}s and {last:.1f}s",
        f"a repetition takes {sum(lengths) / len(lengths):.1f}s on average",
        "each repetition begins where the one before it ends"
        if pause < 0.05
        else f"the longest pause between two of them lasts {pause:.1f}s",
        f"the shortest takes {min(lengths):.1f}s and the longest {max(lengths):.1f}s",
    )


def _draw(key: str, num: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % num


def _agrees(parsed: ParsedResponse, reference: Reference) -> bool:
    """Whether each listed repetition is a marked one; True where nothing is marked."""
    f1 = cycle_f1(parsed, reference)
    return f1 is None or f1 == 1.0
