"""Right lists of random repetitions: what total and answer are copied from, without any video.

Of such a text no time can be known, but the number of each repetition, the total and the answer
follow from what stands before them. They are what is learned of it.
"""

import random
import re
from dataclasses import dataclass

from data_prep.cot import wording
from data_prep.synthetic.motions import MOTIONS
from rewards.grammar.write import Response, render

LEARNED = {
    "label": re.compile(r"^(rep[0-9]+:|rep[0-9]+(?=-))", re.MULTILINE),
    "total": re.compile(r"^Total:( [0-9]+\n)", re.MULTILINE),
    "answer": re.compile(r"<answer>([0-9]+)</answer>"),
}
"""What is learned of an answer, by kind."""

Span = tuple[str, int, int]
"""(kind, first character, the one after)"""


@dataclass(frozen=True)
class Lesson:
    """A text, what it answers, and what of it is learned."""

    question: str
    text: str
    learned: tuple[Span, ...]


def list_lesson(
    rng: random.Random, length: int, question: str, *, dialect: str = "think"
) -> Lesson:
    """The right answer about `length` repetitions at random times."""
    observation, definition = wording(rng.choice(sorted(MOTIONS)))
    check = "the repetitions follow each other in order" if length else "no motion is repeated"
    cycles = _random_cycles(rng, length)
    response = Response(observation, definition, cycles, check, total=length, answer=length)
    text = render(response, dialect=dialect)
    learned = [
        (kind, *match.span(1)) for kind, form in LEARNED.items() for match in form.finditer(text)
    ]
    return Lesson(question, text, tuple(learned))


def _random_cycles(rng: random.Random, length: int) -> tuple[tuple[float, float], ...]:
    """Repetitions of at least 0.2 s, contiguous or with gaps; in some 30 s if they fit."""
    gap_share = rng.choice((0.0, 0.3, 0.8))
    longest = max(2, min(30, 290 // max(1, length) - 2))
    cycles, at = [], rng.randrange(20)
    for _ in range(length):
        at += rng.randint(1, 3) if rng.random() < gap_share else 0
        end = at + rng.randint(2, longest)
        cycles.append((at / 10, end / 10))
        at = end
    return tuple(cycles)
