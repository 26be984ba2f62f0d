"""What to do before a run, from what its start answers: one of four, with the rule behind it.

Reinforcement makes likelier what is sampled already. So answers must be readable and say one thing
(else what is learned is the form), right ones must be among them more often than by luck (else
there is nothing to make likelier), and they must differ within a group (else there is no
gradient). The rules are asked in that order; the first that holds is the advice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MIN_PARSE_RATE = 0.9
"""Below, a run's first gains are those of a repaired form, which SFT teaches in minutes: published
gains of GRPO on counts were just that. A group of 8 with one unreadable answer compares form."""

MIN_CONSISTENT = 0.8
"""Below, more than one answer in five says one count and lists another, and a reward on the answer
pays for the copying of a number, not for counting: a small start with 0.5 gained 0.06 exact by its
answers while by its lists it lost 0.08 (docs/results.md)."""

MIN_ABOVE_BLIND = 0.05
"""Of pass@1 above answers that know nothing of their clip. Below, what is right is right by luck,
and the reward teaches which count is frequent. 0.05 is two standard errors of 128 prompts."""

MIN_PASS_AT_K = 0.25
"""Below, three of four prompts have no right answer in a whole group to make likelier."""

MAX_PASS_AT_1 = 0.9
"""Above, most groups of 8 are right throughout (0.9^8 = 0.43 if answers were independent, and they
are not), and there is a tenth to gain at most."""

MIN_GAIN = 0.1
"""Of pass@k above pass@1: what reinforcement can turn into pass@1 with the answers that it samples.
Less is within the 95% interval of an evaluation on 100 clips."""

MIN_USEFUL = 0.3
"""Share of groups that are trained on. Below, more than two thirds of the generation is thrown
away, which is most of a step's time, and the batch is too small for the learning rate."""

AdviceName = Literal["SFT first", "raise the temperature", "harder data", "ready"]


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        name: What to do, in a word or two.
        reason: The rule that says so, with the figures and the limits in it.
    """

    name: AdviceName
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def advise(figures: Mapping[str, float], flat_reasons: Mapping[str, float], k: int) -> Advice:
    """The first rule that holds, or that all is well.

    Args:
        figures: `parse_rate`, `pass_at_1`, `pass_at_k`, `blind`, `useful`, and `consistent` if the
            task knows of it; all are shares.
        flat_reasons: Shares of groups that are dropped since their answers earn the same, by
            reason.
        k: Answers of a prompt, as of `pass_at_k`.
    """
    return (
        _form(figures)
        or _sight(figures, k)
        or _room(figures, k)
        or _contrast(figures, flat_reasons)
        or Advice(
            "ready",
            f"pass@{k} {figures['pass_at_k']:.2f} is {_gain(figures):.2f} above pass@1 "
            f"{figures['pass_at_1']:.2f} (at least {MIN_GAIN:g}), and {figures['useful']:.0%} of "
            f"the groups are trained on (at least {MIN_USEFUL:.0%})",
        )
    )


def _form(figures: Mapping[str, float]) -> Advice | None:
    """Whether answers can be read and say one thing."""
    if figures["parse_rate"] < MIN_PARSE_RATE:
        return Advice(
            "SFT first",
            f"{figures['parse_rate']:.0%} of the answers can be read (at least "
            f"{MIN_PARSE_RATE:.0%}): reinforcement would learn the form, not to count",
        )
    consistent = figures.get("consistent", 1.0)
    if consistent < MIN_CONSISTENT:
        return Advice(
            "SFT first",
            f"list, total and answer agree in {consistent:.0%} of the answers (at least "
            f"{MIN_CONSISTENT:.0%}): reinforcement would learn to copy a number, not to count",
        )
    return None


def _sight(figures: Mapping[str, float], k: int) -> Advice | None:
    """Whether right answers come of what is seen, and come at all."""
    pass_at_1, pass_at_k, blind = (figures[n] for n in ("pass_at_1", "pass_at_k", "blind"))
    if pass_at_1 < MAX_PASS_AT_1 and pass_at_1 - blind < MIN_ABOVE_BLIND:
        return Advice(
            "SFT first",
            f"pass@1 {pass_at_1:.2f} is what the same answers earn on other clips, {blind:.2f} (at "
            f"least {MIN_ABOVE_BLIND:g} above): the model does not look at the video yet",
        )
    if pass_at_k < MIN_PASS_AT_K:
        return Advice(
            "SFT first",
            f"pass@{k} is {pass_at_k:.2f} (at least {MIN_PASS_AT_K:g}): most prompts have no right "
            "answer to make likelier; teach more clips of this kind, or take easier ones",
        )
    return None


def _room(figures: Mapping[str, float], k: int) -> Advice | None:
    """Whether there is anything to gain."""
    pass_at_1, gain = figures["pass_at_1"], _gain(figures)
    if pass_at_1 > MAX_PASS_AT_1:
        return Advice(
            "harder data",
            f"pass@1 is {pass_at_1:.2f} already (at most {MAX_PASS_AT_1:g}): there is little left "
            "to win on these clips",
        )
    if gain < MIN_GAIN:
        return Advice(
            "raise the temperature",
            f"pass@{k} {figures['pass_at_k']:.2f} is only {gain:.2f} above pass@1 {pass_at_1:.2f} "
            f"(at least {MIN_GAIN:g}): {k} answers find hardly more than one does",
        )
    return None


def _contrast(figures: Mapping[str, float], flat_reasons: Mapping[str, float]) -> Advice | None:
    """Whether enough groups have answers that earn differently; if not, how they are equal."""
    if figures["useful"] >= MIN_USEFUL:
        return None
    told = f"{figures['useful']:.0%} of the groups are trained on (at least {MIN_USEFUL:.0%})"
    most = max(flat_reasons, key=lambda reason: flat_reasons[reason], default="")
    share = flat_reasons.get(most, 0.0)
    if most == "all_right":
        return Advice("harder data", f"{told}: in {share:.0%} all answers earn everything")
    if most == "all_wrong":
        return Advice("SFT first", f"{told}: in {share:.0%} all answers earn nothing")
    return Advice("raise the temperature", f"{told}: answers of one prompt are too much alike")


def _gain(figures: Mapping[str, float]) -> float:
    return figures["pass_at_k"] - figures["pass_at_1"]
