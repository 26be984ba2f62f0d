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
    answer = normalize_label(response.answer_text or "")
    names = {normalize_label(name) for name in (reference.label, *reference.aliases)}
    return float(bool(answer) and answer in names)


def normalize_label(label: str) -> str:
    """A class name in lower case with single spaces: " Jumping_Jack." is "jumping jack"."""
    words = label.casefold().translate(_SPACES).split()
    return " ".join(words).strip(_AROUND)
