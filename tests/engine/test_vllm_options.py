"""What vLLM is started with."""

from typing import Any, get_args

import pytest

from actrep_ray.config import ConfigError, RolloutConfig, VideoConfig, VllmConfig
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.rollout import vllm_engine
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.vllm_engine import VllmEngine, _engine_options

pytestmark = pytest.mark.engine

ACCEPTED = [("max_num_batched_tokens", 8192)] + [
    (name, value)
    for name in ("attention_backend", "kv_cache_dtype")
    for kind in (VllmConfig.model_fields[name].annotation,)
    for literal in (get_args(kind)[:1] if type(None) in get_args(kind) else (kind,))
    for value in get_args(literal)
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("max_model_len", "expected"), [(32768, 32768), (1024, 4096)])
def test_a_batch_holds_the_longest_prompt(device: str, max_model_len: int, expected: int) -> None:
    """vLLM's cache of a video is as large as a batch; its default on this machine is 4096."""
    cfg = RolloutConfig(max_model_len=max_model_len)
    options = _engine_options("model", "qwen3_vl", cfg, device)
    assert options["max_num_batched_tokens"] == expected


@pytest.mark.parametrize(("ranks", "expected"), [(1, "lru"), (2, "shm")])
def test_processes_of_tensor_parallelism_share_processed_clips(ranks: int, expected: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    cfg = RolloutConfig(tensor_parallel_size=ranks)
    options = _engine_options("model", "qwen3_vl", cfg, "cuda")
    assert EngineArgs(**options).mm_processor_cache_type == expected


def test_all_kinds_of_options_are_tried() -> None:
    assert {name for name, _ in ACCEPTED} == set(VllmConfig.model_fields)
    assert len(ACCEPTED) == 1 + 4 + 3


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_options_of_a_recipe_reach_vllm(name: str, value: Any) -> None:
    """Under vLLM's names, with values that its own settings take."""
    from vllm.config import AttentionConfig, CacheConfig
    from vllm.engine.arg_utils import EngineArgs

    cfg = RolloutConfig(vllm=VllmConfig.model_validate({name: value}))
    options = _engine_options("model", "qwen3_vl", cfg, "cuda")
    assert options[name] == value
    arguments = EngineArgs(**options)
    assert getattr(arguments, name) == value
    if name == "attention_backend":
        assert AttentionConfig(backend=value).backend.name == value
    elif name == "kv_cache_dtype":
        assert CacheConfig(cache_dtype=value).cache_dtype == value


def test_vllm_refuses_names_that_it_does_not_know() -> None:
    """Else the test above would accept anything."""
    from vllm.config import AttentionConfig, CacheConfig

    with pytest.raises(ValueError, match="Unknown attention backend"):
        AttentionConfig(backend="FLASH_ATTN_9")
    with pytest.raises(ValueError, match="fp7"):
        CacheConfig(cache_dtype="fp7")


def test_a_cpu_without_kernels_for_fp8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = RolloutConfig(vllm=VllmConfig(kv_cache_dtype="fp8"))
    monkeypatch.setattr(vllm_engine, "_reads_fp8_cache", lambda: True)
    assert _engine_options("model", "qwen3_vl", cfg, "cpu")["kv_cache_dtype"] == "fp8"
    monkeypatch.setattr(vllm_engine, "_reads_fp8_cache", lambda: False)
    with pytest.raises(ConfigError, match=r"kv_cache_dtype=fp8: .*AVX-512 or AMX.*auto"):
        _engine_options("model", "qwen3_vl", cfg, "cpu")


@pytest.mark.slow
def test_the_size_of_a_batch_changes_no_answer(
    video: VideoConfig, rollout: RolloutConfig, make_prompts: Any
) -> None:
    """Prompts of more tokens together than the smaller batch takes; no two show the same frames."""
    answers, sizes = [], []
    for tokens in (512, 8192):
        options = VllmConfig(max_num_batched_tokens=tokens)
        cfg = rollout.model_copy(update={"max_model_len": 512, "vllm": options})
        engine = VllmEngine(base_model_folder(), cfg, video, device="cpu", seed=3)
        try:
            prompts = make_prompts(engine.inputs)
            groups = engine.generate(prompts, SamplingSettings(max_tokens=16, group_size=2))
            settings = engine.llm.llm_engine.vllm_config.scheduler_config
            sizes.append(settings.max_num_batched_tokens)
        finally:
            engine.shutdown()
        assert sum(group.num_prompt_tokens for group in groups) > 512
        answers.append([a.token_ids.tolist() for group in groups for a in group.rollouts])
    assert sizes == [512, 8192]
    assert answers[0] == answers[1]
