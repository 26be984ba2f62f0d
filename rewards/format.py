"""Format rewards and guards: is the answer built as it should be, and is it more than filler.

Owns everything that looks at form alone. Rewards are in [0, 1]; penalties are in [-1, 0].
"""

import re
from itertools import islice
from typing import Final

from rewards.cycles import valid_cycles
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

REASONING: Final = ("before", "none", "after")
"""Where `think_answer` may want it, seen from the answer."""

_REASONING: Final = ("observation", "definition", "check")
_MIN_CHARACTERS: Final = 3  # letters or digits that make a section more than a mark
_MIN_COPIED_WORDS: Final = 6  # shorter overlaps with the prompt are ordinary language
_MAX_CHARACTERS: Final = 65_536  # of prose that the guards look at
_ANSWER_FIRST: Final = "answer_first"
_STRUCTURE_PROBLEMS: Final[tuple[str, ...]] = (
    "text_outside",
    _ANSWER_FIRST,
    "mixed_dialect",
    "wrong_dialect",
    "special_token",
)
_THINK_PROBLEMS: Final = ("missing_think", "unopened_think", "unclosed_think", "repeated_think")
_LIST_PROBLEMS: Final = (
    "bad_cycle",
    "cycle_number",
    "cycle_overlap",
    "empty_cycle",
    "time_precision",
    "too_many_cycles",
)
# Possessive quantifiers: a line is taken whole or not at all, so matching is linear.
_STRICT: Final = re.compile(
    r"<(think|thinking)>\n"
    r"(?:[^\n]*+\n)+?"
    r"One repetition: [^\n]++\n"
    r"(?:rep[0-9]++(?:-[0-9]++)?: [0-9]++\.[0-9](?:-[0-9]++\.[0-9])++s\n)*+"
    r"Check: [^\n]++\n"
    r"Total: [0-9]++\n"
    r"</\1>\n"
    r"<answer>[0-9]++</answer>\s*+"
)


def graded_format(response: ParsedResponse, reference: Reference) -> float | None:
    """The share of ten properties that hold. In [0, 1].

    1 one closed pair of reasoning tags; 2 one closed pair of answer tags; 3 reasoning then answer,
    nothing outside them and no special token of a chat model anywhere; 4 an observation; 5 a
    definition; 6 a list without a malformed, misnumbered or empty entry (it may be absent where the
    clip has no marks or the total is 0); 7 a check; 8 a total; 9 an integer answer; 10 list, total
    and answer agree. The texts of 4, 5 and 7 count if they hold a word and are not copied from the
    prompt.
    """
    has_think = response.dialect is not None and not response.has_problem(*_THINK_PROBLEMS)
    has_answer = response.answer_text is not None
    texts = reasoning_sections(response, reference)
    has_list = bool(response.cycles) or not reference.cycles or response.total == 0
    num_valid = len(valid_cycles(response.cycles, reference))
    agrees = response.count is not None and response.count == response.total
    if response.cycles or reference.cycles:
        agrees = agrees and num_valid == len(response.cycles) == response.total
    held = (
        has_think,
        has_answer,
        has_think and has_answer and not response.has_problem(*_STRUCTURE_PROBLEMS),
        "observation" in texts,
        "definition" in texts,
        has_list and response.total is not None and not response.has_problem(*_LIST_PROBLEMS),
        "check" in texts,
        response.total is not None,
        response.count is not None,
        agrees,
    )
    return sum(held) / len(held)


def strict_format(response: ParsedResponse, reference: Reference) -> float | None:
    """1 if the whole text is exactly as `rewards.grammar.write.render` lays it out, else 0."""
    return float(response.is_well_formed and _STRICT.fullmatch(response.text) is not None)


