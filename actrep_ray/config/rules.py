"""What must hold between sections of a recipe.

Each rule is given the sections that it reads and yields what contradicts, with the keys involved.
"""

import importlib.util
from collections.abc import Iterator

from actrep_ray.config.algorithm import AlgorithmConfig
from actrep_ray.config.data import DataConfig
from actrep_ray.config.generation import RewardConfig, RolloutConfig
from actrep_ray.config.learner import LearnerConfig
from actrep_ray.config.model import ModelConfig
from actrep_ray.config.run import PlacementConfig, SftConfig, TrainConfig
from actrep_ray.config.section import Contradiction

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


def attention(learner: LearnerConfig, model: ModelConfig, device: str) -> Iterator[Contradiction]:
    """Kernels of attention that cannot serve the packing, dtype or device.

    Args:
        learner: Names the kernels.
        model: Its dtype.
        device: `auto` is not known yet and refuses nothing.
    """
    choice = learner.attention
    key, reason = "", ""
    if choice == "flash_attention_2" and learner.packing == "shared_prefix":
        key = "learner.packing"
        reason = "learner.packing=shared_prefix, which needs a mask that it does not take: use flex"
    elif choice == "flash_attention_2" and model.dtype == "float32":
        key, reason = "model.dtype", "model.dtype=float32: its kernels compute in bfloat16"
    elif choice != "sdpa" and device == "cpu":
        key, reason = "device", "device=cpu: its kernels need a GPU"
    elif choice == "flash_attention_2" and device == "cuda" and not _has_flash_attn():
        key = "device"
        reason = "this environment, which lacks flash-attn: install it (extra `flash`)"
    if reason:
        yield Contradiction(
            ("learner.attention", key),
            f"learner.attention={choice} cannot serve {reason}, or set learner.attention=sdpa",
        )


def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def adapters_of_engine(model: ModelConfig, rollout: RolloutConfig) -> Iterator[Contradiction]:
    """Adapters that vLLM is sent and cannot take."""
    lora, most = model.lora, VLLM_LORA_RANKS[-1]
    if lora.send == "adapter" and rollout.engine == "vllm" and lora.rank > most:
        yield Contradiction(
            ("model.lora.rank", "model.lora.send", "rollout.engine"),
            f"model.lora.rank={lora.rank}: vLLM takes adapters of at most {most}: lower it, or set "
            "model.lora.send=merged, which loses small changes in bfloat16",
        )


def engine_attention(rollout: RolloutConfig, device: str) -> Iterator[Contradiction]:
    """Kernels of vLLM where there is no GPU: it would leave them out without a word."""
    name = rollout.vllm.attention_backend
    if name is not None and device == "cpu":
        yield Contradiction(
            ("rollout.vllm.attention_backend", "device"),
            f"rollout.vllm.attention_backend={name} needs a GPU, device=cpu: unset it",
        )


def rounded_cache(
    rollout: RolloutConfig, algorithm: AlgorithmConfig, train: TrainConfig
) -> Iterator[Contradiction]:
    """Engines that compute another policy than the learner, and nothing is done about it."""
    key, dtype = "rollout.vllm.kv_cache_dtype", rollout.vllm.kv_cache_dtype
    if not rollout.vllm.has_fp8_cache:
        return
    if algorithm.rollout_correction == "off":
        yield Contradiction(
            (key, "algorithm.rollout_correction"),
            f"{key}={dtype} makes engines compute another policy than the learner: set "
            "algorithm.rollout_correction, for example to token_truncate, or the dtype to auto",
        )
    if train.max_log_prob_gap is None:
        yield Contradiction(
            (key, "train.max_log_prob_gap"),
            f"{key}={dtype} has a gap between engine and learner that depends on the model, and no "
            "limit of ours: set train.max_log_prob_gap above what a first step logs",
        )


def nucleus(rollout: RolloutConfig, algorithm: AlgorithmConfig) -> Iterator[Contradiction]:
    """Corrections by the ratio of learner to engine, where the engine samples from a nucleus.

    The nucleus is made to add up to 1, so the ratio of a token is the share that it had: from top_p
    to 1. That of an answer, a product over its tokens, is nearly 0.
    """
    top_p, what = rollout.top_p, algorithm.rollout_correction
    if top_p == 1 or what in ("off", "token_truncate"):
        return
    keys = ("rollout.top_p", "algorithm.rollout_correction")
    if what != "token_reject":
        yield Contradiction(
            keys,
            f"rollout.top_p={top_p:g} makes every answer likelier in the engine than in the "
            f"learner, up to {top_p:g}^tokens, and algorithm.rollout_correction={what} would leave "
            "next to nothing to train on: set rollout.top_p=1, or token_truncate",
        )
    elif top_p < 1 / algorithm.rollout_correction_threshold:
        key = "algorithm.rollout_correction_threshold"
        yield Contradiction(
            (*keys, key),
            f"rollout.top_p={top_p:g} makes tokens up to {1 / top_p:.4g} times likelier in the "
            f"engine than in the learner, and algorithm.rollout_correction={what} would leave them "
            f"out: set {key} to at least that, or rollout.top_p=1",
        )


_REASONS_FIRST = ("format", "strict_format")


