"""Groups of random answers, which the learner is measured with where no engine has answered."""

import numpy as np

from actrep_ray.config import VideoConfig
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow
from data_prep.schema import Clip

_TOKEN_IDS = (7, 400)  # ordinary ones, of every tokenizer
_LOG_PROB = -7.0


def noise_rows(
    inputs: QwenVLInputs,
    clip: Clip,
    video: VideoConfig,
    *,
    num_rows: int,
    group_size: int,
    answer_tokens: int,
) -> list[LearnerRow]:
    """Groups with random tokens and advantages, all about one clip; the same ones each time."""
    rng = np.random.default_rng(0)
    return [
        LearnerRow(
            row_id=f"row-{i}",
            question="How many times?",
            plan=inputs.plan(clip, video),
            num_prompt_tokens=0,
            responses=tuple(
                rng.integers(*_TOKEN_IDS, answer_tokens).astype(np.int32) for _ in range(group_size)
            ),
            advantages=rng.normal(size=group_size).astype(np.float32),
            rollout_log_probs=tuple(
                np.full(answer_tokens, _LOG_PROB, np.float32) for _ in range(group_size)
            ),
        )
        for i in range(num_rows)
    ]
