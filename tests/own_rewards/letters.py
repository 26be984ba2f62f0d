"""A reward that any text earns something of, so that a random model's groups are trained on."""

from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


def letters(response: ParsedResponse, reference: Reference) -> float:
    """Another number for almost every other text, in [0, 1]."""
    return sum(map(ord, response.text)) % 97 / 96
