"""What asking a model behind an API will cost, told before anything is asked.

Tokens are estimated: those of a frame by its pixels (or as told), those of text by its characters,
those of an answer as many as it may have. An endpoint counts by rules of its own; after a call the
tokens that it told are what counts.
"""

import math
from dataclasses import dataclass

from actrep_ray.evaluation.api_model import ApiEvaluation
from actrep_ray.tasks.loading import load_task
from data_prep.rows import Row
from data_prep.video import VideoError

_PIXELS_OF_TOKEN = 32 * 32  # of an image in Qwen3-VL; Gemini has a number for each frame
_TOKENS_OF_FRAME = {"gemini": 258}
_CHARACTERS_OF_TOKEN = 4
_TOKENS_OF_TIME = 4  # "12.5 s:" before a frame
_MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any currency.

    Attributes:
        prompt: Of those that are read.
        completion: Of those that are written.
    """

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / _MILLION


@dataclass(frozen=True)
class Estimate:
    """What is left of an evaluation will take.

    Attributes:
        num_requests: One for each clip that has no answer; those that are sent again are not in it.
        num_frames: That are shown.
        prompt_tokens: Of all requests.
        completion_tokens: Of all answers, at most.
    """

    num_requests: int
    num_frames: int
    prompt_tokens: int
    completion_tokens: int


def estimate(job: ApiEvaluation, tokens_per_frame: int | None = None) -> Estimate:
    """What asking about the clips without an answer will take.

    Args:
        job: The evaluation.
        tokens_per_frame: Of one frame or image; None: by pixels, of gemini 258.

    Returns:
        The estimate, without clips whose file is missing: nothing is sent about them.
    """
    task = load_task(job.recipe.task)
    of_frame = tokens_per_frame or _TOKENS_OF_FRAME.get(job.settings.api)
    num_requests = num_frames = prompt_tokens = 0
    for row in job.left():
        try:
            frames, tokens = _of_row(job, row, of_frame)
        except VideoError:
            continue
        num_requests += 1
        num_frames += frames
        prompt_tokens += tokens + math.ceil(len(job.question(row, task)) / _CHARACTERS_OF_TOKEN)
    most = num_requests * job.settings.max_tokens
    return Estimate(num_requests, num_frames, prompt_tokens, most)


def _of_row(job: ApiEvaluation, row: Row, of_frame: int | None) -> tuple[int, int]:
    """Frames of a row, and their tokens with those of the times before them."""
    num_frames = num_tokens = 0
    for shown in job.plan(row).shown:
        each = of_frame or math.ceil(shown.height * shown.width / _PIXELS_OF_TOKEN)
        if job.sends == "frames" and not shown.is_image:
            each += _TOKENS_OF_TIME
        num_frames += shown.num_frames
        num_tokens += shown.num_frames * each
    return num_frames, num_tokens
