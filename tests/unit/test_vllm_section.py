"""`rollout.vllm`: what is taken, and every refusal in one line that says what to change."""

import pytest

from actrep_ray.config import ConfigError, check_attention, load_recipe

ROUNDED = "rollout.vllm.kv_cache_dtype=fp8"
CORRECTED = "algorithm.rollout_correction=token_truncate"
LIMIT = "train.max_log_prob_gap=0.2"


def test_what_is_taken() -> None:
    recipe = load_recipe(
        None,
        [
            *(ROUNDED, CORRECTED, LIMIT, "rollout.vllm.attention_backend=FLASHINFER"),
            "rollout.vllm.max_num_batched_tokens=8192",
        ],
    )
    found = recipe.rollout.vllm
    assert (found.max_num_batched_tokens, found.attention_backend) == (8192, "FLASHINFER")
    assert found.has_fp8_cache
    assert not load_recipe(None).rollout.vllm.has_fp8_cache
    assert recipe.log_prob_gap_limit == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([ROUNDED, LIMIT], r"kv_cache_dtype=fp8 .*set algorithm.rollout_correction"),
        ([ROUNDED, CORRECTED], r"kv_cache_dtype=fp8 .*set train.max_log_prob_gap"),
        (
            [ROUNDED, LIMIT, CORRECTED, "rollout.engine=hf"],
            r"rollout.vllm.kv_cache_dtype: rollout.engine=hf has no such options",
        ),
        (
            ["rollout.vllm.max_num_batched_tokens=8191"],
            r"max_num_batched_tokens=8191: expected at least rollout.max_model_len=8192",
        ),
        (
            ["rollout.vllm.max_num_batched_tokens=8192", "rollout.max_num_seqs=8193"],
            r"max_num_batched_tokens=8192: expected at least rollout.max_num_seqs=8193",
        ),
        (
            ["rollout.vllm.attention_backend=TRITON_ATTN", "device=cpu"],
            r"attention_backend=TRITON_ATTN needs a GPU, device=cpu",
        ),
        (
            ["rollout.vllm.attention_backend=FLEX_ATTENTION", ROUNDED, CORRECTED, LIMIT],
            r"FLEX_ATTENTION has no kernel for rollout.vllm.kv_cache_dtype=fp8",
        ),
        (
            [
                *("rollout.vllm.attention_backend=FLASH_ATTN", CORRECTED, LIMIT),
                "rollout.vllm.kv_cache_dtype=fp8_e5m2",
            ],
            r"FLASH_ATTN has no kernel for rollout.vllm.kv_cache_dtype=fp8_e5m2",
        ),
        (["rollout.vllm.attention_backend=FLASH"], r"attention_backend='FLASH'.*FLASH_ATTN"),
        (["rollout.vllm.kv_cache_dtype=fp7"], r"kv_cache_dtype='fp7'.*fp8"),
        (["rollout.vllm.quantization=fp8"], r"vllm.quantization='fp8': .*a push does not bring"),
        (
            ["rollout.vllm.speculative.method=ngram"],
            r"vllm.speculative=\{'method': 'ngram'\}: .*logit_bias.*could not be repeated",
        ),
        (["rollout.vllm.kv_dtype=fp8"], r"unknown key 'rollout.vllm.kv_dtype'; did you mean"),
        (["rollout.vllm.enable_chunked_prefill=false"], r"unknown key .*known keys: max_num_"),
    ],
)
def test_refusals(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(None, settings)
    assert len(str(error.value).splitlines()) == 1


def test_a_kernel_of_gpus_is_refused_once_the_cluster_has_none() -> None:
    recipe = load_recipe(None, ["rollout.vllm.attention_backend=FLASH_ATTN"])
    check_attention(recipe.model_copy(update={"device": "cuda"}))
    with pytest.raises(ConfigError, match=r"attention_backend=FLASH_ATTN needs a GPU"):
        check_attention(recipe.model_copy(update={"device": "cpu"}))
