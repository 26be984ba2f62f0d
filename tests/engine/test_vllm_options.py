"""What vLLM is started with."""

import pytest

from actrep_ray.config import RolloutConfig
from actrep_ray.rollout.vllm_engine import _engine_options

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("max_model_len", "expected"), [(32768, 32768), (1024, 4096)])
def test_a_batch_holds_the_longest_prompt(device: str, max_model_len: int, expected: int) -> None:
    """vLLM's cache of a video is as large as a batch; its default on this machine is 4096."""
    cfg = RolloutConfig(max_model_len=max_model_len)
    options = _engine_options("model", "qwen3_vl", cfg, device)
    assert options["max_num_batched_tokens"] == expected
