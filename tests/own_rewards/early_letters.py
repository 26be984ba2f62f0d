"""A reward that a model without any training learns within some dozen steps."""

from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


def early_letters(response: ParsedResponse, reference: Reference) -> float:
    """The share of an answer's characters that come before "n", in [0, 1]."""
    text = response.text
    return sum(letter < "n" for letter in text) / max(len(text), 1)
