"""From the data file to what is asked: clips of a split, their labels and their questions."""

from collections.abc import Sequence
from pathlib import Path

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.records import Labels
from data_prep.schema import Clip, DataError, read_clips
from data_prep.video import check_videos
from rewards.reference import usable_cycles


def load_clips(recipe: Recipe, split: str, *, limit: int | None = None) -> list[Clip]:
    """Clips of one split, checked.

    Args:
        recipe: Its `data` section says which file, and whether every video is opened first.
        split: A split of the file.
        limit: Only the first clips.

    Raises:
        ConfigError: if `data.path` is not set.
        DataError: for a bad row, a video that cannot be opened, or a split without clips.
    """
    if not recipe.data.path:
        raise ConfigError("data.path is not set: give the JSONL file of clips")
    clips = list(read_clips(Path(recipe.data.path), split=split))
    if not clips:
        raise DataError(f"{recipe.data.path}: no clip has split={split!r}")
    clips = clips[:limit]
    if recipe.data.check_videos:
        check_videos(clips)
    return clips


def question_for(clip: Clip, recipe: Recipe) -> str:
    """The text asked about a clip."""
    return recipe.data.question.replace("{action}", clip.action.replace("_", " "))


def labels_of(clips: Sequence[Clip]) -> dict[str, Labels]:
    """What rewards and scoring know about each clip, by its id.

    Marks that disagree with the count are no evidence of either and are left out.
    """
    return {
        clip.id: Labels(
            count=clip.count,
            cycles=usable_cycles(clip.count, clip.cycles)[0],
            duration_s=clip.duration_s,
            action=clip.action,
        )
        for clip in clips
    }
