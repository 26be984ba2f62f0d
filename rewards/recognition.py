"""Recognition rewards: is the class in the answer tag the right one, and is it said briefly.

Exact match after normalising case, spaces, underscores, hyphens and the punctuation around a name.
Never a substring: an empty answer is part of every label, and a list of all classes contains the
right one. What stands inside a name is part of it: "squat, lunge" is one name that no class has.

Two options that are off by default::

    recognition: {weight: 0.9, parents: "arms: wave, clap; legs: kick, lunge", same_parent: 0.3}
    brevity: {weight: 0.1, words: 30}
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

_SPACES: Final = str.maketrans("_-‐‑", "    ")
_TAGS: Final = re.compile(r"</?(?:think|thinking|answer)>")
_AROUND: Final = " .,;:!?\"'`*“”‘’«»()[]{}。！？"


def recognition(
    response: ParsedResponse,
    reference: Reference,
    *,
    parents: str = "",
    same_parent: float = 0.5,
) -> float | None:
    """1 if the answer is the label or one of its aliases, else 0; None without a label.

    Args:
        response: The answer.
        reference: Its label and aliases count.
        parents: A hierarchy of classes, "PARENT: CLASS, CLASS; PARENT: CLASS, ...". Empty: none.
        same_parent: What another class of the same parent earns.

    Raises:
        ValueError: for a hierarchy that cannot be read, or a share that is not within [0, 1].
    """
    parent_of = _parents(parents)
    if not 0.0 <= same_parent <= 1.0:
        raise ValueError(f"same_parent={same_parent!r}, expected 0 to 1")
    if reference.label is None:
        return None
    said, names = normalize_label(response.answer_text or ""), names_of(reference)
    if said in names:
        return 1.0
    right = {parent_of[name] for name in names if name in parent_of}
    return float(same_parent) if parent_of.get(said) in right else 0.0


def brevity(response: ParsedResponse, reference: Reference, *, words: int = 30) -> float | None:
    """1 for the right class in at most `words` words, beyond them words / their number; else 0.

    None without a label. Words are those of the whole answer, reasoning included and the tags
    of an answer not; what is written without blanks between words is one. A
    wrong class earns nothing, however briefly it is said.

    Raises:
        ValueError: if `words` is below 1.
    """
    if words < 1:
        raise ValueError(f"words={words!r}, expected at least 1")
    if reference.label is None:
        return None
    if not recognition(response, reference):
        return 0.0
    num_words = len(_TAGS.sub(" ", response.text).split())
    return min(1.0, words / max(1, num_words))


def names_of(reference: Reference) -> frozenset[str]:
    """All names that are right, normalised; none of them is empty."""
    names = (reference.label or "", *reference.aliases)
    return frozenset(filter(None, map(normalize_label, names)))


def normalize_label(label: str) -> str:
    """A class name in lower case with single spaces: " Jumping_Jack." is "jumping jack"."""
    words = label.casefold().translate(_SPACES).split()
    return " ".join(words).strip(_AROUND)


@lru_cache(maxsize=16)
def _parents(text: str) -> Mapping[str, str]:
    """Parent by class: "arms: wave, clap" -> wave: arms, clap: arms."""
    found: dict[str, str] = {}
    for group in filter(str.strip, text.split(";")):
        parent, colon, classes = (part.strip() for part in group.partition(":"))
        names = [normalize_label(name) for name in classes.split(",")]
        if not colon or not parent or not all(names):
            raise ValueError(f"parents: {group.strip()!r}, expected PARENT: CLASS, CLASS, ...")
        for name in names:
            if found.setdefault(name, parent) != parent:
                raise ValueError(f"parents: {name!r} is of {found[name]!r} and of {parent!r}")
    return MappingProxyType(found)
