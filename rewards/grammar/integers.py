"""Integers as models write them: digits, full-width digits and English number words."""

import re
from functools import cache
from typing import Final

MAX_COUNT: Final = 999_999  # larger integers are reported as "too_large"

_FULL_WIDTH = str.maketrans("０１２３４５６７８９", "0123456789")
_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_APPROXIMATE = re.compile(
    r"(about|around|approx|roughly|nearly|almost|circa|ca\.|at least|at most|over|under"
    r"|more than|less than|~|≈|>|<)"
)


def read_integer(text: str) -> tuple[int | None, str | None]:
    """Read an integer from 0 to `MAX_COUNT`: (value, None), or (None, what it is instead).

    Digits, full-width digits ("１２") and English number words ("twenty-one") are read. Everything
    else is named and not guessed at: "empty", "too_large", "negative" ("-5"), "decimal" ("3.5"),
    "range" ("12 to 15"), "approximate" ("about 12"), or "not_integer" ("2²", "10 reps").
    """
    stripped = text.strip()
    if not stripped:
        return None, "empty"
    value = _plain_integer(stripped)
    if value is not None:
        return (value, None) if value <= MAX_COUNT else (None, "too_large")
    if len(stripped) > 64:  # no number is written so long, and classifying it is not worth the time
        return None, "not_integer"
    lowered = stripped.lower()
    if re.match(r"(?:[-−–]\s*|minus |negative )", lowered):
        rest = re.sub(r"^(?:[-−–]\s*|minus |negative )", "", lowered)
        return None, "negative" if _is_number(rest) else "not_integer"
    if _is_number(lowered):
        return None, "decimal"
    match = re.fullmatch(r"(.+?)\s*(?:\bto\b|\bor\b|-|–|—|\.\.+)\s*(.+)", lowered)
    if match and _is_number(match[1]) and _is_number(match[2]):
        return None, "range"
    if match := _APPROXIMATE.match(lowered):
        return None, "approximate"
    return None, "not_integer"


def _plain_integer(text: str) -> int | None:
    """The value of digits or number words; anything above `MAX_COUNT` for a longer digit string."""
    digits = text.translate(_FULL_WIDTH)
    if digits.isascii() and digits.isdigit():
        significant = digits.lstrip("0") or "0"
        return int(significant) if len(significant) <= 6 else MAX_COUNT + 1
    return _number_word(text) if len(text) <= 64 else None


def _is_number(text: str) -> bool:
    folded = text.strip().translate(_FULL_WIDTH)
    is_decimal = re.fullmatch(r"[0-9]+(?:[.,][0-9]+)?|[.,][0-9]+", folded)
    return is_decimal is not None or _number_word(folded) is not None


def _number_word(text: str) -> int | None:
    """The value of an English number word below a million, for example "one hundred and five"."""
    words = " ".join(text.lower().replace("-", " ").split())
    thousands, separator, rest = words.partition(" thousand")
    below = _words_below_thousand()
    if not separator:
        return below.get(words)
    high = below.get(thousands)
    low = below.get(rest.strip().removeprefix("and ")) if rest else 0
    return None if not high or low is None or (rest and not low) else high * 1000 + low


@cache
def _words_below_thousand() -> dict[str, int]:
    units, tens = _UNITS.split(), _TENS.split()
    words = {word: i for i, word in enumerate(units)}
    for i, ten in enumerate(tens, start=2):
        words[ten] = 10 * i
        words.update({f"{ten} {units[j]}": 10 * i + j for j in range(1, 10)})
    small = [(word, value) for word, value in words.items() if value]
    for i in range(1, 10):
        hundred = f"{units[i]} hundred"
        words[hundred] = 100 * i
        for word, value in small:
            words[f"{hundred} {word}"] = words[f"{hundred} and {word}"] = 100 * i + value
    return words
