"""The clips that the page offers; drawn when they are asked for first."""

from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video_writer import encode_mp4

_SEED = 7


@dataclass(frozen=True)
class Example:
    """One clip.

    Attributes:
        name: On its button.
        level: Of `data_prep.synthetic`.
        index: Of the clip in its split.
        size: Pixels of its sides.
    """

    name: str
    level: str
    index: int
    size: int

    def draw(self, folder: Path) -> Path:
        """Its file, which is written if it is not there.

        Args:
            folder: Where examples lie.
        """
        path = folder / f"{self.name.replace(' ', '-')}.mp4"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            spec = clip_spec(self.level, _SEED, "test", self.index)
            clip = replace(spec.clip, width=self.size, height=self.size)
            encode_mp4(path, draw_clip(replace(spec, clip=clip)), spec.fps)
        return path


EXAMPLES = (
    Example("5 squats", "easy", 8, 320),
    Example("8 arm raises", "medium", 5, 320),
    Example("one movement", "real-like", 7, 160),
)
