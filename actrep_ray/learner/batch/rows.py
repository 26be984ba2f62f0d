"""Rows of a batch: what may be trained on, mini-batches, each rank's shard, values of its tokens.

Every rank is given the same rows and follows the same rules, so no rank has to ask another.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from actrep_ray.config import TrainConfig
from actrep_ray.learner.batch.packing import AnswerKey, PackedBatch, packed_length
from actrep_ray.learner.ranks import Ranks
from actrep_ray.records import LearnerRow

TokenValues = dict[AnswerKey, np.ndarray]
"""Values of an answer's tokens, float32 [R_i]."""


def check_rows(rows: Sequence[LearnerRow], visual_token_ids: Sequence[int]) -> None:
    """Refuse rows that cannot be trained on.

    Raises:
        ValueError: if there is none, an answer holds a visual token, or advantages are not a
            finite number for each answer; the row is named.
    """
    if not rows:
        raise ValueError("no group or clip to train on")
    visual = set(visual_token_ids)
    for row in rows:
        for a, response in enumerate(row.responses):
            if found := visual.intersection(response.tolist()):
                raise ValueError(
                    f"{row.row_id}: answer {a} holds the visual token {min(found)}; "
                    "an answer is text"
                )
        num_answers = len(row.responses)
        if len(row.advantages) != num_answers:
            raise ValueError(
                f"{row.row_id}: {num_answers} answers and {len(row.advantages)} advantages"
            )
        if not np.isfinite(row.advantages).all():
            raise ValueError(f"{row.row_id}: advantages={row.advantages}, expected finite numbers")
        if row.credit and [len(c) for c in row.credit] != [len(r) for r in row.responses]:
            raise ValueError(f"{row.row_id}: credit is not of each token of its answers")


def mini_batches(num_rows: int, cfg: TrainConfig) -> list[list[int]]:
    """Numbers of the rows of each optimiser step: consecutive ones, cut evenly.

    As many mini-batches as `mini_batch_size` asks for, their sizes at most one row apart; one less
    where the smallest would hold half of that or less: its noisy gradient would be a whole step.
    Of 63 rows and 2 a mini-batch, 31 are made, one of them of 3, and none of a single row.
    """
    if cfg.mini_batch_size is None or num_rows == 0:
        return [list(range(num_rows))] if num_rows else []
    size = cfg.mini_batch_size // cfg.group_size
    num = -(-num_rows // size)
    if num > 1 and 2 * (num_rows // num) <= size:
        num -= 1
    least, num_larger = divmod(num_rows, num)
    sizes = [least + 1] * num_larger + [least] * (num - num_larger)
    numbers = iter(range(num_rows))
    return [list(islice(numbers, size)) for size in sizes]


def shard_rows(
    rows: Sequence[LearnerRow], chosen: Sequence[int], num_ranks: int
) -> list[list[int]]:
    """Divide rows among ranks: equally many each, as far as they go, and about as many tokens.

    Longest first, to the rank that has fewest tokens among those with fewest rows. The same rows
    give the same shards on every rank.

    Args:
        rows: Of the whole batch.
        chosen: Numbers of the rows to divide.
        num_ranks: Number of shards.

    Returns:
        Numbers of the rows of each rank.
    """
    lengths = {i: _estimated_tokens(rows[i]) for i in chosen}
    shards: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for i in sorted(chosen, key=lambda i: (-lengths[i], i)):
        rank = min(range(num_ranks), key=lambda r: (len(shards[r]), loads[r], r))
        shards[rank].append(i)
        loads[rank] += lengths[i]
    return shards


def by_answer(batch: PackedBatch, values: torch.Tensor) -> TokenValues:
    """Values of a batch's targets, [A, T], as those of each answer."""
    lengths = batch.target_mask.sum(dim=1).tolist()
    table = values.detach().float().cpu().numpy()
    return {key: table[a, : lengths[a]].copy() for a, key in enumerate(batch.answers)}


class LogProbGap:
    """|learner - rollout| of the log-probabilities of this rank's tokens, each answer once.

    Attributes:
        num_expected: Answers of all ranks that come with the engine's log-probabilities.
        total: Sum over the tokens seen so far.
        largest: Of the tokens seen so far.
        num_tokens: Seen so far.
    """

    def __init__(self, rows: Sequence[LearnerRow], own: set[int]) -> None:
        self.rows = rows
        self.own = own
        self.num_expected = sum(len(row.rollout_log_probs) for row in rows)
        self.total, self.largest, self.num_tokens = 0.0, 0.0, 0
        self._seen: set[AnswerKey] = set()

    def add(self, values: TokenValues) -> None:
        """Compare what was scored with what the engine said."""
        for (i, a), value in values.items():
            if i not in self.own or not self.rows[i].rollout_log_probs or (i, a) in self._seen:
                continue
            self._seen.add((i, a))
            gap = np.abs(value - self.rows[i].rollout_log_probs[a])
            self.total += float(gap.sum())
            self.largest = max(self.largest, float(gap.max()))
            self.num_tokens += len(gap)

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Mean and maximum over the tokens of all ranks; nothing if the engine said nothing."""
        if not self.num_expected:
            return {}
        sums = ranks.sum({"total": self.total, "tokens": float(self.num_tokens)})
        return {
            "log_prob_gap_mean": sums["total"] / sums["tokens"],
            "log_prob_gap_max": ranks.max(self.largest),
        }


def _estimated_tokens(row: LearnerRow) -> int:
    prompt = row.num_prompt_tokens
    if not prompt and row.plan is not None:
        pixels = sum(plan.num_frames * plan.height * plan.width for plan in row.plan.shown)
        prompt = pixels // 2048
    return packed_length(prompt, [len(response) for response in row.responses])
