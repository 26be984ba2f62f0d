"""`rollout`, `reward`: what generates answers and what scores them."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from actrep_ray.config.section import (
    MOST,
    Contradiction,
    ContradictionError,
    Count,
    Float,
    Fraction,
    Positive,
    Seconds,
    Section,
    Whole,
    Workers,
    number_of_text,
)
from actrep_ray.config.strict_yaml import Switch
from actrep_ray.config.vllm import VllmConfig

_BATCH_HOLDS = {
    "max_model_len": "vLLM refuses a video that does not fit into one batch",
    "max_num_seqs": "each answer takes a token of a batch",
}


class RolloutConfig(Section):
    """The engines that generate."""

    engine: Literal["vllm", "hf"] = Field("vllm", description="What generates.")
    num_workers: Workers = Field(
        1, description="Engines; `{min: 1, max: 4}` stands for this and max_workers."
    )
    tensor_parallel_size: Workers = Field(1, description="GPUs of one engine.")
    num_cpus: Positive = Field(1.0, description="CPUs that Ray reserves for one engine.")
    num_threads: Workers = Field(1, description="Computing threads of one engine on CPU.")
    gpu_memory_utilization: Fraction = Field(0.85, description="Share of a GPU that vLLM takes.")
    kv_cache_gib: Positive = Field(1.0, description="Size of the KV cache on CPU, GiB.")
    max_num_seqs: Count = Field(256, description="Answers generated at the same time.")
    max_model_len: Count = Field(8192, description="Most tokens of prompt and answer together.")
    max_response_tokens: Count = Field(1024, description="Most tokens of an answer.")
    temperature: Annotated[Float, Field(gt=0, le=100)] = Field(
        1.0, description="Temperature of sampling in training."
    )
    top_p: Annotated[Float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus of sampling.")
    enforce_eager: bool = Field(False, description="Do not capture CUDA graphs.")
    takes_images: bool = Field(
        False,
        description="Have vLLM make room for still images in prompts too; it sets memory aside "
        "for the largest that the model's processor allows. hf takes them as it is.",
    )
    max_images: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Most still images in one prompt, where takes_images; hf takes any number."
    )
    max_in_flight: Count | None = Field(
        None, description="Answers handed to one engine at a time; twice max_num_seqs by default."
    )
    max_workers: Workers | None = Field(
        None, description="A run starts engines up to this many where there is room for them."
    )
    max_restarts: Whole = Field(
        3, description="Engines that were lost and are replaced within an hour; one more stops it."
    )
    timeout_s: Seconds = Field(1800.0, description="Longest wait for one batch of groups.")
    vllm: VllmConfig = VllmConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_range(cls, values: Any) -> Any:
        given = values.get("num_workers") if isinstance(values, dict) else None
        if not isinstance(given, dict):
            return values
        if set(given) != {"min", "max"} or values.get("max_workers") is not None:
            message = (
                f"rollout.num_workers={given}: expected a number, or {{min: 1, max: 4}} without "
                "rollout.max_workers"
            )
            keys = ("rollout.num_workers", "rollout.max_workers")
            raise ContradictionError([Contradiction(keys, message)])
        return {**values, "num_workers": given["min"], "max_workers": given["max"]}

    def contradictions(self) -> Iterator[Contradiction]:
        """Fewer engines at most than at first; options of vLLM that its engine cannot use."""
        if self.max_workers is not None and self.max_workers < self.num_workers:
            yield Contradiction(
                ("rollout.max_workers", "rollout.num_workers"),
                f"rollout.max_workers={self.max_workers}: expected at least rollout.num_workers="
                f"{self.num_workers}",
            )
        given = [
            f"rollout.vllm.{name}"
            for name, field in VllmConfig.model_fields.items()
            if getattr(self.vllm, name) != field.default
        ]
        if self.engine != "vllm" and given:
            yield Contradiction(
                ("rollout.engine", *given),
                f"{', '.join(given)}: rollout.engine={self.engine} has no such options: leave them "
                "out, or set rollout.engine=vllm",
            )
        tokens = self.vllm.max_num_batched_tokens
        for name in ("max_model_len", "max_num_seqs"):
            if tokens is not None and tokens < getattr(self, name):
                yield Contradiction(
                    ("rollout.vllm.max_num_batched_tokens", f"rollout.{name}"),
                    f"rollout.vllm.max_num_batched_tokens={tokens}: expected at least "
                    f"rollout.{name}={getattr(self, name)}, since " + _BATCH_HOLDS[name],
                )


class RewardConfig(Section):
    """The reward and the workers that compute it."""

    weights: dict[str, float | dict[str, str | int | float | bool]] = Field(
        {"obo": 0.5, "cycles": 0.4, "format": 0.1},
        description="Weight of each part: a name of `rewards`, or `package.module:function`. A "
        "mapping `{weight: 0.4, tolerance: 0.3}` hands the rest to the part as its options.",
    )
    combine: Literal["sum", "per_reward"] = Field(
        "sum", description="Weigh the parts, or normalise each within its group first (GDPO)."
    )
    num_workers: Workers = Field(1, description="Reward workers.")
    num_cpus: Positive = Field(0.25, description="CPUs that Ray reserves for one reward worker.")
    timeout_s: Seconds = Field(60.0, description="Longest wait for the scores of one batch.")
    max_restarts: Whole = Field(
        3, description="Reward workers that were lost and are replaced within an hour, likewise."
    )
    max_failures: Whole = Field(
        0, description="Groups of a run that are dropped because a reward failed, before it stops."
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        parts = {str(name): _numbers_read(part) for name, part in value.items()}
        wrong = [text for name, part in parts.items() for text in _part_mistakes(name, part)]
        if wrong:
            raise ContradictionError(Contradiction(("reward.weights",), text) for text in wrong)
        return parts

    def contradictions(self) -> Iterator[Contradiction]:
        """Parts of which none counts."""
        if not any(weight > 0 for weight in self.part_weights.values()):
            key = "reward.weights"
            yield Contradiction((key,), f"{key}: expected one weight above 0")

    @property
    def part_weights(self) -> dict[str, float]:
        """Weight of each part by name, its options left out."""
        return {
            name: float(part["weight"] if isinstance(part, dict) else part)
            for name, part in self.weights.items()
        }


def _numbers_read(part: Any) -> Any:
    """One entry of `reward.weights`: numbers for the texts that stand for them, booleans likewise.

    What kind of value a reward's option takes is not known here: an unquoted `off` is a boolean.
    """
    if isinstance(part, dict):
        return {
            str(option): value.is_on if isinstance(value, Switch) else number_of_text(value)
            for option, value in part.items()
        }
    weight = number_of_text(part)
    return float(weight) if _is_number(weight) else weight


def _part_mistakes(name: str, part: Any) -> Iterator[str]:
    """What is wrong with one entry of `reward.weights`; the options are the reward's business."""
    key = f"reward.weights.{name}"
    given = part if isinstance(part, dict) else {"weight": part}
    weight: Any = given.get("weight")
    if not _is_number(weight) or not 0 <= weight <= MOST:
        yield f"{key}: weight={weight!r}, expected a number >= 0, at most {MOST:g}"
    for option, value in given.items():
        if option != "weight" and not isinstance(value, str | int | float | bool):
            yield f"{key}.{option}={value!r}: expected a number, a string or a boolean"
        elif _is_number(value) and not math.isfinite(value):
            yield f"{key}.{option}={value!r}: expected a finite number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
