"""New weights into vLLM, from the engine's process; `vllm_transfer` is the end in its workers.

All weights are handed to vLLM's own update of weights; adapters come as vLLM has them, in a folder.
Either way the workers are then asked for sums of magnitudes of what they use. Nothing here imports
vLLM before it is used, which takes 10 to 25 seconds.
"""

import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch

from actrep_ray.config import LoraConfig
from actrep_ray.models.lora import check_adapter, save_adapter
from actrep_ray.weights.buckets import Weights, grouped, verify_magnitudes, verify_sums

OPTIONS: dict[str, Any] = {
    "weight_transfer_config": {"backend": "actrep_memory"},
}
"""What `vllm.LLM` has to be started with, beside `vllm_transfer.WorkerExtension`."""

VERIFIED_BYTES = 2**30
"""Of the weights given at a push, how many are compared with those in use."""

_ADAPTER_ID = 1


class Receiver(Protocol):
    """What of `vllm.LLM` is used to replace weights."""

    llm_engine: Any

    def start_weight_update(self) -> None:
        """Make ready for weights."""

    def update_weights(self, request: dict[str, Any], /) -> None:
        """Take some of them."""

    def finish_weight_update(self) -> None:
        """There are no more."""

    def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call a method of `WorkerExtension` in every worker."""
        ...


def replace_all(llm: Receiver, weights: Weights) -> None:
    """Replace all weights, a bucket of them at a time.

    With tensor parallelism each worker process makes a copy of what it is given.

    Raises:
        ValueError: for a weight that is missing.
    """
    llm.start_weight_update()
    for group in grouped(weights.items()):
        llm.update_weights({"update_info": {"weights": group}})
    llm.finish_weight_update()
    for missing in llm.collective_rpc("actrep_missing_weights"):
        if missing:
            raise ValueError(
                f"{len(missing)} weights of the engine were not given, among them {missing[0]}"
            )


def verify_all(llm: Receiver, weights: Weights, dtype: torch.dtype, turn: int = 0) -> None:
    """Compare what every worker uses with what was given: a stale or a turned weight shows.

    Of a large model a share each time, so that a push does not wait for sums over all of it.

    Args:
        llm: The engine.
        weights: What it was given.
        dtype: What it computes in.
        turn: Which share: after as many turns as there are, each weight was compared.

    Raises:
        RuntimeError: naming a weight that differs.
    """
    shares = list(grouped(weights.items(), VERIFIED_BYTES))
    share = dict(shares[turn % len(shares)]) if shares else {}
    shapes = {name: tuple(weight.shape) for name, weight in share.items()}
    by_worker = llm.collective_rpc("actrep_located_sums", args=(shapes,))
    each_compares = all(by_worker)
    verify_sums([one for sums in by_worker for one in sums] if each_compares else [], share, dtype)
    experts = [(name, weight.to(dtype)) for name, weight in share.items() if ".experts." in name]
    for differing in llm.collective_rpc("actrep_stale_experts", args=(experts,)):
        if differing:
            raise RuntimeError(
                f"{differing[0]}: the experts in use are not those that the engine was given"
            )


def replace_adapter(llm: Receiver, weights: Weights, cfg: LoraConfig) -> Any:
    """Replace the adapter in its place, so that answers at work go on with the new one.

    Returns:
        What requests refer to it by.
    """
    from vllm.lora.request import LoRARequest

    check_adapter(weights)
    with tempfile.TemporaryDirectory(prefix="actrep-adapter-") as folder:
        save_adapter(Path(folder), cfg, dict(weights))
        llm.llm_engine.add_lora(LoRARequest("policy", _ADAPTER_ID, folder, load_inplace=True))
    return LoRARequest("policy", _ADAPTER_ID, folder)  # is there: nothing is read


def verify_adapter(llm: Receiver, weights: Weights, cfg: LoraConfig, dtype: torch.dtype) -> None:
    """Compare the adapter that every worker uses with the one that was given.

    Raises:
        RuntimeError: naming a matrix that differs.
    """
    scale = cfg.alpha / cfg.rank  # vLLM has it in the second matrix
    scaled = {
        name: weight.to(dtype) * (scale if ".lora_B." in name else 1.0)
        for name, weight in weights.items()
    }
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    arguments = (_ADAPTER_ID, shapes)
    for loaded in llm.collective_rpc("actrep_adapter_magnitudes", args=arguments):
        verify_magnitudes(loaded, scaled, dtype)
