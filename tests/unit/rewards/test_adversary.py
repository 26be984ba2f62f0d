"""Degenerate answers, each given the right number where it can be, against an honest off-by-one.

Every entry of the catalogue knows the true count, which is the worst case: it stands for a policy
that found a way to the number without the work. None may earn more than an answer that did the
work and is wrong by one, under the default composition, with and without annotated cycles.
"""

from collections.abc import Callable

import numpy as np
import pytest

from rewards.compose import DEFAULT_SPEC, score
from rewards.grammar.layout import Cycle
from rewards.grammar.write import Response, render, round_cycles
from rewards.reference import Reference

PROMPT = """How many times is the action in the video repeated? Answer in this form:
<think>
what you see in the video from its start to its end
One repetition: what one repetition of the action is, from where to where
rep1: 0.5-1.2s
rep2: 1.2-2.0s
Check: whether the repetitions are about as long as each other and where there are gaps
Total: 2
</think>
<answer>2</answer>"""
COUNTS = (1, 2, 3, 5, 9, 10, 11, 20, 50)


def clip(count: int, seed: int, *, is_marked: bool) -> tuple[Reference, tuple[Cycle, ...]]:
    """A clip of irregular repetitions with gaps: its reference and its true cycles."""
    random = np.random.default_rng((count, seed))
    at = float(random.uniform(0.0, 3.0))
    cycles = []
    for _ in range(count):
        at += float(random.choice([0.0, 0.0, random.uniform(0.2, 2.0)]))
        end = at + float(random.uniform(0.4, 3.0))
        cycles.append((at, end))
        at = end
    reference = Reference(
        count=count,
        cycles=tuple(cycles) if is_marked else None,
        duration_s=at + float(random.uniform(3.0, 6.0)),
        prompt=PROMPT,
    )
    return reference, tuple(cycles)


def write(cycles: tuple[Cycle, ...], total: int | None = None, answer: int | None = None) -> str:
    total = len(cycles) if total is None else total
    return render(
        Response(
            observation="A person on a mat bends both arms and straightens them.",
            definition="from straight arms, down, and back to straight arms",
            cycles=round_cycles(cycles),
            check="the repetitions take about as long as each other",
            total=total,
            answer=total if answer is None else answer,
        )
    )


def grid(num: int, length: float) -> tuple[Cycle, ...]:
    return tuple((i * length, (i + 1) * length) for i in range(num))


def honest_off_by_one(cycles: tuple[Cycle, ...]) -> list[str]:
    """One missed, and one seen too many after the last."""
    end = cycles[-1][1] if cycles else 1.0
    more = write((*cycles, (end, end + 1.0)))
    # A clip of one has nothing left to list with one missed: that answer shows no work.
    return [more, write(cycles[:-1])] if len(cycles) > 1 else [more]


def raw_list(num: int, line: str) -> str:
    lines = "".join(f"rep{i}: {line}\n" for i in range(1, num + 1))
    return write(()).replace("Check:", lines + "Check:").replace("0</answer>", f"{num}</answer>") \
        .replace("Total: 0", f"Total: {num}")  # fmt: skip


