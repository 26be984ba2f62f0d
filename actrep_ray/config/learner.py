"""`learner`: the workers that train."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from actrep_ray.config.section import (
    Contradiction,
    Count,
    Float,
    Fraction,
    LearningRate,
    Positive,
    Seconds,
    Section,
    Whole,
    Workers,
)

_Beta = Annotated[Float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """The workers that train."""

    strategy: Literal["fsdp2", "deepspeed"] = Field(
        "fsdp2", description="How weights are split over ranks."
    )
    zero_stage: Literal[2, 3] = Field(
        3, description="DeepSpeed: split gradients and optimiser (2), or the weights as well (3)."
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="What is kept in CPU memory: optimiser state, or the weights as well."
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Dtype in which gradients are summed over ranks."
    )
    reshard_after_forward: bool = Field(
        True, description="FSDP2: free a layer's gathered weights until its backward."
    )
    deepspeed_config: str | None = Field(
        None, description="DeepSpeed's own JSON; where it contradicts the recipe, it is refused."
    )
    num_workers: Workers = Field(1, description="Ranks.")
    num_cpus: Positive = Field(1.0, description="CPUs that Ray reserves for one rank.")
    num_threads: Workers = Field(1, description="Computing threads of one rank on CPU.")
    lr: LearningRate = Field(1e-6, description="Peak learning rate.")
    lr_vision_tower: LearningRate | None = Field(
        None, description="Peak learning rate of the vision tower, in place of lr."
    )
    lr_merger: LearningRate | None = Field(
        None, description="Peak learning rate of the merger, in place of lr."
    )
    min_lr_ratio: Fraction = Field(0.0, description="Learning rate at the end, of the peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up."
    )
    warmup_steps: Whole = Field(0, description="Optimiser steps of warm-up.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="AdamW's decay; norms and biases are left out."
    )
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.999), description="AdamW's betas, below 1.")
    max_grad_norm: Positive = Field(1.0, description="Gradients are clipped to this norm.")
    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = Field(
        None, description="Keep a moving average of the weights with this decay; null: none."
    )
    micro_batch_tokens: Count = Field(
        16384, description="Most tokens, padding included, of one forward pass on one rank."
    )
    packing: Literal["shared_prefix", "none"] = Field(
        "shared_prefix", description="Whether a group's prompt is computed once or G times."
    )
    attention: Literal["sdpa", "flash_attention_2", "flex"] = Field(
        "sdpa", description="Kernels of the decoder's attention; the last two need a GPU."
    )
    cache_features: bool = Field(
        True,
        description="Run a frozen vision tower once for each clip, and keep what it makes of it. "
        "Every rank holds the whole tower then. Not with ZeRO-3.",
    )
    prompt_cache_gib: Positive = Field(
        4.0, description="Host memory of a rank for prompts: their pixels, or the tower's features."
    )
    feature_cache_gib: Annotated[Float, Field(ge=0)] = Field(
        8.0,
        description="Disk of a node for the tower's features, beside the decoded clips, GiB. "
        "0: none.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward.")
    max_restarts: Whole = Field(
        3,
        description="Times within an hour that a run goes on from its last checkpoint after a rank "
        "was lost.",
    )
    timeout_s: Seconds = Field(1800.0, description="Longest wait for one update.")

    def contradictions(self) -> Iterator[Contradiction]:
        """What the strategy cannot do."""
        strategy = "learner.strategy"
        if self.strategy == "fsdp2" and self.offload == "optimizer":
            yield Contradiction(
                ("learner.offload", strategy),
                "learner.offload='optimizer': FSDP2 offloads all or none (or take "
                "learner.strategy=deepspeed)",
            )
        if self.strategy == "fsdp2" and self.deepspeed_config is not None:
            yield Contradiction(
                ("learner.deepspeed_config", strategy),
                f"learner.deepspeed_config={self.deepspeed_config!r} is read only with "
                "learner.strategy=deepspeed",
            )
        if self.strategy == "deepspeed" and self.offload == "all" and self.zero_stage != 3:
            yield Contradiction(
                ("learner.offload", "learner.zero_stage", strategy),
                f"learner.offload='all' with learner.zero_stage={self.zero_stage}: weights are "
                "offloaded only by zero_stage 3",
            )
