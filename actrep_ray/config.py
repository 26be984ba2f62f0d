"""Every setting, its default and its rule.

Defaults exist here and nowhere else. A recipe is sparse YAML; `--set key=value` comes after it.
Neither ray nor torch is imported, so that a recipe is checked in a moment, before any actor starts.
"""

import difflib
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names the key, value and rule."""


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise ValueError(message)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _number_of_text(value: Any) -> Any:
    """YAML 1.1 reads `1e-6` as a string; take it for the number that it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Float = Annotated[float, BeforeValidator(_number_of_text)]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


Part = Literal["vision_tower", "merger", "language_model"]


class LoraConfig(_Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) in place of training the weights."""

    rank: Annotated[int, Field(ge=0)] = Field(0, description="Rank of an adapter; 0: no adapters.")
    alpha: Positive = Field(32.0, description="An adapter is scaled by alpha / rank.")
    dropout: Annotated[Float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of an adapter's inputs that is dropped in training."
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Last names of the linear layers that get an adapter.",
    )
    parts: tuple[Part, ...] = Field(
        ("language_model",), description="Parts in which layers are looked for."
    )
    send: Literal["merged", "adapter"] = Field(
        "merged", description="What engines are given: all weights, adapters merged, or adapters."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(bool(self.target_modules), "model.lora.target_modules: expected a layer's name")
        _require(bool(self.parts), "model.lora.parts: expected a part of the model")
        _require(
            self.send == "merged" or self.rank > 0,
            "model.lora.send=adapter: model.lora.rank is 0, so there is no adapter to send",
        )
        return self


class ModelConfig(_Section):
    """What is trained."""

    path: str = Field("", description="Folder of the Hugging Face checkpoint to start from.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Dtype of computation.")
    freeze: tuple[Part, ...] = Field((), description="Parts that are not trained.")
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora.rank:
            both = sorted(set(self.freeze) & set(self.lora.parts))
            _require(
                not both,
                f"model.lora.parts and model.freeze both name {', '.join(both)}: with adapters "
                "all weights are frozen, and a part of model.freeze gets no adapter",
            )
        return self


class DataConfig(_Section):
    """What is asked about which clips."""

    path: str = Field("", description="JSONL of clips; its `split` column says what trains.")
    question: str = Field(
        "How many times is the action repeated? List each repetition.",
        description="Text after the video; `{action}` is replaced by the clip's action.",
    )
    dialect: Literal["think", "thinking"] = Field("think", description="Tag of the reasoning.")
    answers: str = Field(
        "",
        description="Answers that SFT teaches, of `actrep cot`; rendered from the marks if empty.",
    )
    wording_variety: Count = Field(
        1, description="Phrasings of each section that rendered answers are drawn from, at most 5."
    )
    max_train_clips: Count | None = Field(None, description="Use only the first clips of train.")
    check_videos: bool = Field(True, description="Open every video before anything starts.")


class VideoConfig(_Section):
    """Which frames a model sees; the same in SFT, GRPO, evaluation and inference."""

    fps: Positive = Field(4.0, description="Frames per second.")
    min_frames: Count = Field(4, description="Fewest frames of a clip.")
    max_frames: Count = Field(256, description="Most frames of a clip.")
    min_pixels: Count = Field(32 * 32, description="Fewest pixels of one frame.")
    max_pixels: Count = Field(224 * 224, description="Most pixels of one frame.")
    cache_dir: str = Field("/tmp/actrep-frames", description="Node-local folder of decoded clips.")
    cache_gib: Positive = Field(8.0, description="Size that the folder is kept under, GiB.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.min_frames <= self.max_frames, "video.min_frames must not exceed max_frames")
        _require(self.min_pixels <= self.max_pixels, "video.min_pixels must not exceed max_pixels")
        return self


class SamplingConfig(_Section):
    """Random Count Sampling: which clips are issued."""

    bins: tuple[int, ...] = Field(
        (0, 5, 10, 20, 40), description="Upper ends of the count strata; one more above the last."
    )
    power: Fraction = Field(
        0.0, description="Weight of a stratum is its frequency to this power: 0 uniform, 1 natural."
    )
    num_quantiles: Count | None = Field(
        None, description="Cut the strata at this many quantiles of the counts, in place of bins."
    )
    crop_probability: Fraction = Field(
        0.0, description="Share of draws that crop a longer clip with marks to a smaller count."
    )
    crop_lead_s: Positive = Field(2.0, description="Longest lead-in and lead-out of a crop, s.")
    crop_min_s: Positive = Field(2.0, description="Shortest crop, s.")
    crop_max_count: Count | None = Field(None, description="Largest count of a crop.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(
            list(self.bins) == sorted(set(self.bins)) and bool(self.bins) and self.bins[0] >= 0,
            f"sampling.bins={list(self.bins)}: expected rising integers of at least 0",
        )
        return self


class RolloutConfig(_Section):
    """The engines that generate."""

    engine: Literal["vllm", "hf"] = Field("vllm", description="What generates.")
    num_workers: Count = Field(
        1, description="Engines; `{min: 1, max: 4}` stands for this and max_workers."
    )
    tensor_parallel_size: Count = Field(1, description="GPUs of one engine.")
    num_cpus: Positive = Field(1.0, description="CPUs that Ray reserves for one engine.")
    num_threads: Count = Field(1, description="Computing threads of one engine on CPU.")
    gpu_memory_utilization: Fraction = Field(0.85, description="Share of a GPU that vLLM takes.")
    kv_cache_gib: Positive = Field(1.0, description="Size of the KV cache on CPU, GiB.")
    max_num_seqs: Count = Field(256, description="Answers generated at the same time.")
    max_model_len: Count = Field(8192, description="Most tokens of prompt and answer together.")
    max_response_tokens: Count = Field(1024, description="Most tokens of an answer.")
    temperature: Positive = Field(1.0, description="Temperature of sampling in training.")
    top_p: Annotated[Float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus of sampling.")
    enforce_eager: bool = Field(False, description="Do not capture CUDA graphs.")
    max_in_flight: Count | None = Field(
        None, description="Answers handed to one engine at a time; twice max_num_seqs by default."
    )
    max_workers: Count | None = Field(
        None, description="A run starts engines up to this many where there is room for them."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Engines that died and are replaced in a run, before it stops."
    )
    timeout_s: Positive = Field(1800.0, description="Longest wait for one batch of groups.")

    @model_validator(mode="before")
    @classmethod
    def _read_range(cls, values: Any) -> Any:
        given = values.get("num_workers") if isinstance(values, dict) else None
        if not isinstance(given, dict):
            return values
        _require(
            set(given) == {"min", "max"} and values.get("max_workers") is None,
            f"rollout.num_workers={given}: expected a number, or {{min: 1, max: 4}} without "
            "rollout.max_workers",
        )
        return {**values, "num_workers": given["min"], "max_workers": given["max"]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(
            self.max_workers is None or self.max_workers >= self.num_workers,
            f"rollout.max_workers={self.max_workers}: expected at least rollout.num_workers="
            f"{self.num_workers}",
        )
        return self


class RewardConfig(_Section):
    """The reward and the workers that compute it."""

    weights: dict[str, float | dict[str, str | int | float | bool]] = Field(
        {"obo": 0.5, "cycles": 0.4, "format": 0.1},
        description="Weight of each part: a name of `rewards`, or `package.module:function`. A "
        "mapping `{weight: 0.4, tolerance: 0.3}` hands the rest to the part as its options.",
    )
    combine: Literal["sum", "per_reward"] = Field(
        "sum", description="Weigh the parts, or normalise each within its group first (GDPO)."
    )
    num_workers: Count = Field(1, description="Reward workers.")
    num_cpus: Positive = Field(0.25, description="CPUs that Ray reserves for one reward worker.")
    timeout_s: Positive = Field(60.0, description="Longest wait for the scores of one batch.")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        0, description="Groups of a run that are dropped because a reward failed, before it stops."
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: _reward_part(str(name), part) for name, part in value.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = [p["weight"] if isinstance(p, dict) else p for p in self.weights.values()]
        _require(any(float(p) > 0 for p in parts), "reward.weights: expected one weight above 0")
        return self

    @property
    def part_weights(self) -> dict[str, float]:
        """Weight of each part by name, its options left out."""
        return {
            name: float(part["weight"] if isinstance(part, dict) else part)
            for name, part in self.weights.items()
        }


def _reward_part(name: str, part: Any) -> Any:
    """One entry of `reward.weights`, numbers read; the options are the reward's own business."""
    key = f"reward.weights.{name}"
    given = dict(part) if isinstance(part, dict) else {"weight": part}
    given = {str(k): _number_of_text(v) for k, v in given.items()}
    weight: Any = given.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    _require(
        is_number and 0 <= weight < math.inf, f"{key}: weight={weight!r}, expected a number >= 0"
    )
    for option, value in given.items():
        _require(
            isinstance(value, str | int | float | bool),
            f"{key}.{option}={value!r}: expected a number, a string or a boolean",
        )
    return given if isinstance(part, dict) else float(weight)


PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300
    "grpo": {
        "advantage": "grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": None,
        "aggregation": "seq-mean-token-mean",
        "kl_in": "loss",
        "kl_coef": 0.04,
        "kl_type": "k3",
    },
    # arXiv 2503.20783: no division by the standard deviation, nor by an answer's own length
    "dr_grpo": {
        "advantage": "dr_grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": None,
        "aggregation": "seq-mean-token-sum-norm",
        "kl_coef": 0.0,
    },
    # arXiv 2503.14476; groups without variance are always dropped; see also `PRESET_PENALTIES`
    "dapo": {
        "advantage": "grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "dual_clip": None,
        "aggregation": "token-mean",
        "kl_coef": 0.0,
    },
    # arXiv 2507.18071: the ratio of whole answers, hence the narrow range
    "gspo": {
        "advantage": "grpo",
        "loss": "gspo",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "aggregation": "seq-mean-token-mean",
        "kl_coef": 0.0,
    },
    # MiniMax-M1, arXiv 2506.13585: no lower bound; the upper one, a weight of 5, is from ScaleRL
    "cispo": {
        "advantage": "grpo",
        "loss": "cispo",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "aggregation": "token-mean",
        "kl_coef": 0.0,
    },
}
"""What `algorithm.preset` stands for; a key that the recipe gives itself wins."""