def recognition(data: DataConfig, reward: RewardConfig) -> Iterator[Contradiction]:
    """A question that leaves out what is to be offered, a form that is not the one asked for."""
    if data.candidates != "open" and "{candidates}" not in data.question:
        yield Contradiction(
            ("data.candidates", "data.question"),
            f"data.candidates={data.candidates}, and data.question={data.question!r} has no place "
            "for them: write {candidates} where they belong, or set data.candidates=open",
        )


def answer_form(data: DataConfig, reward: RewardConfig) -> Iterator[Contradiction]:
    """A reward for another form of answers than `data.reasoning` asks for."""
    for name in _REASONS_FIRST if data.reasoning != "before" else ():
        if reward.part_weights.get(name, 0.0) > 0:
            yield Contradiction(
                ("reward.weights", "data.reasoning"),
                f"reward.weights.{name} pays for reasoning before the answer, and data.reasoning="
                f"{data.reasoning}: take it out, think_answer is paid in its place",
            )
    part = reward.weights.get("think_answer")
    if part is None:
        return
    asked = part.get("reasoning", "before") if isinstance(part, dict) else "before"
    if asked != data.reasoning:
        yield Contradiction(
            ("reward.weights", "data.reasoning"),
            f"reward.weights.think_answer pays for reasoning={asked}, and data.reasoning="
            f"{data.reasoning}: set think_answer: {{weight: 0.1, reasoning: {data.reasoning}}}",
        )


def sft_batch(sft: SftConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    """Clips of a step that ranks cannot share equally."""
    if sft.clips_per_step % learner.num_workers:
        yield Contradiction(
            ("sft.clips_per_step", "learner.num_workers"),
            f"sft.clips_per_step={sft.clips_per_step} is not a multiple of "
            f"learner.num_workers={learner.num_workers}: change one of them",
        )


def sft_text_lists(sft: SftConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    """A row without a video, where ranks run the vision tower together."""
    if sft.text_lists and learner.num_workers > 1:
        yield Contradiction(
            ("sft.text_lists", "learner.num_workers"),
            f"sft.text_lists={sft.text_lists} is for one rank, learner.num_workers="
            f"{learner.num_workers}: ranks run the vision tower together, which lists leave out; "
            "set sft.text_lists=0",
        )


def sft_lists_reason(sft: SftConfig, data: DataConfig) -> Iterator[Contradiction]:
    """Lists are reasoning before the answer, which another form leaves out or puts behind it."""
    if sft.text_lists and data.reasoning != "before":
        yield Contradiction(
            ("sft.text_lists", "data.reasoning"),
            f"sft.text_lists={sft.text_lists} teaches lists before the answer, data.reasoning="
            f"{data.reasoning} wants none there: set sft.text_lists=0",
        )


def grpo_batch(train: TrainConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    """Prompts of a step, or rollouts of an optimiser step, that ranks cannot share equally."""
    ranks = learner.num_workers
    if train.prompts_per_step % ranks:
        yield Contradiction(
            ("train.prompts_per_step", "learner.num_workers"),
            f"train.prompts_per_step={train.prompts_per_step} is not a multiple of "
            f"learner.num_workers={ranks}: change one of them",
        )
    step, mini = train.prompts_per_step * train.group_size, train.mini_batch_size
    if mini is not None and (step % mini or mini % (train.group_size * ranks)):
        yield Contradiction(
            (
                "train.mini_batch_size",
                "train.prompts_per_step",
                "train.group_size",
                "learner.num_workers",
            ),
            f"train.mini_batch_size={mini}: expected a divisor of prompts_per_step * group_size "
            f"= {step} that is a multiple of group_size * learner.num_workers "
            f"= {train.group_size * ranks}",
        )


def taking_turns(
    placement: PlacementConfig, rollout: RolloutConfig, learner: LearnerConfig, train: TrainConfig
) -> Iterator[Contradiction]:
    """Engines and ranks that share GPUs and cannot take turns."""
    if placement.mode == "separated":
        return
    ranks, key, mode = learner.num_workers, "placement.mode", "placement.mode=colocated"
    if train.max_staleness is not None:
        yield Contradiction(
            (key, "train.max_staleness"),
            f"{mode}: engines sleep while learners work, so nothing can run ahead: unset "
            f"train.max_staleness={train.max_staleness}, or set placement.mode=separated",
        )
    if rollout.num_workers != ranks or rollout.tensor_parallel_size != 1:
        yield Contradiction(
            (
                key,
                "rollout.num_workers",
                "rollout.tensor_parallel_size",
                "learner.num_workers",
            ),
            f"{mode}: each rank shares its GPU with one engine of one GPU: expected "
            f"rollout.num_workers={ranks} (learner.num_workers) and tensor_parallel_size=1, got "
            f"{rollout.num_workers} and {rollout.tensor_parallel_size}",
        )
    if rollout.max_workers is not None:
        yield Contradiction(
            (key, "rollout.max_workers"),
            f"{mode}: each rank has one engine: unset rollout.max_workers={rollout.max_workers}",
        )
    if placement.rollout_labels:
        yield Contradiction(
            (key, "placement.rollout_labels"),
            f"{mode}: engines are where the ranks are: use placement.learner_labels alone",
        )