def think_answer(
    response: ParsedResponse, reference: Reference, *, reasoning: str = "before"
) -> float | None:
    """1 for reasoning that is not empty, then one answer that is not, and nothing else; else 0.

    The format reward of R1-style trainers, for answers that are not counts or have no sections.
    With `reasoning` "after" it has to follow the answer, with "none" there may be none.

    Raises:
        ValueError: for another `reasoning`.
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning={reasoning!r}, expected one of {', '.join(REASONING)}")
    if reasoning == "none":
        has_its_form, problems = response.dialect is None, _STRUCTURE_PROBLEMS
    else:
        has_reasoning = bool(response.observation or response.definition or response.check)
        is_after = response.has_problem(_ANSWER_FIRST)
        has_its_form = has_reasoning and is_after == (reasoning == "after")
        problems = (*_THINK_PROBLEMS, *(p for p in _STRUCTURE_PROBLEMS if p != _ANSWER_FIRST))
    return float(
        has_its_form and bool(response.answer_text) and not response.has_problem(*problems)
    )


def overlong(
    response: ParsedResponse, reference: Reference, *, buffer_fraction: float = 0.2
) -> float | None:
    """DAPO's soft penalty for length (arXiv 2503.14476, eq. 13). In [-1, 0].

    0 up to max_tokens - buffer, then falling linearly to -1 at max_tokens, with buffer =
    `buffer_fraction` * max_tokens. None where the reference holds no token numbers.

    Raises:
        ValueError: if `buffer_fraction` is not in (0, 1].
    """
    if not 0.0 < buffer_fraction <= 1.0:
        raise ValueError(f"buffer_fraction={buffer_fraction!r}, expected a share in (0, 1]")
    if reference.num_tokens is None or reference.max_tokens is None:
        return None
    buffer = buffer_fraction * reference.max_tokens
    excess = reference.num_tokens - (reference.max_tokens - buffer)
    return -min(1.0, max(0.0, excess / buffer))


def repetition(
    response: ParsedResponse, reference: Reference, *, ngram: int = 4, allowed: float = 0.5
) -> float | None:
    """Penalty for prose that repeats itself. In [-1, 0].

    The share of word n-grams that occurred before, beyond the `allowed` one and rescaled to reach
    -1. The list of cycles is not prose. Not for recipes whose observation spells out the motion
    letter by letter: that is periodic because the motion is.

    Raises:
        ValueError: if `ngram` is below 1 or `allowed` is not in [0, 1).
    """
    if ngram < 1 or not 0.0 <= allowed < 1.0:
        raise ValueError(f"ngram={ngram!r}, allowed={allowed!r}: expected >= 1 and [0, 1)")
    grams = _ngrams(_prose(response), ngram)
    if len(grams) < 2:
        return 0.0
    repeated = 1.0 - len(set(grams)) / len(grams)
    return -max(0.0, (repeated - allowed) / (1.0 - allowed))


def copy(response: ParsedResponse, reference: Reference, *, ngram: int = 6) -> float | None:
    """Penalty for prose taken from the prompt: minus the share of its n-grams found there.

    In [-1, 0]; None where the reference holds no prompt.

    Raises:
        ValueError: if `ngram` is below 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram={ngram!r}, expected at least 1")
    if reference.prompt is None:
        return None
    grams = _ngrams(_prose(response), ngram)
    known = set(_ngrams(reference.prompt, ngram))
    return -sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def reasoning_sections(response: ParsedResponse, reference: Reference) -> frozenset[str]:
    """Those of observation, definition and check that say something of their own."""
    return frozenset(
        name for name in _REASONING if _says_something(getattr(response, name), reference.prompt)
    )


def has_reasoning(response: ParsedResponse, reference: Reference) -> bool:
    """Whether observation, definition and check all say something of their own."""
    return len(reasoning_sections(response, reference)) == len(_REASONING)


def _says_something(text: str | None, prompt: str | None) -> bool:
    if text is None:
        return False
    characters = islice(filter(str.isalnum, text[:_MAX_CHARACTERS]), _MIN_CHARACTERS)
    if sum(1 for _ in characters) < _MIN_CHARACTERS:
        return False
    if prompt is None:
        return True
    words = text[:_MAX_CHARACTERS].casefold().split()
    return len(words) < _MIN_COPIED_WORDS or " ".join(words) not in " ".join(
        prompt.casefold().split()
    )


def _prose(response: ParsedResponse) -> str:
    sections = [text for name in _REASONING if (text := getattr(response, name))]
    return "\n".join(sections)[:_MAX_CHARACTERS] or response.text[:_MAX_CHARACTERS]


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))