PRESET_PENALTIES: dict[str, dict[str, float]] = {"dapo": {"overlong": 1.0}}
"""What a preset adds to the default `reward.weights`."""


class TemporalContrastConfig(_Section):
    """T-GRPO (Video-R1, arXiv 2503.21776): every clip is shown with its frames shuffled, too."""

    weight: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="Bonus of a right count where order helps (T-GRPO: 0.3); 0: no contrast."
    )
    margin: Annotated[Float, Field(ge=0, lt=1)] = Field(
        0.0, description="Order helps where its share of right counts is higher by more than this."
    )


class AlgorithmConfig(_Section):
    """Advantages and policy loss, by their names in verl's registries."""

    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] | None = Field(
        None, description="Published algorithm that sets the keys below, where they are not given."
    )
    advantage: Literal[
        "grpo", "dr_grpo", "rloo", "gdpo", "opo", "reinforce_plus_plus_baseline", "grpo_passk"
    ] = Field("grpo", description="Estimator of the group-relative advantage.")
    loss: Literal["vanilla", "gspo", "cispo", "sapo", "clip_cov", "kl_cov", "geo_mean"] = Field(
        "vanilla", description="Policy loss."
    )
    clip_low: Positive = Field(0.2, description="Lower clip range of the policy ratio.")
    clip_high: Positive = Field(0.2, description="Upper clip range of the policy ratio.")
    dual_clip: Annotated[Float, Field(gt=1)] | None = Field(
        3.0, description="Bound of the ratio for negative advantages (vanilla); null: none."
    )
    sapo_tau: tuple[Positive, Positive] = Field(
        (1.0, 1.05), description="SAPO's temperatures for positive and other advantages."
    )
    cov_fraction: Annotated[Float, Field(gt=0, le=1)] = Field(
        2e-4, description="Share of a micro-batch's tokens that clip_cov or kl_cov picks."
    )
    clip_cov_range: tuple[Float, Float] = Field(
        (1.0, 5.0), description="Covariances between which clip_cov picks tokens."
    )
    kl_cov_coef: Positive = Field(1.0, description="Weight of |log-ratio| where kl_cov picks.")
    aggregation: Literal[
        "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ] = Field("token-mean", description="How the token losses of a mini-batch become one number.")
    loss_scale_tokens: Count | None = Field(
        None, description="Divisor of seq-mean-token-sum-norm; null: rollout.max_response_tokens."
    )
    kl_coef: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="Weight of the KL to the reference policy; 0: no reference."
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="Whether that KL is part of the loss or taken off the reward."
    )
    kl_type: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of that KL.")
    kl_target: Positive | None = Field(
        None, description="KL per token that the weight is adapted to; null: a fixed weight."
    )
    kl_horizon: Count = Field(10000, description="Answers over which the weight adapts.")
    entropy_coef: Annotated[Float, Field(ge=0)] = Field(0.0, description="Weight of the entropy.")
    mask_truncated: bool = Field(
        False, description="Leave answers that were cut off at max_response_tokens out of the loss."
    )
    temporal_contrast: TemporalContrastConfig = TemporalContrastConfig()
    rollout_correction: Literal[
        "off", "token_truncate", "sequence_truncate", "token_reject", "sequence_reject"
    ] = Field("off", description="What is done about engine and learner computing other ratios.")
    rollout_correction_threshold: Annotated[Float, Field(gt=1)] = Field(
        2.0, description="Largest learner/engine ratio c; rejection keeps 1/c to c."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("preset")) in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(
            self.loss not in ("sapo", "geo_mean") or self.aggregation == "seq-mean-token-mean",
            f"algorithm.loss={self.loss} averages within each answer, so it cannot be combined "
            f"with algorithm.aggregation={self.aggregation}: set it to seq-mean-token-mean",
        )
        _require(
            self.kl_in == "loss" or self.advantage != "gdpo",
            "algorithm.advantage=gdpo normalises each reward of its own, so there is no one reward "
            "to take the KL off: set algorithm.kl_in=loss",
        )
        _require(
            self.kl_target is None or self.kl_coef > 0,
            f"algorithm.kl_target={self.kl_target} adapts algorithm.kl_coef, which is 0: give its "
            "first value",
        )
        _require(
            self.temporal_contrast.weight == 0 or self.advantage != "gdpo",
            "algorithm.advantage=gdpo normalises each reward of its own, so there is no one reward "
            "to add a bonus to: set algorithm.temporal_contrast.weight=0",
        )
        _require(
            self.clip_cov_range[0] < self.clip_cov_range[1],
            f"algorithm.clip_cov_range={list(self.clip_cov_range)}: expected two rising numbers",
        )
        return self


