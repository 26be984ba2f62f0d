"""A backend of vLLM's weight transfer that takes tensors from memory.

vLLM's own backends move weights over NCCL or CUDA IPC and need CUDA on both sides. This one gets
`(name, tensor)` pairs as they are and hands them to vLLM's layerwise reload, which unpacks,
loads and packs each layer again, on a CPU as on a GPU.

Layerwise reload leaves out an output layer that is tied to the token embedding: the packed copy of
its weight (CPU) stays that of the old weights. It is packed once more at the end. So are experts,
which vLLM packs (CPU) at the first load alone.

vLLM imports this module by name in each of its worker processes, as their extension.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from actrep_ray.weights.buckets import located_sum, magnitude
from actrep_ray.weights.vllm_in_use import (
    pack_again,
    packed_experts,
    stale_experts,
    weights_in_use,
)

BACKEND = "actrep_memory"

# vLLM tells the weights of experts that it has loaded without the module that holds them.
_EXPERTS = re.compile(r"\.experts\.(w\d+_\w+)$")


@dataclass
class MemoryInitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class MemoryUpdateInfo(WeightTransferUpdateInfo):
    """Weights under their Hugging Face names."""

    weights: list[tuple[str, torch.Tensor]]


class MemoryWeightTransfer(WeightTransferEngine[MemoryInitInfo, MemoryUpdateInfo]):
    """Loads weights that were handed over in memory."""

    init_info_cls = MemoryInitInfo
    update_info_cls = MemoryUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: MemoryInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Bring every layer into the form that checkpoints are loaded into."""
        self.missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: MemoryUpdateInfo) -> None:
        """Load some of the weights; a layer is packed when its last one is there."""
        with torch.device(self.device):
            loaded = self.model.load_weights(iter(update_info.weights))
        self.missing -= {_EXPERTS.sub(r".experts.routed_experts.\1", name) for name in loaded}

    def finish_weight_update(self) -> None:
        """Pack what is left, tied output layers included."""
        finalize_layerwise_reload(self.model, self.model_config)
        for head in _tied_heads(self.model):
            head.quant_method.process_weights_after_loading(head)
        for layer in packed_experts(self.model):
            pack_again(layer)

    def shutdown(self) -> None:
        """Nothing is held."""


def _tied_heads(model: torch.nn.Module) -> list[ParallelLMHead]:
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }
    heads = (module for module in model.modules() if isinstance(module, ParallelLMHead))
    return [head for head in heads if id(head.weight) in embeddings]


class WorkerExtension:
    """What vLLM's workers can do in addition, called by `collective_rpc`."""

    model_runner: Any
    parallel_config: Any
    weight_transfer_engine: Any

    def actrep_missing_weights(self) -> list[str]:
        """Parameters of this worker's model that the last update did not bring."""
        return sorted(self.weight_transfer_engine.missing)

    def actrep_located_sums(self, shapes: Mapping[str, Sequence[int]]) -> list[tuple[str, float]]:
        """`located_sum` of weights in use, by their names in the checkpoint: those of these shapes.

        Where vLLM splits a weight over workers, or has experts packed, it is left out.
        """
        model = self.model_runner.get_model()
        return [(name, located_sum(weight)) for name, weight in weights_in_use(model, shapes)]

    def actrep_stale_experts(self, weights: list[tuple[str, torch.Tensor]]) -> list[str]:
        """Names of experts that are packed here and are not the given ones."""
        return stale_experts(self.model_runner.get_model(), weights)

    def actrep_adapter_magnitudes(
        self, adapter_id: int, shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, float]:
        """Sums of magnitudes of an adapter's matrices in use, by the names that were given.

        Only of those that are not split over workers; what pads them to vLLM's rank is zero.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        slot = manager.lora_index_to_id.index(adapter_id)
        held: dict[tuple[str, bool], torch.Tensor] = {}
        for name, module in manager.modules.items():
            layers = manager.packed_modules.get(name, [name])
            stacks = zip(layers, module.lora_a_stacked, module.lora_b_stacked, strict=True)
            for layer, a, b in stacks:
                held[layer, True], held[layer, False] = a[slot], b[slot]
        mapper = manager.model.hf_to_vllm_mapper.get_unstacked_mapper()
        sums = {}
        for name, shape in shapes.items():
            peft_name = name.replace(".default.", ".")
            layer, is_a = parse_fine_tuned_lora_name(f"base_model.model.{peft_name}", mapper)
            matrix = held[layer, is_a]
            if (matrix.shape[-1] == shape[1]) if is_a else (matrix.shape[-2] == shape[0]):
                sums[name] = magnitude(matrix)
        return sums


WeightTransferEngineFactory.register_engine(BACKEND, MemoryWeightTransfer)
