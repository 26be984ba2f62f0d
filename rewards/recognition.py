"""Recognition reward: is the class in the answer tag the right one.

Exact match after normalising case, spaces, underscores, hyphens and the punctuation around a name.
Never a substring: an empty answer is part of every label, and a list of all classes contains the
right one. What stands inside a name is part of it: "squat, lunge" is one name that no class has.
"""

from typing import Final

from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

_SPACES: Final = str.maketrans("_-‐‑", "    ")
_AROUND: Final = " .,;:!?\"'`*“”‘’«»()[]{}。！？"


def recognition(response: ParsedResponse, reference: Reference) -> float | None:
    """1 if the answer is the label or one of its aliases, else 0; None without a label."""
    if reference.label is None:
        return None
    return float(normalize_label(response.answer_text or "") in names_of(reference))


def names_of(reference: Reference) -> frozenset[str]:
    """All names that are right, normalised; none of them is empty."""
    names = (reference.label or "", *reference.aliases)
    return frozenset(filter(None, map(normalize_label, names)))


def normalize_label(label: str) -> str:
    """A class name in lower case with single spaces: " Jumping_Jack." is "jumping jack"."""
    words = label.casefold().translate(_SPACES).split()
    return " ".join(words).strip(_AROUND)