class LearnerConfig(_Section):
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
    num_workers: Count = Field(1, description="Ranks.")
    num_cpus: Positive = Field(1.0, description="CPUs that Ray reserves for one rank.")
    num_threads: Count = Field(1, description="Computing threads of one rank on CPU.")
    lr: Positive = Field(1e-6, description="Peak learning rate.")
    lr_vision_tower: Positive | None = Field(
        None, description="Peak learning rate of the vision tower, in place of lr."
    )
    lr_merger: Positive | None = Field(
        None, description="Peak learning rate of the merger, in place of lr."
    )
    min_lr_ratio: Fraction = Field(0.0, description="Learning rate at the end, of the peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Optimiser steps of warm-up.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="AdamW's decay; norms and biases are left out."
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's betas.")
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
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Times that a run goes on from its last checkpoint after a rank was lost."
    )
    timeout_s: Positive = Field(1800.0, description="Longest wait for one update.")

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.strategy == "fsdp2":
            _require(
                self.offload != "optimizer",
                "learner.offload='optimizer': FSDP2 offloads all or none (or take "
                "learner.strategy=deepspeed)",
            )
            _require(
                self.deepspeed_config is None,
                f"learner.deepspeed_config={self.deepspeed_config!r} is read only with "
                "learner.strategy=deepspeed",
            )
        else:
            _require(
                self.offload != "all" or self.zero_stage == 3,
                f"learner.offload='all' with learner.zero_stage={self.zero_stage}: weights are "
                "offloaded only by stage 3",
            )
        return self


