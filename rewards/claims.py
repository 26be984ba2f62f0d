"""What an answer claims of the count, in three places, and which of them is the answer's count.

    rep1: 0.5-1.2s          the list: how many repetitions are listed
    Total: 1                the total
    <answer>1</answer>      the answer tag

A model that reasons claims the same number three times; one that cannot read its own list does not.
"""

from rewards.grammar.read import ParsedResponse


def model_count(response: ParsedResponse) -> int | None:
    """The count of an answer: the integer in its answer tag, None where it holds none.

    The one rule, of rewards, evaluations and `actrep count` alike: it is what anybody reads who
    asks the model. Whether the list and the total say the same is a figure beside it.
    """
    return response.count


def num_listed(response: ParsedResponse) -> int | None:
    """How many repetitions an answer lists; None where it has no reasoning to list them in."""
    return None if response.dialect is None else len(response.cycles)
