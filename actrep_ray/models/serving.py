"""How vLLM's OpenAI server is started for a checkpoint so that it sees a recipe's frames.

Its own loader of videos samples by `--media-io-kwargs` and knows the rate and the limits on frames,
not a plan. `actrep_ray.rollout.server` is the same server with a loader that makes plans; it is
told more by the same option.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import Recipe

VLLM_SERVER = (
    "vllm.entrypoints.openai.api_server"  # `vllm serve` of the build for CPUs cannot start
)
OUR_SERVER = "actrep_ray.rollout.server"
LOADER = "actrep"
"""The name by which vLLM finds our loader of videos."""

CPU_BATCH_TOKENS = 4096
"""Fewest that a forward pass of vLLM on a CPU may have."""

_TEXT_MODELS = {"qwen3_vl": "Qwen3ForCausalLM", "qwen3_vl_moe": "Qwen3MoeForCausalLM"}


@dataclass(frozen=True)
class ServedModel:
    """A checkpoint to serve.

    Attributes:
        folder: Of the model.
        family: Of Qwen-VL.
        recipe: Its settings.
        name: By which requests ask for it.
        factor: Sides of a frame are multiples of this, pixels.
        budget: See `budget_in_vllm`; None where that is not known.
    """

    folder: str | Path
    family: str
    recipe: Recipe
    name: str
    factor: int
    budget: dict[str, int] | None = None


def server_arguments(served: ServedModel, *, is_ours: bool) -> list[str]:
    """Arguments of the server that concern the model, for our module or vLLM's own."""
    video, rollout = served.recipe.video, served.recipe.rollout
    loading: dict[str, Any] = {
        "fps": video.fps,
        "min_frames": video.min_frames,
        "max_frames": video.max_frames,
    }
    if is_ours:
        loading |= {
            "video_backend": LOADER,
            "min_pixels": video.min_pixels,
            "max_pixels": video.max_pixels,
            "factor": served.factor,
        }
    batch_tokens = rollout.vllm.max_num_batched_tokens or max(
        rollout.max_model_len, CPU_BATCH_TOKENS
    )
    engine = []
    if rollout.vllm.has_fp8_cache:
        engine += ["--kv-cache-dtype", rollout.vllm.kv_cache_dtype]
    if rollout.vllm.attention_backend:
        engine += ["--attention-backend", rollout.vllm.attention_backend]
    if rollout.tensor_parallel_size > 1:
        engine += ["--tensor-parallel-size", str(rollout.tensor_parallel_size)]
    limits = {"video": 1, "image": rollout.max_images if rollout.takes_images else 0}
    # Greedy, and no penalties that the folder's generation settings may ask for.
    sampling = {"temperature": 0.0, "max_new_tokens": rollout.max_response_tokens}
    return [
        "--model", str(served.folder),
        "--served-model-name", served.name,
        "--max-model-len", str(rollout.max_model_len),
        "--max-num-batched-tokens", str(batch_tokens),
        "--limit-mm-per-prompt", json.dumps(limits),
        "--media-io-kwargs", json.dumps({"video": loading}),
        "--mm-processor-kwargs", _processing(served, is_ours=is_ours),
        "--generation-config", "vllm",
        "--override-generation-config", json.dumps(sampling),
        *engine,
    ]  # fmt: skip


def budget_in_vllm(family: str, video_processor: Any) -> dict[str, int] | None:
    """`size` by which vLLM expects as many pixels of a frame as there are; None if it does anyway.

    It takes the budget of a Qwen3-VL for that of a whole video, and gives a frame its share of a
    temporal patch. A checkpoint of ours has the budget of one frame (see `shown_frames`): of a
    small one nothing would be left. Frames have their size already: nothing is resized by it.
    """
    is_of_frame = type(video_processor).__name__.startswith("Qwen2VL")
    if not (family.startswith("qwen3_vl") and is_of_frame):
        return None
    size = video_processor.size
    longest = int(size["longest_edge"]) * int(video_processor.temporal_patch_size)
    return {"shortest_edge": int(size["shortest_edge"]), "longest_edge": longest}


def cpu_arguments(family: str) -> list[str]:
    """More of them where there is no GPU."""
    found = ["--dtype", "float32", "--enforce-eager", "--skip-mm-profiling"]
    found += ["--distributed-executor-backend", "uni"]
    if overrides := cpu_overrides(family):
        found += ["--hf-overrides", json.dumps(overrides)]
    return found


def cpu_overrides(family: str) -> dict[str, Any]:
    """Of a config: vLLM for CPUs looks for the text model of a Qwen3-VL by its architecture."""
    name = _TEXT_MODELS.get(family)
    return {"text_config": {"architectures": [name]}} if name else {}


def cpu_environment(num_threads: int) -> dict[str, str]:
    """What vLLM for CPUs reads from the environment, before it is imported."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The sampler's one compiled function: 11 s and a C++ compiler at the first batch, for 7%.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core computes, without a worker
    }


def _processing(served: ServedModel, *, is_ours: bool) -> str:
    """Frames are sampled already, and by our loader resized.

    vLLM drops what a loader says of a video for Qwen2-VL and 2.5: they are told the rate here.
    Positions of Qwen2.5-VL follow it, so that a clip which the limits on frames give another rate
    gets other ones than in training.
    """
    options: dict[str, Any] = {"do_sample_frames": False}
    if is_ours and not served.recipe.rollout.takes_images:  # an image has to be resized there
        options["do_resize"] = False
        if served.budget:
            options["size"] = served.budget
    if not served.family.startswith("qwen3_vl"):
        known = {"fps": served.recipe.video.fps, "frames_indices": [0], "total_num_frames": 1}
        options["video_metadata"] = [known]
    return json.dumps(options)
