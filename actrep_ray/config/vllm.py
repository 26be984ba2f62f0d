"""`rollout.vllm`: what of vLLM's engine arguments a recipe may set, under vLLM's names."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from actrep_ray.config.section import Contradiction, ContradictionError, Count, Section

_REFUSED = {
    "quantization": "its fp8 layers hold transposed weights and scales of their own, which a push "
    "does not bring and cannot be compared with; rollout.vllm.kv_cache_dtype=fp8 saves memory",
    **dict.fromkeys(
        ("speculative", "speculative_config"),
        "vLLM takes no logit_bias then, which keeps visual tokens out of answers, and draws "
        "accepted tokens from a stream of its own, so that a run could not be repeated",
    ),
}
_NO_FP8 = {"FLEX_ATTENTION": ("fp8", "fp8_e5m2"), "FLASH_ATTN": ("fp8_e5m2",)}


class VllmConfig(Section):
    """Arguments of vLLM 0.28's engine that are left to the recipe; all others are ours."""

    max_num_batched_tokens: Count | None = Field(
        None,
        description="Most tokens of one forward pass; null: vLLM's own number for the GPU (4096 on "
        "a CPU), at least rollout.max_model_len.",
    )
    attention_backend: (
        Literal["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION"] | None
    ) = Field(
        None, description="Kernels of attention in the decoder, on a GPU; null: vLLM chooses."
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e5m2"] = Field(
        "auto",
        description="Of keys and values: model.dtype, or one byte each. The engine then computes "
        "another policy than the learner (docs/algorithms.md).",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_serve(cls, values: Any) -> Any:
        found = [
            Contradiction(
                (f"rollout.vllm.{name}",),
                f"rollout.vllm.{name}={values[name]!r}: cannot serve training: {reason}",
            )
            for name, reason in _REFUSED.items()
            if isinstance(values, dict) and name in values
        ]
        if found:
            raise ContradictionError(found)
        return values

    def contradictions(self) -> Iterator[Contradiction]:
        """Kernels that do not read keys and values of this dtype."""
        name, dtype = self.attention_backend, self.kv_cache_dtype
        if dtype in _NO_FP8.get(name or "", ()):
            yield Contradiction(
                ("rollout.vllm.attention_backend", "rollout.vllm.kv_cache_dtype"),
                f"rollout.vllm.attention_backend={name} has no kernel for "
                f"rollout.vllm.kv_cache_dtype={dtype}: set it to TRITON_ATTN or FLASHINFER",
            )

    @property
    def has_fp8_cache(self) -> bool:
        """Whether keys and values are rounded to one byte."""
        return self.kv_cache_dtype != "auto"
