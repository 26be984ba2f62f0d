"""The ranks of a learner: their process group and device mesh, and what they tell each other."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Ranks:
    """All ranks, as one of them sees them. What they tell each other, all of them must call.

    Args:
        rank: Number of this rank, from 0.
        size: Number of ranks.
        device: What a rank computes on.

    Attributes:
        mesh: All ranks in one dimension, once they have joined.
    """

    mesh: DeviceMesh

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which reads checkpoints and writes files for all."""
        return self.rank == 0

    def join(self, master_addr: str, master_port: int, timeout_s: float) -> None:
        """Meet the other ranks.

        Args:
            master_addr: Node of rank 0.
            master_port: Free on that node.
            timeout_s: Longest wait for the others, now and in every call to come.
        """
        if not dist.is_initialized():  # a process may hold more than one learner
            dist.init_process_group(
                # gloo beside NCCL, for what is offloaded to CPU memory
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                init_method=f"tcp://{master_addr}:{master_port}",
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=timeout_s),
            )
        self.mesh = init_device_mesh(self.device.type, (self.size,))

    def leave(self) -> None:
        """Part from the other ranks."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Values of all ranks by rank, on every rank; they are pickled."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sum over ranks of each value; every rank has the same keys."""
        keys = sorted(values)
        tensor = torch.tensor([values[k] for k in keys], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(keys, tensor.tolist(), strict=True))

    def max(self, value: float) -> float:
        """Maximum over ranks."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())
