"""Which token is drawn: a function of the run's seed, the prompt, the answer and the position.

Every engine draws by the numbers of this module, so it has no random stream. A prompt that is asked
again - after a resumption, by the replacement of a lost worker, by another worker, beside other
prompts - is answered with the same draws; another prompt_id, answer or position has others.

    key     64 bits of BLAKE2b of (seed, prompt_id, number of the answer)
    number  in [0, 1): output `position` of SplitMix64 that starts at the key
            (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators")
    token   the first whose cumulative probability exceeds the number

One number an answer and token suffices, where the Gumbel trick needs one for each word of the
vocabulary. Probabilities are added up as integers, so sums are exact whatever the kernel, and
a token of probability 0 is never drawn.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch

EXTRA_ARG = "actrep_keys"
"""Name of the keys among vLLM's own settings of a request."""

_UNIT = 2.0**52  # of probability; one that is smaller than 1 / _UNIT is never drawn
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def answer_keys(seed: int, prompt_id: str, num_answers: int) -> list[int]:
    """What decides the draws of each answer to a prompt: 64-bit numbers."""
    texts = (f"{seed}/{prompt_id}/{index}" for index in range(num_answers))
    return [int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) for text in texts]


def numbers(keys: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1), one for each pair of an answer's key and a position: float64 [B]."""
    start = np.array(keys, dtype=np.uint64)
    mixed = start + (np.array(positions, dtype=np.uint64) + np.uint64(1)) * _GAMMA
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(12)) / _UNIT)  # 52 bits


def draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A token for each row.

    Args:
        probabilities: float32 [B, V]; their sums may be off by rounding.
        numbers: float64 [B], in [0, 1).

    Returns:
        int64 [B]; in a row with NaN any token.
    """
    reached = (probabilities * _UNIT).to(torch.int64).cumsum(dim=-1)
    wanted = (numbers.to(reached.device) * reached[:, -1]).to(torch.int64)
    tokens = torch.searchsorted(reached, wanted[:, None], right=True)[:, 0]
    return tokens.clamp_(max=probabilities.shape[-1] - 1)
