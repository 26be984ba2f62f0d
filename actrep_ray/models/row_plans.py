"""The frames of a row that a recipe shows, and the images before them, for any model."""

from dataclasses import replace

from actrep_ray.config import VideoConfig
from data_prep.images import LabelledImage
from data_prep.rows import Row
from data_prep.shown import ShownImage
from data_prep.video import FileState, FramePlan, plan_frames, plan_image


def plan_row(
    row: Row, video: VideoConfig, factor: int, state: FileState | None = None
) -> FramePlan:
    """What a model is shown of a row.

    Args:
        row: A clip or an image; images before it are planned as they are now.
        video: Rate and limits.
        factor: Sides of a frame are multiples of this, pixels.
        state: See `plan_frames`.

    Raises:
        VideoError: if a file is missing or empty.
    """
    before = tuple(
        _plan_image(image, video, factor, None if state is None else FileState.of(image.image))
        for image in row.images
    )
    if isinstance(row, LabelledImage):
        return replace(_plan_image(row, video, factor, state), before=before)
    own = plan_frames(
        row,
        state,
        fps=video.fps,
        min_frames=video.min_frames,
        max_frames=video.max_frames,
        min_pixels=video.min_pixels,
        max_pixels=video.max_pixels,
        factor=factor,
    )
    return replace(own, before=before)


def _plan_image(
    shown: LabelledImage | ShownImage, video: VideoConfig, factor: int, state: FileState | None
) -> FramePlan:
    return plan_image(
        shown.image,
        (shown.height, shown.width),
        state,
        min_pixels=video.min_pixels,
        max_pixels=video.max_pixels,
        factor=factor,
    )
