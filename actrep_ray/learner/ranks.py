"""The ranks of a learner: their process group and device mesh, and what they tell each other."""

import socket
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
            timeout = timedelta(seconds=timeout_s)
            dist.init_process_group(
                # gloo beside NCCL, for what is offloaded to CPU memory
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                store=self._store(master_addr, master_port, timeout),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
            )
        self.mesh = init_device_mesh(self.device.type, (self.size,))

    def _store(self, address: str, port: int, timeout: timedelta) -> Any:
        """Where ranks find each other: on rank 0, at that address and no other of its node."""
        listener = None
        if self.is_first:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, port), family=family)
            port = listener.getsockname()[1]
        return dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            self.size,
            is_master=self.is_first,
            timeout=timeout,
            master_listen_fd=listener.detach() if listener else None,
        )

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
