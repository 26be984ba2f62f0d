"""Rollouts by vLLM, in this process, on a CPU or a GPU.

One request asks for all answers of a group, so that the vision tower and the prompt are computed
once. Frames come from the node's cache; vLLM recognises a clip that it has processed before by the
hash of its plan.

Where vLLM is deviated from: the processor may neither sample nor resize (the plan has done both),
Qwen2.5-VL is given the frame rate in the one way that its positions follow, weights are replaced
through `actrep_ray.weights.vllm_load`, and tokens drawn by `actrep_ray.rollout.vllm_sampler`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from actrep_ray.config import VLLM_LORA_RANKS, ConfigError, LoraConfig, RolloutConfig, VideoConfig
from actrep_ray.models.qwen_vl import QwenVLInputs, video_metadata
from actrep_ray.models.serving import (
    CPU_BATCH_TOKENS,
    budget_in_vllm,
    cpu_environment,
    cpu_overrides,
)
from actrep_ray.models.torch_names import host_threads
from actrep_ray.records import Prompt, PromptRefusedError, PromptTooLongError, RolloutGroup
from actrep_ray.rollout.draws import EXTRA_ARG, answer_keys
from actrep_ray.rollout.engine import QwenVLEngine, SamplingSettings
from actrep_ray.rollout.vllm_start import telling_what_workers_wrote
from actrep_ray.weights import vllm_load
from actrep_ray.weights.buckets import Weights, bit_sums
from data_prep.video import FramePlan

_GIB = 2**30
_CPU_BLOCK_TOKENS = 32  # prompts are shared in whole blocks; vLLM's 128 exceeds a short prompt
_PROCESSED_CLIPS_GIB = 1.0
_WORKER_EXTENSION = "actrep_ray.rollout.vllm_sampler.WorkerExtension"


class VllmEngine(QwenVLEngine):
    """A vLLM engine for one Qwen-VL checkpoint.

    Args:
        model_path: Folder of the checkpoint.
        rollout_cfg: Sizes and sampling.
        video_cfg: Where frames are cached.
        device: Where to compute.
        seed: With a prompt's id, it decides what is drawn.
        dtype: Dtype of computation; float32 on a CPU and bfloat16 on a GPU by default.
        lora: Given if `load_weights` brings adapters of this make, not all weights.
        shares_gpu: Whether `sleep` has to free the GPU for others.
        is_visual_frozen: Whether neither vision tower nor merger is trained: what they made of
            frames outlives a push then, if the push brings the weights of them that are there.
    """

    def __init__(
        self,
        model_path: str | Path,
        rollout_cfg: RolloutConfig,
        video_cfg: VideoConfig,
        *,
        device: Literal["cpu", "cuda"],
        seed: int,
        dtype: Literal["float32", "bfloat16"] | None = None,
        lora: LoraConfig | None = None,
        shares_gpu: bool = False,
        is_visual_frozen: bool = False,
    ) -> None:
        super().__init__(model_path, rollout_cfg, video_cfg, device=device, dtype=dtype, lora=lora)
        self._max_images = _max_images(rollout_cfg)
        self._adapter: Any = None  # what requests refer to it by, once there is one
        self._running: dict[str, _Running] = {}  # by vLLM's number of the request
        self._num_pushes = 0
        self._is_visual_frozen = is_visual_frozen
        self._visual_sums: dict[str, int] | None = None  # of what was pushed last
        _set_environment(device, rollout_cfg)
        from vllm import LLM  # takes 10-25 s and reads the environment

        options = _engine_options(str(model_path), self.inputs.family, rollout_cfg, device)
        if size := budget_in_vllm(self.inputs.family, self.inputs.processor.video_processor):
            options["mm_processor_kwargs"] = {"size": size}
        if lora is not None:
            options |= _lora_options(lora)
        self._can_sleep = shares_gpu and device == "cuda"  # vLLM for CPUs cannot
        if self._can_sleep:
            options["enable_sleep_mode"] = True
        self._seed = seed
        with telling_what_workers_wrote(rollout_cfg.tensor_parallel_size):
            self.llm: Any = LLM(**options, dtype=self.dtype, seed=seed)
        self.llm.collective_rpc("actrep_draw_by_answer")

    @property
    def num_unfinished(self) -> int:
        """Prompts that are being answered."""
        return len(self._running)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Take prompts; see `Engine.add`."""
        for prompt in prompts:
            with self.refusing(prompt):
                num_visual = sum(_num_visual_tokens(self.inputs, p) for p in prompt.plan.shown)
                self.check_length(prompt, num_visual, settings.max_tokens)
                request_id = self._enqueue(prompt, self.sampling_params(prompt, settings))
                number = request_id.partition("-")[0]  # vLLM has added random letters to it
                self._running[number] = _Running(
                    prompt, request_id, settings.max_tokens, self.policy_version
                )

    def step(self) -> list[RolloutGroup]:
        """One forward pass of vLLM; see `Engine.step`."""
        finished = [output for output in self.llm.llm_engine.step() if output.finished]
        groups = []
        for output in finished:
            running = self._running.pop(output.request_id)
            with self.refusing(running.prompt):
                groups.append(self._group(running, output))
        return groups

    def clear(self) -> None:
        """Forget what is being answered."""
        ids = [running.request_id for running in self._running.values()]
        self.llm.llm_engine.abort_request(ids, internal=True)
        self._running.clear()

    def replace_weights(self, weights: Weights) -> None:
        """Replace all weights or the adapter, and empty caches; see `Engine.load_weights`."""
        keeps_visual = self._is_visual_frozen and self._has_visual_of(weights)
        if self.lora is None:
            vllm_load.replace_all(self.llm, weights)
        elif self._running and self._adapter is None:
            raise RuntimeError("answers are at work without an adapter; give the first one before")
        else:
            self._adapter = vllm_load.replace_adapter(self.llm, weights, self.lora)
        self.forget_prompts(keeps_visual=keeps_visual)

    def verify_weights(self, weights: Weights) -> None:
        """Compare them, of a large model a share each time; see `Engine.verify_weights`."""
        if self.lora is None:
            vllm_load.verify_all(self.llm, weights, self.dtype, self._num_pushes)
            self._num_pushes += 1
        else:
            vllm_load.verify_adapter(self.llm, weights, self.lora, self.dtype)

    def _has_visual_of(self, weights: Weights) -> bool:
        """Whether tower and merger are those that were given before, bit for bit but for chance."""
        if self.lora is not None:  # the base stays, and an adapter has none of them
            return not any("visual." in name for name in weights)
        before, self._visual_sums = self._visual_sums, bit_sums(weights, "visual.")
        return self._visual_sums == before

    def forget_prompts(self, *, keeps_visual: bool = False) -> None:
        """Empty the caches of what was computed by weights.

        Answers at work are put back, so that prompt, video and tokens are computed again.
        Processed clips are kept: pixels do not depend on weights.

        Args:
            keeps_visual: Keep what tower and merger made of frames as well.
        """
        if not self.llm.reset_prefix_cache(reset_running_requests=bool(self._running)):
            raise RuntimeError("vLLM did not empty its prefix cache after new weights were loaded")
        if not keeps_visual:
            self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Move the weights to the CPU and drop the KV cache; see `Engine.sleep`.

        On a CPU it keeps them: there is no memory of another kind to move them to.
        """
        if self._can_sleep:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """Move the weights back; the KV cache is empty."""
        if self._can_sleep:
            self.llm.wake_up()

    def shutdown(self) -> None:
        """Free the engine, so that another one can start in this process."""
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self._running.clear()
        cleanup_dist_env_and_memory()

    def _enqueue(self, prompt: Prompt, params: Any) -> str:
        """Hand a prompt to vLLM; returns its number there.

        Raises:
            VideoError: if the clip cannot be read.
            PromptTooLongError: if vLLM finds it too long, or its video too large.
            PromptRefusedError: if vLLM refuses it for another reason that lies in it.
        """
        from vllm.exceptions import VLLMValidationError

        request = self.request(prompt)
        try:
            [request_id] = self.llm.enqueue(
                [request], params, use_tqdm=False, lora_request=self._adapter
            )
        except VLLMValidationError as error:
            if hasattr(params, error.parameter or ""):  # settings, which all prompts share
                raise
            kind = PromptTooLongError if _is_of_length(error) else PromptRefusedError
            raise kind(f"clip {prompt.clip_id!r}: vLLM: {error}") from error
        return str(request_id)

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt as vLLM is asked.

        Raises:
            ConfigError: for more images than the engine was started with room for.
        """
        plan = prompt.plan
        if plan.num_images > self._max_images:
            raise ConfigError(
                f"clip {prompt.clip_id!r} shows {plan.num_images} still images, of which vLLM has "
                f"room for {self._max_images} in a prompt: expected rollout.takes_images=true "
                f"with rollout.max_images={plan.num_images}, or rollout.engine=hf"
            )
        data: dict[str, list[Any]] = {}
        hashes: dict[str, list[str]] = {}
        options: dict[str, Any] = {"do_resize": False}
        for shown in plan.shown:
            kind = "image" if shown.is_image else "video"
            hashes.setdefault(kind, []).append(shown.hash)
            frames = self.frames.get(shown)
            data.setdefault(kind, []).append(
                Image.fromarray(frames[0]) if shown.is_image else frames
            )
        if not plan.is_image:
            metadata = video_metadata(plan)
            options["do_sample_frames"] = False
            if self.inputs.family.startswith("qwen3_vl"):
                data["video"] = [(frames, metadata) for frames in data["video"]]
            elif self.inputs.family == "qwen2_5_vl":  # given with the frames, it is dropped
                options["video_metadata"] = [metadata]
        return {
            "prompt": self.inputs.text_of(prompt.question, plan),
            "multi_modal_data": data,
            "multi_modal_uuids": hashes,
            "mm_processor_kwargs": options,
        }

    def sampling_params(self, prompt: Prompt, settings: SamplingSettings) -> Any:
        """How a prompt is answered, as vLLM has it: `vllm.SamplingParams`."""
        from vllm import SamplingParams

        return SamplingParams(
            n=settings.group_size,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            extra_args={EXTRA_ARG: answer_keys(self._seed, prompt.prompt_id, settings.group_size)},
            stop_token_ids=list(self.inputs.end_ids),
            logit_bias=dict.fromkeys(self.inputs.visual_token_ids, -np.inf),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
        )

    def _group(self, running: "_Running", output: Any) -> RolloutGroup:
        prompt = running.prompt
        num_tokens = len(output.prompt_token_ids)
        self.check_length(prompt, num_tokens, running.max_tokens)
        return RolloutGroup(
            prompt=prompt,
            rollouts=tuple(
                self.rollout(
                    prompt,
                    answer.index,
                    token_ids=answer.token_ids,
                    log_probs=answer.logprobs.logprobs,
                    policy_version=running.policy_version,
                )
                for answer in sorted(output.outputs, key=lambda answer: answer.index)
            ),
            num_prompt_tokens=num_tokens,
        )


