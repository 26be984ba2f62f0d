"""What every section of a recipe is made of: kinds of values, and rules that join several of them.

A value of the wrong type or range is found by pydantic. What does not go together is told by
`Section.contradictions`, each with the keys that it was read from, so that all mistakes of a recipe
can be told at once (see `mistakes`).
"""

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_NONE_WORDS = ("none", "null")


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names the key, value and rule."""


class Contradiction(NamedTuple):
    """Settings that do not go together.

    Attributes:
        keys: Dotted names of the settings that were compared.
        message: What is wrong and what to change.
    """

    keys: tuple[str, ...]
    message: str


class ContradictionError(ValueError):
    """Contradictions of one section, all of them.

    Args:
        found: At least one.
    """

    def __init__(self, found: Iterable[Contradiction]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(one.message for one in self.found))


class Section(BaseModel):
    """Settings that belong together: frozen, without unknown keys, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Settings that do not go together, each of them valid when taken alone."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            name: none_of_word(value, fields[name].annotation) if name in fields else value
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        found = tuple(self.contradictions())
        if found:
            raise ContradictionError(found)
        return self


def _no_boolean(value: Any) -> Any:
    """The value; `true` is no number, although Python counts it as 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def number_of_text(value: Any) -> Any:
    """The number that a text stands for, since YAML 1.1 reads `1e-6` as text; else the value."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def none_of_word(value: Any, kind: Any) -> Any:
    """The value, where YAML's null and the word `none` may stand for each other.

    null becomes the word where that is one of the words to choose from, and the word null where a
    setting may be null and neither is such a word nor any text.

    Args:
        value: As it was given.
        kind: Annotation of the setting.
    """
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [
        word for member in members if get_origin(member) is Literal for word in get_args(member)
    ]
    named = [word for word in _NONE_WORDS if word in words]
    is_nullable = type(None) in members
    if value is None and named and not is_nullable:
        return named[0]
    is_word = isinstance(value, str) and value.lower() in _NONE_WORDS
    return None if is_word and is_nullable and not named and str not in members else value


# Ceilings are far above what anybody means, and below what a clock, a file or a seed can hold.
MOST = 10**9
MOST_WORKERS = 10_000
LARGEST_SEED = 2**32 - 1  # of NumPy's generators

Float = Annotated[
    float,
    BeforeValidator(number_of_text),
    BeforeValidator(_no_boolean),
    Field(ge=-MOST, le=MOST),
]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Seconds = Annotated[Float, Field(gt=0, le=10**7)]
SecondsOrZero = Annotated[Float, Field(ge=0, le=10**7)]
LearningRate = Annotated[Float, Field(gt=0, le=1)]
Integer = Annotated[int, BeforeValidator(_no_boolean), Field(ge=-MOST, le=MOST)]
Whole = Annotated[Integer, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1)]
Workers = Annotated[Integer, Field(ge=1, le=MOST_WORKERS)]
