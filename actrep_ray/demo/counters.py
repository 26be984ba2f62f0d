"""What counts behind the page: the detector, and a model if there is one; one video at a time."""

import os
import threading
from pathlib import Path

from actrep_ray.counting.batch import Count
from actrep_ray.counting.by_detector import count_by_detector
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.videos import Failure
from actrep_ray.demo.limits import Limits

DETECTOR = "periodicity detector"
"""Its name on the page."""

_ANY = "unknown"  # action
_LONGEST_ACTION = 100  # characters


class Counters:
    """Counts in one upload after the other, by what was chosen.

    Args:
        limits: What is refused.
        count_by_model: Counts by a model; None if there is none.
        model_name: Of the model on the page.
        names_action: Whether the model's question says what is repeated.
        prefers_detector: Whether the detector counts until somebody chooses the model.

    Attributes:
        names: What can be chosen.
        preferred: What counts until somebody chooses.
        limits: As given.
    """

    def __init__(
        self,
        limits: Limits,
        count_by_model: Count | None = None,
        *,
        model_name: str = "model",
        names_action: bool = False,
        prefers_detector: bool = False,
    ) -> None:
        self.limits = limits
        self._counts: dict[str, Count] = {model_name: count_by_model} if count_by_model else {}
        self._asks_action = {model_name} if count_by_model and names_action else set()
        self._counts[DETECTOR] = count_by_detector
        self.names = tuple(self._counts)
        self.preferred = DETECTOR if prefers_detector else self.names[0]
        self._one_at_a_time = threading.Lock()

    def asks_action(self, name: str) -> bool:
        """Whether what counts is told what is repeated."""
        return name in self._asks_action

    def count(self, video: Path, name: str, action: str = "") -> VideoCount | Failure:
        """Count in one video.

        Args:
            video: The upload; its age starts anew.
            name: One of `names`.
            action: What is repeated; "" if nobody said. For those that ask for it alone.

        Returns:
            The count, or why there is none; the file is named without its folder.
        """
        if name not in self._counts:
            return Failure(video, f"counted by {name!r}: expected one of {', '.join(self.names)}")
        action = action.strip() if self.asks_action(name) else ""
        if len(action) > _LONGEST_ACTION:
            return Failure(video, f"what is repeated: at most {_LONGEST_ACTION} characters")
        if not video.is_file():
            return Failure(video, f"{video.name} was deleted here meanwhile: drop it again")
        os.utime(video)
        with self._one_at_a_time:
            source = self.limits.open(video, action or _ANY)
            done = source if isinstance(source, Failure) else self._counts[name]([source])[0]
        if isinstance(done, Failure):
            return Failure(video, done.reason.replace(str(video.absolute()), video.name))
        return done
