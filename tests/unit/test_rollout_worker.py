"""The rollout worker without Ray: what a prefetch does with clips that it cannot have."""

import threading
from typing import Any

import pytest

from actrep_ray.rollout.worker import RolloutWorker
from data_prep.locks import BusyError
from data_prep.video import VideoError


class Decoder:
    """Decodes "good" clips; others fail as their name says."""

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def prefetch(self, plan: str) -> None:
        if plan == "busy":
            raise BusyError("held by another process")
        if plan == "broken":
            raise VideoError("a.mp4: cut short")
        self.decoded.append(plan)


def test_a_prefetch_goes_on_after_clips_that_are_broken_or_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    engine: Any = Decoder()
    plans: Any = ["good", "broken", "busy", "last"]
    RolloutWorker(lambda: engine).prefetch(plans)
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()
    assert engine.decoded == ["good", "last"]
    assert failed == []
