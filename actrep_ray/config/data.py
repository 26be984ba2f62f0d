"""`data`, `video`, `sampling`: which clips are asked about, how they look, and in which order."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from actrep_ray.config.section import (
    Contradiction,
    Count,
    Float,
    Fraction,
    Integer,
    Positive,
    Seconds,
    Section,
)


class DataConfig(Section):
    """What is asked about which clips."""

    path: str = Field("", description="JSONL of clips; its `split` column says what trains.")
    datasets: tuple[str, ...] = Field(
        (), description="Use only clips whose `dataset` is one of these; empty uses all."
    )
    question: str = Field(
        "How many times is the action repeated? List each repetition.",
        description="Text after the video; `{action}` is replaced by the clip's action. Of "
        "recognition `Which activity is shown? {candidates} {form}` by default.",
    )
    classes: tuple[str, ...] = Field(
        (),
        description="Classes that recognition offers; if empty, those of all rows of the file.",
    )
    candidates: Literal["closed", "truncated", "open"] = Field(
        "closed",
        description="What recognition puts in the place of `{candidates}`: all classes, some with "
        "the right one among them in an order of the row's own, or nothing.",
    )
    num_candidates: Annotated[Integer, Field(ge=2)] = Field(
        5, description="Classes of a truncated list, the right one included."
    )
    reasoning: Literal["before", "none", "after"] = Field(
        "before",
        description="Where an answer reasons, in tags of the dialect: before the count or class, "
        "nowhere or behind it; `{form}` in the question says so. Question and rewards have other "
        "defaults with none and after.",
    )
    dialect: Literal["think", "thinking"] = Field("think", description="Tag of the reasoning.")
    answers: str = Field(
        "",
        description="Answers that SFT teaches, of `actrep cot`; rendered from the marks if empty.",
    )
    wording_variety: Count = Field(
        1, description="Phrasings of each section that rendered answers are drawn from, at most 5."
    )
    allow_outside: tuple[str, ...] = Field(
        (), description="Folders, beside that of `path`, that its videos may lie in."
    )
    max_train_clips: Count | None = Field(None, description="Use only the first clips of train.")
    check_videos: bool = Field(True, description="Open every video before anything starts.")
    max_quarantined_share: Annotated[Float, Field(ge=0, le=1)] = Field(
        0.01,
        description="Share of the clips of train that may turn out unusable in a run (a video that "
        "cannot be read, a prompt that is too long) and are left out of it, one at least; one more "
        "ends it. 0: the first does.",
    )


class VideoConfig(Section):
    """Which frames a model sees; the same in SFT, GRPO, evaluation and inference."""

    fps: Annotated[Float, Field(gt=0, le=1000)] = Field(4.0, description="Frames per second.")
    min_frames: Count = Field(4, description="Fewest frames of a clip.")
    max_frames: Count = Field(256, description="Most frames of a clip.")
    min_pixels: Count = Field(32 * 32, description="Fewest pixels of one frame.")
    max_pixels: Count = Field(224 * 224, description="Most pixels of one frame.")
    cache_dir: str = Field(
        "",
        description="Node-local folder of decoded clips and features; if empty `frames` in "
        "ACTREP_CACHE, or in `actrep` of the user's cache folder (XDG_CACHE_HOME, ~/.cache).",
    )
    shared_cache: bool = Field(
        False, description="Share cache_dir with its group: its members' frames are trusted."
    )
    cache_gib: Positive = Field(8.0, description="Size that decoded clips are kept under, GiB.")
    decode_timeout_s: Seconds = Field(
        120.0, description="Longest that reading one clip may take, seconds; then it is an error."
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Lower bounds above the upper ones; a shared cache in a folder of one user."""
        if self.min_frames > self.max_frames:
            yield Contradiction(
                ("video.min_frames", "video.max_frames"),
                "video.min_frames must not exceed max_frames",
            )
        if self.min_pixels > self.max_pixels:
            yield Contradiction(
                ("video.min_pixels", "video.max_pixels"),
                "video.min_pixels must not exceed max_pixels",
            )
        if self.shared_cache and not self.cache_dir:
            yield Contradiction(
                ("video.shared_cache", "video.cache_dir"),
                "video.shared_cache=true needs video.cache_dir: by default each user has another",
            )


class SamplingConfig(Section):
    """Random Count Sampling: which clips are issued."""

    bins: tuple[Integer, ...] = Field(
        (0, 5, 10, 20, 40), description="Upper ends of the count strata; one more above the last."
    )
    power: Fraction = Field(
        0.0, description="Weight of a stratum is its frequency to this power: 0 uniform, 1 natural."
    )
    num_quantiles: Count | None = Field(
        None, description="Cut the strata at this many quantiles of the counts, in place of bins."
    )
    crop_probability: Fraction = Field(
        0.0, description="Share of draws that crop a longer clip with marks to a smaller count."
    )
    crop_lead_s: Seconds = Field(2.0, description="Longest lead-in and lead-out of a crop, s.")
    crop_min_s: Seconds = Field(2.0, description="Shortest crop, s.")
    crop_max_count: Count | None = Field(None, description="Largest count of a crop.")
    zero_crops: bool = Field(
        False,
        description="Crop gaps between marks as count 0; sets may leave repetitions unmarked.",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Ends of strata that do not rise."""
        bins = list(self.bins)
        if not bins or bins != sorted(set(bins)) or bins[0] < 0:
            yield Contradiction(
                ("sampling.bins",),
                f"sampling.bins={bins}: expected rising integers of at least 0",
            )
