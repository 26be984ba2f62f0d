"""Clips as rows of a verl data set: for training with verl on the same questions and rewards.

One row (`rewards/compute_score.py` is the reward that reads it)::

    prompt        [{"role": "user", "content": "<video>How often ..."}]
    videos        [{"video": "/data/a.mp4", "video_start": 2.0, "video_end": 9.5, "fps": 4.0, ...}]
    data_source   "repcount"
    ability       "counting"
    reward_model  {"style": "rule", "ground_truth": '{"count": 3, "cycles": [[0.5, 1.7], ...]}'}
    extra_info    {"index": 0, "split": "train", "clip_id": ..., "action": ..., "duration_s": 7.5}

Where the chat template of the recipe's model opens the answer (Qwen3-VL-Thinking), verl hands the
reward only what comes behind: `extra_info` then holds `"opened": "<think>\n"` as well.

verl hands `videos` to qwen_vl_utils, whose frames are close to ours and not always the same.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.config import Recipe
from actrep_ray.tasks.loading import load_task
from data_prep.chat_format import PLACEHOLDERS, VIDEO
from data_prep.files import DataError, replacing
from data_prep.schema import Clip
from data_prep.video import is_folder

if TYPE_CHECKING:
    import pandas as pd


def verl_frame(clips: Sequence[Clip], recipe: Recipe, opened: str = "") -> "pd.DataFrame":
    """One row for each clip, in order.

    Args:
        clips: With absolute paths of their videos, as `read_clips` gives them.
        recipe: Its `data.question` and `video` sections are used.
        opened: What the chat template of the model writes of an answer.

    Raises:
        DataError: for a question in which verl would put media of its own.
    """
    import pandas as pd

    return pd.DataFrame([_row(index, clip, recipe, opened) for index, clip in enumerate(clips)])


def write_verl_parquet(clips: Sequence[Clip], recipe: Recipe, path: Path, opened: str = "") -> int:
    """Write the rows as Parquet, atomically; returns how many there are.

    Raises:
        DataError: as `verl_frame` does.
    """
    frame = verl_frame(clips, recipe, opened)
    with replacing(path) as partial, partial.open("wb") as out:
        frame.to_parquet(out, index=False)
    return len(frame)


def question_of(clip: Clip, recipe: Recipe) -> str:
    """What another trainer asks about a clip, behind its video.

    Raises:
        DataError: for a question in which it would put media of its own, or a clip that is not one
            video file alone.
    """
    if clip.images or is_folder(clip.video):
        what = "images before it" if clip.images else "a folder of frames"
        raise DataError(f"clip {clip.id!r}: shows {what}, which other trainers' rows cannot hold")
    question = load_task(recipe.task).question(clip, recipe.data)
    if found := [word for word in PLACEHOLDERS if word in question]:
        raise DataError(
            f"clip {clip.id!r}: its question holds {found[0]}, where a trainer would put media; "
            "change data.question or the clip's action"
        )
    return question


def _row(index: int, clip: Clip, recipe: Recipe, opened: str) -> dict[str, Any]:
    task = load_task(recipe.task)
    question = question_of(clip, recipe)
    known = task.reference(clip)
    truth: dict[str, Any] = {"count": known.count}
    if known.cycles is not None:
        truth["cycles"] = known.cycles
    video = recipe.video
    return {
        "prompt": [{"role": "user", "content": f"{VIDEO}{question}"}],
        "videos": [
            {
                "video": clip.video,
                "video_start": clip.start_s,
                "video_end": clip.end_s,
                "fps": video.fps,
                "min_frames": video.min_frames,
                "max_frames": video.max_frames,
                "min_pixels": video.min_pixels,
                "max_pixels": video.max_pixels,
            }
        ],
        "data_source": clip.dataset,
        "ability": task.name,
        "reward_model": {"style": "rule", "ground_truth": json.dumps(truth)},
        "extra_info": {
            "index": index,
            "split": clip.split,
            "clip_id": clip.id,
            "action": clip.action,
            "duration_s": known.duration_s,
            **({"opened": opened} if opened else {}),
        },
    }