class SftConfig(_Section):
    """Supervised fine-tuning."""

    num_steps: Count = Field(500, description="Optimiser steps.")
    clips_per_step: Count = Field(32, description="Clips of one optimiser step, over all ranks.")
    validate_every: Count = Field(50, description="Steps between validation losses.")
    num_validation_clips: Count = Field(64, description="Clips of the validation loss.")


class TrainConfig(_Section):
    """The GRPO loop."""

    num_steps: Count = Field(200, description="Steps: batches of prompts.")
    prompts_per_step: Count = Field(32, description="Prompts issued in a step.")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="Answers to each prompt (G).")
    mini_batch_size: Count | None = Field(
        None, description="Rollouts of one optimiser step; all of the step's by default."
    )
    num_updates_per_batch: Count = Field(
        1, description="Passes over a step's batch; above 1 the ratio leaves 1 and clipping acts."
    )
    max_staleness: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Steps that a rollout may lag behind the learner while both go on at the same "
        "time (asynchronous driver; 0: the numbers of the synchronous one); null: synchronous.",
    )
    max_refill_factor: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="Groups issued in place of dropped ones, of the same count stratum, at most "
        "this many times prompts_per_step in a step (dynamic sampling); 0: none.",
    )
    pass_rate_window: tuple[Float, Float] | None = Field(
        None, description="Groups whose mean reward lies outside [low, high] are dropped."
    )
    max_log_prob_gap: Positive = Field(
        1e-2, description="Mean |rollout - learner| log-prob above which a run stops (float32)."
    )
    on_log_prob_gap: Literal["stop", "log"] = Field("stop", description="What happens above it.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        window = self.pass_rate_window
        _require(
            window is None or window[0] < window[1],
            f"train.pass_rate_window={window and list(window)}: expected [low, high], low < high",
        )
        return self


class EvalConfig(_Section):
    """Evaluation during and after training."""

    split: Literal["validation", "test"] = Field("validation", description="Clips to evaluate on.")
    every: Annotated[int, Field(ge=0)] = Field(0, description="Steps between evaluations; 0: none.")
    num_clips: Count | None = Field(None, description="Only the first clips of the split.")
    num_bootstrap: Count = Field(2000, description="Resamples of the 95% intervals.")


class CheckpointConfig(_Section):
    """Checkpoints of a run."""

    every: Annotated[int, Field(ge=0)] = Field(50, description="Steps between them; 0: at the end.")
    keep: Count = Field(2, description="How many of the newest are kept.")


class PlacementConfig(_Section):
    """Where in the cluster workers run."""

    mode: Literal["separated", "colocated"] = Field(
        "separated",
        description="GPUs of their own for engines and learner ranks, or one for a pair of them "
        "that takes turns: the engine sleeps while its rank works.",
    )
    learner_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may learn.")
    rollout_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may generate.")
    reward_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may score.")
    wait_s: Annotated[Float, Field(ge=0)] = Field(
        60.0, description="Longest wait for nodes that a joined cluster does not have yet."
    )


class Recipe(_Section):
    """All settings of one run."""

    stage: Literal["sft", "grpo"] = Field("grpo", description="What the recipe is for.")
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run."
    )
    runs_dir: str = Field("runs", description="Folder of run folders.")
    seed: int = Field(0, ge=0, description="Seed of sampling, order and initialisation.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where workers compute.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    video: VideoConfig = VideoConfig()
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    placement: PlacementConfig = PlacementConfig()

    @model_validator(mode="before")
    @classmethod
    def _add_preset_penalties(cls, values: Any) -> Any:
        algorithm = values.get("algorithm") if isinstance(values, dict) else None
        preset = str(algorithm.get("preset")) if isinstance(algorithm, dict) else ""
        reward = values.get("reward", {}) if preset in PRESET_PENALTIES else None
        if not isinstance(reward, dict) or "weights" in reward:
            return values
        weights = {**RewardConfig().weights, **PRESET_PENALTIES[preset]}
        return {**values, "reward": {**reward, "weights": weights}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_attention(self)
        ranks = self.learner.num_workers
        if self.stage == "sft":
            _require(
                self.sft.clips_per_step % ranks == 0,
                f"sft.clips_per_step={self.sft.clips_per_step} is not a multiple of "
                f"learner.num_workers={ranks}: change one of them",
            )
            return self
        _require(
            not self.sends_adapters or self.rollout.engine != "vllm" or self.model.lora.rank <= 512,
            f"model.lora.rank={self.model.lora.rank}: vLLM takes adapters of at most 512; set "
            "model.lora.send=merged",
        )
        self._check_colocated()
        train = self.train
        _require(
            train.prompts_per_step % ranks == 0,
            f"train.prompts_per_step={train.prompts_per_step} is not a multiple of "
            f"learner.num_workers={ranks}: change one of them",
        )
        step, mini = train.prompts_per_step * train.group_size, train.mini_batch_size
        _require(
            mini is None or (step % mini == 0 and mini % (train.group_size * ranks) == 0),
            f"train.mini_batch_size={mini}: expected a divisor of prompts_per_step * group_size "
            f"= {step} that is a multiple of group_size * learner.num_workers "
            f"= {train.group_size * ranks}",
        )
        return self

    def _check_colocated(self) -> None:
        """What cannot take turns is refused."""
        if self.placement.mode == "separated":
            return
        rollout, ranks, mode = self.rollout, self.learner.num_workers, "placement.mode=colocated"
        _require(
            self.train.max_staleness is None,
            f"{mode}: engines sleep while learners work, so nothing can run ahead: unset "
            f"train.max_staleness={self.train.max_staleness}, or set placement.mode=separated",
        )
        _require(
            rollout.num_workers == ranks and rollout.tensor_parallel_size == 1,
            f"{mode}: each rank shares its GPU with one engine of one GPU: expected "
            f"rollout.num_workers={ranks} (learner.num_workers) and tensor_parallel_size=1, got "
            f"{rollout.num_workers} and {rollout.tensor_parallel_size}",
        )
        _require(
            rollout.max_workers is None,
            f"{mode}: each rank has one engine: unset rollout.max_workers={rollout.max_workers}",
        )
        _require(
            not self.placement.rollout_labels,
            f"{mode}: engines are where the ranks are: use placement.learner_labels alone",
        )

    @property
    def answers_per_optimizer_step(self) -> int:
        """Answers (of SFT: clips) whose gradient one optimiser step takes, over all ranks."""
        if self.stage == "sft":
            return self.sft.clips_per_step
        train = self.train
        return train.mini_batch_size or train.prompts_per_step * train.group_size

    @property
    def sends_adapters(self) -> bool:
        """Whether the engines hold the base model and are given adapters only."""
        return self.stage == "grpo" and self.model.lora.send == "adapter"

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.runs_dir) / self.name


def check_attention(recipe: Recipe) -> None:
    """Refuse kernels of attention that cannot serve the packing, dtype or (settled) device.

    Raises:
        ConfigError: naming the settings and what to change.
    """
    learner, choice = recipe.learner, recipe.learner.attention
    reason = ""
    if choice == "flash_attention_2" and learner.packing == "shared_prefix":
        reason = "learner.packing=shared_prefix, which needs a mask that it does not take: use flex"
    elif choice == "flash_attention_2" and recipe.model.dtype == "float32":
        reason = "model.dtype=float32: its kernels compute in bfloat16"
    elif choice != "sdpa" and recipe.device == "cpu":
        reason = "device=cpu: its kernels need a GPU"
    elif choice == "flash_attention_2" and recipe.device == "cuda" and not _has_flash_attn():
        reason = "this environment, which lacks flash-attn: install it (extra `flash`)"
    if reason:
        raise ConfigError(
            f"learner.attention={choice} cannot serve {reason}, or set learner.attention=sdpa"
        )


def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: defaults, then the YAML file, then `key.subkey=value` overrides.

    Args:
        path: YAML file, or None for the defaults alone.
        overrides: For example `["learner.lr=2.0e-6", "train.num_steps=10"]`; values are YAML.

    Raises:
        ConfigError: naming the file or override, the key, the value and what was expected.
    """
    values: dict[str, Any] = {} if path is None else _read_yaml(Path(path))
    return _build(values, overrides, str(path or "settings"))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The same settings with `key.subkey=value` overrides, as in `load_recipe`.

    Raises:
        ConfigError: naming the override, the key, the value and what was expected.
    """
    values = recipe.model_dump()
    if any(text.startswith("algorithm.preset=") for text in overrides):
        _forget_preset(values, recipe.algorithm.preset)
    return _build(values, overrides, "settings")


def under_root(recipe: Recipe, root: str | Path) -> Recipe:
    """The same settings with relative paths of the data, model and runs taken from a folder.

    For a submitted job, whose own folder is a copy of the code alone, `root` lies on storage that
    all nodes share.
    """
    base = Path(root).absolute()

    def at_root(path: str) -> str:
        return str(base / path) if path else path

    return recipe.model_copy(
        update={
            "runs_dir": at_root(recipe.runs_dir),
            "data": recipe.data.model_copy(update={"path": at_root(recipe.data.path)}),
            "model": recipe.model.model_copy(update={"path": at_root(recipe.model.path)}),
        }
    )


def write_resolved(recipe: Recipe, path: Path, extra: dict[str, Any]) -> None:
    """Write every setting and `extra` (versions, commit, data) as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"recipe": recipe.model_dump(mode="json"), **extra}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _build(values: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected key=value, for example learner.lr=1e-6")
        try:
            _assign(values, key.split("."), yaml.safe_load(value), text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: the value is not YAML") from error
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def _forget_preset(values: dict[str, Any], preset: str | None) -> None:
    """Take out what a preset set, so that another one can take its place."""
    default = AlgorithmConfig().model_dump()
    chosen: dict[str, Any] = PRESETS.get(preset or "", {})
    values["algorithm"] = {
        key: value
        for key, value in values["algorithm"].items()
        if value not in (default[key], chosen.get(key, default[key]))
    }
    if values["reward"]["weights"] == {
        **RewardConfig().weights,
        **PRESET_PENALTIES.get(preset or "", {}),
    }:
        del values["reward"]["weights"]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def _assign(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a section")
    values[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    """The first problem in words, with the nearest known key where one was misspelt."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
        return f"unknown key {key!r}{hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    return f"{key}={first['input']!r}: {message}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)