Cycles = tuple[Cycle, ...]
CATALOGUE: dict[str, Callable[[int, Cycles, float], str]] = {
    "constant 10": lambda g, c, d: write((), 10),
    "constant 10 with a list": lambda g, c, d: write(grid(10, 1.0)),
    "constant 10 with a bare thought": lambda g, c, d: "<think>I counted them.</think>\n"
    "<answer>10</answer>",
    "empty thought": lambda g, c, d: f"<think></think><answer>{g}</answer>",
    "empty sections": lambda g, c, d: f"<think>\n.\nOne repetition: .\nCheck: .\nTotal: {g}\n"
    f"</think>\n<answer>{g}</answer>",
    "intervals 0-0": lambda g, c, d: raw_list(g, "0.0-0.0s"),
    "the same interval again and again": lambda g, c, d: raw_list(g, "0.0-1.0s"),
    "intervals of a tenth": lambda g, c, d: write(grid(g, 0.1)),
    "intervals after the end": lambda g, c, d: write(
        tuple((d + 10 + i, d + 11 + i) for i in range(g))
    ),
    "one interval over the clip, right answer": lambda g, c, d: write(((0.0, d),), g + (g == 1)),
    "one interval over the clip": lambda g, c, d: write(((0.0, d),)),
    "200 listed, right answer": lambda g, c, d: write(grid(200, 0.1), g),
    "200 listed": lambda g, c, d: write(grid(200, 0.1)),
    "200 of a second listed": lambda g, c, d: write(grid(200, 1.0)),
    "prompt copied": lambda g, c, d: PROMPT,
    "prompt copied, right number": lambda g, c, d: (
        PROMPT.replace("Total: 2", f"Total: {g}").replace(">2<", f">{g}<")
    ),
    "answer without reasoning": lambda g, c, d: f"<answer>{g}</answer>",
    "number only": lambda g, c, d: str(g),
    "list without answer": lambda g, c, d: write(c).replace(f"<answer>{g}</answer>", ""),
    "every answer": lambda g, c, d: write(c).replace(
        f"<answer>{g}</answer>", "".join(f"<answer>{n}</answer>" for n in range(60))
    ),
    "range": lambda g, c, d: write(c).replace(f">{g}</answer>", f">{g}-{g + 1}</answer>"),
    "answer inside the thought": lambda g, c, d: write(c).replace("</think>\n", "") + "</think>",
    "one listed too many, right answer": lambda g, c, d: write((*c, (d - 1, d)), g),
    "one listed too few, right answer": lambda g, c, d: write(c[:-1], g),
    "list of half, right answer": lambda g, c, d: write(c[: g // 2], g),
    "right list, other total, right answer": lambda g, c, d: write(c, g + 1, g),
    "right list and total, other answer": lambda g, c, d: write(c, g, g + 1),
    "text around the answer": lambda g, c, d: f"There are {g}. I am sure that it is {g}.",
}  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("is_marked", [True, False], ids=["marked", "unmarked"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_no_degenerate_answer_out_scores_an_honest_off_by_one(name: str, is_marked: bool) -> None:
    for count in COUNTS:
        for seed in range(12):
            reference, cycles = clip(count, seed, is_marked=is_marked)
            assert reference.duration_s is not None
            if not is_marked and is_honest_without_marks(name, count):
                continue
            text = CATALOGUE[name](count, cycles, reference.duration_s)
            degenerate = score(text, reference, DEFAULT_SPEC)
            for honest_text in honest_off_by_one(cycles):
                honest = score(honest_text, reference, DEFAULT_SPEC)
                assert degenerate.total <= honest.total + 1e-12, (count, seed, degenerate, honest)


def is_honest_without_marks(name: str, count: int) -> bool:
    """Answers that are simply right, as far as a reference without marks can tell.

    Whether an interval is where the repetition is cannot be known without marks, so a count that
    is right and agrees with its own plausible list is a right answer there.
    """
    if name in ("constant 10", "constant 10 with a list"):
        return count == 10
    of_one = (  # a list of one, or of none, contradicts nothing where one repetition is right
        "one interval over the clip",
        "the same interval again and again",
        "one listed too few, right answer",
        "list of half, right answer",
    )
    return name == "intervals of a tenth" or (name in of_one and count == 1)


def test_a_constant_is_worth_less_than_off_by_one_on_average_without_marks() -> None:
    constant, honest = [], []
    for count in range(1, 31):
        reference, cycles = clip(count, 0, is_marked=False)
        constant.append(score(write(grid(10, 1.0)), reference).total)
        honest.append(min(score(text, reference).total for text in honest_off_by_one(cycles)))
    assert np.mean(constant) < np.mean(honest)


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_right_answer_earns_everything(is_marked: bool) -> None:
    for count in (0, *COUNTS):
        reference, cycles = clip(count, 1, is_marked=is_marked)
        assert score(write(cycles), reference).total == 1.0


@pytest.mark.parametrize("is_marked", [True, False])
def test_nothing_moves(is_marked: bool) -> None:
    """At a count of 0, an honest 1 still earns more than an answer that shows no work."""
    reference = Reference(count=0, cycles=() if is_marked else None, duration_s=5.0, prompt=PROMPT)
    honest = score(write(((1.0, 2.0),)), reference).total
    for text in (
        "<answer>0</answer>",
        "<think></think><answer>0</answer>",
        "",
        PROMPT.replace("2", "0"),
        raw_list(1, "0.0-0.0s").replace("Total: 1", "Total: 0").replace(">1<", ">0<"),
        write(((1.0, 2.0),), 0),
        write((), 0, 1),
        write((), 1, 0),
    ):
        assert score(text, reference).total <= honest, text
