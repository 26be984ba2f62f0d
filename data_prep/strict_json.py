"""Strict JSON: no key twice, no NaN or Infinity, no number beyond 64 bits, no half characters.

Owns the decoder and the words for what it refuses; files are read by `data_prep.files`.
"""

import json
import math
import re
from typing import Any

_MAX_INTEGER = 2**63 - 1
_MAX_DIGITS = 4000  # of any integer; Python refuses to convert a few more
_MAX_DEPTH = 100
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}\n]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A text that is not the strict JSON that is read here.

    Attributes:
        line: Line of the text, from 1; None where it is not known.
        token: What is wrong in the text, where it is known.
        is_cut: Whether the text may be the beginning of one that is JSON.
    """

    def __init__(
        self, message: str, line: int | None = None, *, token: str = "", is_cut: bool = False
    ) -> None:
        super().__init__(message)
        self.line = line
        self.token = token
        self.is_cut = is_cut


def parse_json(
    text: str, *, allows_any_number: bool = False, allows_surrogates: bool = False
) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        allows_any_number: Whether NaN, Infinity and numbers beyond 64 bits may be in it, for those
            who look at every number themselves.
        allows_surrogates: Whether strings may hold halves of surrogate pairs.

    Raises:
        JsonError: saying what is wrong.
    """
    decode = _ANY_NUMBER.decode if allows_any_number else _STRICT.decode
    try:
        value = decode(text)
    except json.JSONDecodeError as error:
        message = f"not JSON ({error.msg} at character {error.colno})"
        raise JsonError(message, error.lineno, is_cut=error.msg != "Extra data") from error
    except RecursionError:
        raise JsonError("not JSON that can be read (nested too deeply)", _deepest(text)) from None
    except JsonError as error:
        raise JsonError(str(error), _line_of(error.token, text)) from None
    if not allows_surrogates and _SURROGATE.search(text) is not None:
        _refuse_surrogates(value, text)
    return value


def is_text(text: str) -> bool:
    """Whether a string is one that UTF-8 can hold: no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs, for `json.JSONDecoder(object_pairs_hook=...)`.

    Raises:
        JsonError: naming a key that is given twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise JsonError(f"key {repeated!r} is given twice", token=json.dumps(repeated))
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{_shortened(text)}, expected a number within a float's range", token=text)
    return value


def _bounded(text: str) -> int:
    if len(text) > len(str(_MAX_INTEGER)) + 1 or abs(int(text)) > _MAX_INTEGER:
        raise JsonError(f"{_shortened(text)}, expected an integer within 64 bits", token=text)
    return int(text)


def _readable(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise JsonError(f"{_shortened(text)}, expected at most {_MAX_DIGITS} digits", token=text)
    return int(text)


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"{name}, expected a finite number", token=name)


_STRICT = json.JSONDecoder(
    object_pairs_hook=unique_keys,
    parse_float=_finite,
    parse_int=_bounded,
    parse_constant=_refuse_constant,
)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=_readable)


def _line_of(token: str, text: str) -> int | None:
    """The line of a token that the decoder named without its place; the last of its kind."""
    at = text.rfind(token)
    return None if at < 0 else text.count("\n", 0, at) + 1


def _deepest(text: str) -> int:
    """The line in which the nesting passes a depth that no file of ours has."""
    line, depth = 1, 0
    for found in _BRACKET.finditer(text):
        line += found[0].count("\n")
        depth += (found[0] in "[{") - (found[0] in "]}")
        if depth > _MAX_DEPTH:
            break
    return line


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"


def _refuse_surrogates(value: Any, text: str) -> None:
    """An escape of a half is only legal beside that of the other; values hold what was alone."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        line = text.count("\n", 0, max(text.lower().find(half), 0)) + 1
        message = f"{half} is half of a surrogate pair, expected a whole character"
        raise JsonError(message, line) from None
