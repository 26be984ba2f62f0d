"""Count rewards as parts of a composition: what a claimed count earns, and on what evidence."""

from rewards.claims import model_count
from rewards.contract import Reward
from rewards.count import MAX_VALUES, count_reward
from rewards.cycles import close_pairs, valid_cycles
from rewards.format import has_reasoning
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


def count_part(variant: str, default_evidence: str) -> Reward:
    """A reward that scales `rewards.count.VARIANTS[variant]` to [0, 1]."""

    def reward(
        response: ParsedResponse, reference: Reference, *, evidence: str = default_evidence
    ) -> float | None:
        return _count(variant, response, reference, evidence)

    reward.__name__ = variant
    reward.__doc__ = f"`rewards.count.{variant}`, scaled to [0, 1]; evidence={default_evidence!r}."
    return reward


def _count(
    variant: str, response: ParsedResponse, reference: Reference, evidence: str
) -> float | None:
    """A count reward as a part, in [0, 1]; None without a count.

    evidence="answer" looks at the model's count alone (`model_count`), as published.
    evidence="worked" credits an answer with its working only: the reward is that of the WORST
    number claimed (answer, total, and the cycles, both listed and valid, where cycles are annotated
    or listed), 0 where one is missing or the reasoning says nothing, and at most that of an
    off-by-one where no listed cycle matches any annotated one. So a right answer beside a
    contradicting or invented list earns no more than an honest off-by-one, and every error is still
    graded.
    """
    if evidence not in ("answer", "worked"):
        raise ValueError(f"evidence={evidence!r}, expected 'answer' or 'worked'")
    if reference.count is None:
        return None
    target = reference.count
    if evidence == "answer":
        value = count_reward(variant, model_count(response), target)
    elif not has_reasoning(response, reference):
        value = 0.0
    else:
        value = _worst_claim(variant, response, reference, target)
    return value / MAX_VALUES[variant]


def _worst_claim(
    variant: str, response: ParsedResponse, reference: Reference, target: int
) -> float:
    valid = valid_cycles(response.cycles, reference)
    claims = [response.count, response.total]
    if response.cycles or reference.cycles:
        claims += [len(response.cycles), len(valid)]
    value = min(count_reward(variant, claim, target) for claim in claims)
    if reference.cycles and not (valid and close_pairs(valid, reference.cycles).any()):
        value = min(value, count_reward(variant, target + 1, target))
    return value
