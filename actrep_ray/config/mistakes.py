"""What is wrong with the values of a recipe, in words: all of it, not only what is found first.

A rule between several settings can be judged only where each of them is valid. So settings that are
faulty are put back to their defaults and the rest is judged again, until nothing new is found;
what was judged by a default that stands in for a faulty setting is not told.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from actrep_ray.config.presets import PRESETS
from actrep_ray.config.recipe import Recipe
from actrep_ray.config.section import ContradictionError, Section


class Mistake(NamedTuple):
    """What is wrong with some settings.

    Attributes:
        keys: Their dotted keys, which are not to be relied on.
        message: What is wrong, in one line.
        meant: A key that may have been meant, which is not to be relied on either.
    """

    keys: tuple[str, ...]
    message: str
    meant: tuple[str, ...] = ()

    def is_about(self, key: str) -> bool:
        """Whether a setting, one within it or one around it, has to do with it."""
        return any(_overlap(key, other) for other in self.keys)


def explain(
    error: ValidationError, values: Mapping[str, Any], unread: AbstractSet[str] = frozenset()
) -> list[Mistake]:
    """Every mistake, each told in one line.

    Args:
        error: What pydantic found in the values.
        values: The nested settings.
        unread: Dotted keys whose values could not be read and are missing from `values`.
    """
    told: list[Mistake] = []
    faulty = set(unread)
    while True:
        found = [mistake for details in error.errors() for mistake in _mistakes(details, faulty)]
        told += found
        faulty.update(*(mistake.keys + mistake.meant for mistake in found))
        rest = _without(values, faulty)
        if rest == values:  # nothing is left that could be put back
            return told
        values = rest
        try:
            Recipe.model_validate(values)
        except ValidationError as again:
            error = again
        else:
            return told


def _mistakes(details: ErrorDetails, faulty: AbstractSet[str]) -> Iterator[Mistake]:
    """The mistakes in one finding of pydantic's.

    Args:
        details: The finding.
        faulty: Keys of earlier ones; a rule that read one of them is not judged.
    """
    location = tuple(str(part) for part in details["loc"])
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, ContradictionError):
        for found in cause.found:
            if not any(_overlap(key, other) for key in found.keys for other in faulty):
                yield Mistake(found.keys, found.message)
    elif details["type"] in ("extra_forbidden", "invalid_key"):
        yield _unknown_key(location)
    else:
        rule = details["msg"].removeprefix("Value error, ")
        message = f"{'.'.join(location)}={_shown(details['input'])}: {rule}"
        yield Mistake(_settings_at(location), message)


def _unknown_key(location: tuple[str, ...]) -> Mistake:
    """The nearest known key may be the one that was meant, so it is not relied on either."""
    *sections, name = location
    known = list(_section_at(sections).model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
    key, *meant = (".".join([*sections, one]) for one in (name, *near))
    return Mistake((key,), f"unknown key {key!r}{hint}", tuple(meant))


def _settings_at(location: tuple[str, ...]) -> tuple[str, ...]:
    """The setting at a location in the values: `learner.betas` of `learner.betas.0`.

    With a preset go the settings that presets stand for.
    """
    section: type[Section] | None = Recipe
    names: list[str] = []
    for name in location:
        if section is None:
            break
        names.append(name)
        section = _subsection(section, name)
    key = ".".join(names)
    if key != "algorithm.preset":
        return (key,)
    of_presets = {f"algorithm.{name}" for preset in PRESETS.values() for name in preset}
    return (key, "reward.weights", *sorted(of_presets))


def _section_at(names: Sequence[str]) -> type[Section]:
    section: type[Section] = Recipe
    for name in names:
        below = _subsection(section, name)
        assert below is not None, f"{name} is no section"
        section = below
    return section


def _subsection(section: type[Section], name: str) -> type[Section] | None:
    field = section.model_fields.get(name)
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text)} characters)"


def _overlap(key: str, other: str) -> bool:
    """Whether one setting is the other or lies within it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _without(values: Mapping[str, Any], keys: AbstractSet[str], prefix: str = "") -> dict[str, Any]:
    """A copy of nested settings without those of these dotted keys."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in keys:
            rest[name] = _without(value, keys, f"{key}.") if isinstance(value, dict) else value
    return rest
