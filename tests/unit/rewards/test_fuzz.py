"""200,000 random and mutated texts through the parser and every reward.

Bulk mutation from one seeded generator, since this many draws of a property-testing library would
take an hour; the properties themselves are tested with hypothesis beside each module.
"""

import random
from collections.abc import Callable, Iterator

import pytest

from rewards.catalogue import PENALTIES, REWARDS
from rewards.compose import RewardSpec, score
from rewards.grammar.layout import REQUIRED_SECTIONS
from rewards.grammar.read import ParsedResponse, parse
from rewards.grammar.write import Response, render
from rewards.reference import Reference

pytestmark = pytest.mark.lengthy

NUM_TEXTS = 200_000
NUM_SHARDS = 4

PIECES = (
    "<think>", "</think>", "<thinking>", "</thinking>", "<answer>", "</answer>", "\n", " ", "\r\n",
    "rep1: 0.5-1.2s\n", "rep2: 1.2-2.0s\n", "rep3-5: 2.0-2.5-3.0-3.5s\n", "rep", "rep9:", "-", "s",
    "One repetition: down and up\n", "One repetition:", "Check: even\n", "Check:", "Total: 3\n",
    "Total:", "Total: ３\n", "3", "3.5", "-5", "12 to 15", "about 12", "twenty-one", "one hundred",
    "²", "٣", "９", "9" * 50, "0", "0.0-0.0s", "1e9", "nan", "inf", "\x00", "\ud800", "\u2028", "é",
    "squat", "A person squats.", "<", ">", "</", "{}", "\\", "%s", "None", "<|im_end|>", "<ans",
)  # fmt: skip


def seeds_to_mutate() -> list[str]:
    texts = []
    for num, joined in ((0, False), (1, False), (3, False), (8, True), (30, None)):
        cycles = tuple((i * 0.5, i * 0.5 + 0.5) for i in range(num))
        response = Response("A person squats.\nTwice.", "down and up", cycles, "even", num, num)
        texts += [render(response, joined=joined), render(response, dialect="thinking")]
    return texts


def generate(seed: int, num: int) -> Iterator[str]:
    """One in four texts is put together from pieces; the others are answers with 1-4 edits."""
    rng = random.Random(seed)
    bases = seeds_to_mutate()
    for i in range(num):
        if i % 4 == 0:
            yield "".join(rng.choices(PIECES, k=rng.randrange(16)))
            continue
        text = rng.choice(bases)
        for _ in range(rng.randint(1, 4)):
            a = rng.randrange(len(text) + 1)
            b = min(len(text), a + rng.choice((0, 1, 1, 2, 8, 40)))
            kind = rng.randrange(4)
            if kind == 0:  # replace
                text = text[:a] + rng.choice(PIECES) + text[b:]
            elif kind == 1:  # delete
                text = text[:a] + text[b:]
            elif kind == 2:  # repeat
                text = text[:b] + text[a:b] * rng.randint(1, 3) + text[b:]
            else:  # another character
                text = text[:a] + chr(rng.randrange(32, 0x3000)) + text[a + 1 :]
        yield text


REFERENCES = (
    Reference(
        count=3,
        cycles=((0.0, 0.5), (0.5, 1.0), (1.0, 1.5)),
        duration_s=4.0,
        label="squat",
        prompt="How often does the person in the video squat? Think, then answer.",
        num_tokens=50,
        max_tokens=60,
    ),
    Reference(count=0, cycles=()),
    Reference(count=8, label="3"),
)
BOUNDS = {name: (-1.0, 0.0) if name in PENALTIES else (0.0, 1.0) for name in REWARDS}


@pytest.mark.lengthy
@pytest.mark.parametrize("shard", range(NUM_SHARDS))
def test_every_text_has_a_result_and_every_reward_its_range(
    response_of: Callable[[ParsedResponse], Response], shard: int
) -> None:
    rewards = [(name, reward, *BOUNDS[name]) for name, reward in REWARDS.items()]
    num_well_formed = num_counts = 0
    for i, text in enumerate(generate(shard, NUM_TEXTS // NUM_SHARDS)):
        response = parse(text)
        reference = REFERENCES[i % len(REFERENCES)]
        for name, reward, low, high in rewards:
            value = reward(response, reference)
            # A NaN fails the comparison as well.
            assert value is None or low <= value <= high, (name, value, text)
        assert (response.count is None) == (response.answer_problem is not None), text
        if response.is_well_formed:
            num_well_formed += 1
            assert response.sections >= REQUIRED_SECTIONS
            written = response_of(response)
            assert response_of(parse(render(written))) == written
        num_counts += response.count is not None
    # The mutations reach both sides: neither everything nor nothing is broken.
    assert num_well_formed > 1_000
    assert num_counts > 10_000


def test_totals_stay_in_their_range() -> None:
    spec = RewardSpec.from_mapping(dict.fromkeys(REWARDS, 1.0))
    for i, text in enumerate(generate(NUM_SHARDS, 5_000)):
        assert 0.0 <= score(text, REFERENCES[i % len(REFERENCES)], spec).total <= 1.0
        assert 0.0 <= score(text, REFERENCES[i % len(REFERENCES)]).total <= 1.0
