"""Settings of the teacher behind an API. Imports little, so that `--help` can show them."""

from dataclasses import dataclass

from data_prep.chat_settings import ChatSettings


@dataclass(frozen=True)
class ApiSettings(ChatSettings):
    """What a teacher is shown, beside what any model behind an API is asked.

    Attributes:
        num_candidates: Most answers asked for about one clip; the first that is accepted is kept.
        fps: Frames a second that are shown.
        max_frames: Most frames that are shown.
        max_pixels: Most pixels of one frame.
        jpeg_quality: Of the frames that are sent, 1 to 100.
        dialect: Tag of the reasoning.
    """

    num_candidates: int = 4
    fps: float = 4.0
    max_frames: int = 64
    max_pixels: int = 336 * 336
    jpeg_quality: int = 85
    dialect: str = "think"