@dataclass(frozen=True)
class _Running:
    """A prompt that vLLM was given, by which id, and the weights in use then."""

    prompt: Prompt
    request_id: str
    max_tokens: int
    policy_version: int


def _is_of_length(error: Any) -> bool:
    """Whether vLLM refuses a prompt for its length, or for the size of its video.

    All that it refuses is of one type; these are told apart by the parameter that they name, or by
    their first words (vLLM 0.28).
    """
    if error.parameter is not None:
        return error.parameter in ("input_tokens", "input_text")
    return re.match(r"The \w+ prompt (\(length|contains a\(n\))", str(error)) is not None


def _max_images(cfg: RolloutConfig) -> int:
    """Most still images that a prompt may show."""
    return cfg.max_images if cfg.takes_images else 0


def _num_visual_tokens(inputs: QwenVLInputs, plan: FramePlan) -> int:
    """Tokens of a video or an image, timestamps not counted."""
    num_patches = -(-plan.num_frames // inputs.temporal_patch_size)
    return num_patches * (plan.height // inputs.factor) * (plan.width // inputs.factor)


def _set_environment(device: str, cfg: RolloutConfig) -> None:
    """What vLLM reads from the environment; it has to be there before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no child process for the engine's core
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # its sampler is another one than `vllm_sampler`'s
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device == "cpu":
        os.environ.update(cpu_environment(cfg.num_threads))
        torch.set_num_threads(cfg.num_threads)
    else:
        torch.set_num_threads(host_threads(cfg.tensor_parallel_size))


def _lora_options(cfg: LoraConfig) -> dict[str, Any]:
    """What makes room for one adapter."""
    options: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(rank for rank in VLLM_LORA_RANKS if rank >= cfg.rank),
    }
    if set(cfg.components) == {"language_model"}:
        return options | {"lora_target_modules": list(cfg.target_modules)}
    # A name may stand for a convolution as well there, at which vLLM would give up.
    return options | {"enable_tower_connector_lora": True}


def _batch_tokens(cfg: RolloutConfig, device: str) -> int:
    """Most tokens of a forward pass: the recipe's, or vLLM's own and the longest prompt at least.

    vLLM's cache of what the vision tower has computed has room for as many, and it refuses a video
    that does not fit into it; a prompt that `rollout.max_model_len` allows so always does.
    """
    if cfg.vllm.max_num_batched_tokens is not None:
        return cfg.vllm.max_num_batched_tokens
    if device == "cpu":
        return max(cfg.max_model_len, CPU_BATCH_TOKENS)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    defaults, _ = EngineArgs.get_batch_defaults(cfg.tensor_parallel_size)
    own: int = defaults[UsageContext.LLM_CLASS]
    return max(cfg.max_model_len, own)


def _reads_fp8_cache() -> bool:
    """Whether vLLM has kernels for a KV cache of fp8 on this CPU."""
    return bool(torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported())


def _engine_options(
    model_path: str, family: str, cfg: RolloutConfig, device: str
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": model_path,
        "max_model_len": cfg.max_model_len,
        "max_num_seqs": cfg.max_num_seqs,
        "tensor_parallel_size": cfg.tensor_parallel_size,
        "limit_mm_per_prompt": {"video": 1, "image": _max_images(cfg)},
        "mm_processor_cache_gb": _PROCESSED_CLIPS_GIB,
        # With `lru`, each process of tensor parallelism keeps a copy of every clip.
        "mm_processor_cache_type": "shm" if cfg.tensor_parallel_size > 1 else "lru",
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # sampling is ours alone, penalties of the folder are not
        **vllm_load.OPTIONS,
        "worker_extension_cls": _WORKER_EXTENSION,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "trust_remote_code": False,
        "max_num_batched_tokens": _batch_tokens(cfg, device),
        "kv_cache_dtype": cfg.vllm.kv_cache_dtype,
        "attention_backend": cfg.vllm.attention_backend,
    }
    if device == "cuda":
        return options | {
            "gpu_memory_utilization": cfg.gpu_memory_utilization,
            "enforce_eager": cfg.enforce_eager,
        }
    if cfg.vllm.has_fp8_cache and not _reads_fp8_cache():
        raise ConfigError(
            f"rollout.vllm.kv_cache_dtype={cfg.vllm.kv_cache_dtype}: vLLM has it on CPUs with "
            "AVX-512 or AMX, which this one lacks: set it to auto"
        )
    options |= {
        "enforce_eager": True,  # compiling costs minutes
        "skip_mm_profiling": True,
        "kv_cache_memory_bytes": int(cfg.kv_cache_gib * _GIB),
        "block_size": _CPU_BLOCK_TOKENS,
    }
    if overrides := cpu_overrides(family):
        options["hf_overrides"] = overrides
    return options
