"""Whose is which whole tensor: each rank keeps, writes and sends a share of them.

Every rank takes part in gathering a tensor, and one of them keeps it. So host memory holds a rank's
share and the tensor at hand, files are whole tensors that any strategy and number of ranks can
read, and every rank's disk and object store carry an equal load.
"""

from collections.abc import Iterable, Iterator

import torch

from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.saving import Snapshot, give_back_freed
from actrep_ray.models.tensor_files import index_of, shard_name

SMALL_BYTES = 64 * 2**20  # float32 weights of a model that is not worth a file a rank


class Shares:
    """Deals tensors out, each to the rank that was given least; the same on all ranks.

    Args:
        ranks: All of them; each deals the same tensors in the same order.
        model_bytes: Of the model's weights in float32; rank 0 keeps everything of a small one.
    """

    def __init__(self, ranks: Ranks, model_bytes: int) -> None:
        self._ranks = ranks
        self._given = [0] * (ranks.size if model_bytes > SMALL_BYTES else 1)

    def is_mine(self, num_bytes: int) -> bool:
        """Deal the next tensor: whether this rank keeps it."""
        owner = self._given.index(min(self._given))
        self._given[owner] += num_bytes
        return owner == self._ranks.rank

    def first_takes(self, num_bytes: int) -> None:
        """Count what rank 0 keeps in any case."""
        self._given[0] += num_bytes

    def kept(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        dtype: torch.dtype,
        *,
        is_brief: bool = False,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Those of some whole tensors that are this rank's, copied to the CPU in a dtype.

        The others are gathered and let go.

        Args:
            weights: Name and whole tensor, one after another.
            dtype: Of the copies.
            is_brief: Whether they are let go at once; from a GPU they come into pinned memory then,
                which is faster, and which torch keeps for the next ones.
        """
        gathered = 0
        for name, weight in weights:
            gathered += weight.nbytes
            if gathered > SMALL_BYTES and not weight.is_cuda:  # else what was let go piles up
                give_back_freed()
                gathered = 0
            if self.is_mine(weight.numel() * dtype.itemsize):
                is_pinned = is_brief and weight.is_cuda
                copy = torch.empty(weight.shape, dtype=dtype, pin_memory=is_pinned)
                yield name, copy.copy_(weight)

    def snapshot(
        self, stem: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
    ) -> Snapshot:
        """This rank's file of some tensors; on rank 0 also the index of all files, if many.

        An optimiser that took no step has no tensors; the one file, or the index, is there still.

        Args:
            stem: Name of the files, without number and suffix.
            tensors: What this rank keeps of them, by name.
            metadata: Of each file.
        """
        count = len(self._given)
        found = Snapshot()
        if tensors or (count == 1 and self._ranks.is_first):
            name = shard_name(stem, self._ranks.rank, count)
            found.tensors[name] = tensors
            if metadata is not None:
                found.metadata[name] = metadata
        if count > 1:
            sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
            of_all = self._ranks.gather(sizes)
            if self._ranks.is_first:
                found.contents[f"{stem}.safetensors.index.json"] = index_of(stem, of_all)
        return found
