"""From rows to one rank's micro-batches: shard, encode, pack, cut by tokens, collate."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from actrep_ray.config import LearnerConfig
from actrep_ray.learner.batch.packing import (
    PackedBatch,
    PackedRow,
    collate,
    micro_batches,
    split_row,
)
from actrep_ray.learner.batch.prompts import PromptEncoder
from actrep_ray.learner.batch.rows import shard_rows
from actrep_ray.learner.ranks import Ranks
from actrep_ray.records import LearnerRow


@dataclass(frozen=True)
class MicroBatch:
    """What a rank runs through the model at once.

    Attributes:
        batch: Its rows, on the rank's device.
        weight: 1; 0 if it only keeps step with ranks that have more micro-batches.
        is_last: Whether no further one follows on any rank.
    """

    batch: PackedBatch
    weight: float
    is_last: bool


class MicroBatchLoader:
    """Makes micro-batches of a rank's rows, as many on every rank.

    Args:
        encoder: Of the rows' prompts.
        ranks: Among which rows are divided.
        cfg: How rows are packed, and the most tokens of a micro-batch.
        before_each: Called before each micro-batch, on every rank; may end the pass by raising.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        ranks: Ranks,
        cfg: LearnerConfig,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_each = before_each
        self._encoder = encoder
        self._ranks = ranks
        self._cfg = cfg

    def load(self, rows: Sequence[LearnerRow], chosen: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's micro-batches. Every rank must go through all of its own.

        Each is collated in the background while the one before it is computed.

        Args:
            rows: Of the whole batch, the same on every rank.
            chosen: Numbers of the rows that are wanted.
        """
        packed = self._pack_shard(rows, chosen)
        num_batches = int(self._ranks.max(len(packed)))
        # FSDP's ranks run forward and backward together: who has less repeats without weight.
        filler = packed[-1] if packed else self._pack(chosen[0], rows[chosen[0]])[:1]
        weights = [1.0] * len(packed) + [0.0] * (num_batches - len(packed))
        packed += [filler] * (num_batches - len(packed))
        with ThreadPoolExecutor(max_workers=1) as background:
            ahead = background.submit(collate, packed[0])
            for i, weight in enumerate(weights):
                batch = ahead.result()
                self._before_each()
                is_last = i + 1 == num_batches
                if not is_last:
                    ahead = background.submit(collate, packed[i + 1])
                yield MicroBatch(batch.to(self._ranks.device), weight, is_last)

    def _pack_shard(
        self, rows: Sequence[LearnerRow], chosen: Sequence[int]
    ) -> list[list[PackedRow]]:
        """The packed rows of each micro-batch; none if there are fewer rows than ranks."""
        own = shard_rows(rows, chosen, self._ranks.size)[self._ranks.rank]
        packed = [piece for i in own for piece in self._pack(i, rows[i])]
        return micro_batches(packed, self._cfg.micro_batch_tokens)

    def _pack(self, i: int, row: LearnerRow) -> list[PackedRow]:
        return split_row(
            i,
            row.row_id,
            self._encoder.encode(row),
            row.responses,
            budget=self._cfg.micro_batch_tokens,
            shares_prefix=self._cfg.packing == "shared_prefix",
        )
