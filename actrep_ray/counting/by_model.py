"""Counting by a model, with one engine in this process: no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe
from actrep_ray.counting.long_video import Span, add_windows, longest_window_s, plan_windows
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.segments import named_by_sight, plan_segments
from actrep_ray.counting.videos import Failure, Source
from actrep_ray.counting.votes import Vote, vote
from actrep_ray.evaluation.confidence import Calibration, beside
from actrep_ray.evaluation.predictors import (
    greedy_of,
    predictions_of,
    prompts_of,
    sampling_of,
    with_whole_weights,
)
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import RolloutGroup
from actrep_ray.rollout.worker import start_engine, with_own_device
from actrep_ray.tasks.loading import load_task
from data_prep.looks import Looks, look_of
from data_prep.periodicity.detector import Detection
from data_prep.periodicity.long import detect_long
from data_prep.periodicity.verdict import COUNT, NOT_SURE
from data_prep.schema import Clip
from data_prep.video import VideoError

CHECKED_S = 120.0
"""Length up to which a video is looked at by the detector as well, unless it is said otherwise."""

_OF_FOREIGN = 0.5  # of its confidence
_LEAST_CONFIDENCE = 0.5  # below it, a detector that counts something else makes a count unsure


class ModelCounter:
    """Counts in videos by one checkpoint; a context manager.

    Args:
        model: Folder of the checkpoint.
        recipe: Settings; `rollout.engine` says which engine is started.
        num_answers: Answers to each video: one greedy one, or several sampled at
            `rollout.temperature`.
        is_checked: Have the periodicity detector look at each video as well; None: at those of up
            to `CHECKED_S`.
        window_s: Most that the model is shown of a video at a time; by default what it is shown at
            its full rate. Longer videos are cut.
        calibration: What the confidence of the answers is worth, if that was measured.
        by_segment: Ask about each stretch of repetitions alone, and name it.
    """

    def __init__(
        self,
        model: Path,
        recipe: Recipe,
        *,
        num_answers: int = 1,
        is_checked: bool | None = None,
        window_s: float | None = None,
        calibration: Calibration | None = None,
        by_segment: bool = False,
    ) -> None:
        alone = recipe.rollout.model_copy(update={"num_workers": 1})
        check_this_machine(recipe.model_copy(update={"rollout": alone}), ("rollout",))
        self.model, self.recipe, self.is_checked = model, recipe, is_checked
        self._calibration, self._by_segment = calibration, by_segment
        self._longest_s = longest_window_s(recipe.video) if window_s is None else window_s
        self._task = load_task(recipe.task)
        self._inputs = QwenVLInputs(model)
        self._inputs.check_dialect(recipe.data.dialect)
        self._settings = greedy_of(recipe) if num_answers == 1 else sampling_of(recipe, num_answers)
        self._looks = Looks.read(model) if self._task.is_counting else None
        self._engine = start_engine(with_own_device(with_whole_weights(recipe)), model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.shutdown()

    def count(self, sources: Sequence[Source]) -> list[VideoCount | Failure]:
        """Count in each video, in order; one that cannot be shown to the model is a failure."""
        looks = [self._look(source) for source in sources]
        clips = [span.of(look.source.clip) for look in looks for span in look.spans]
        found = iter(self.votes(clips))
        return [self._counted(look, [next(found) for _ in look.spans]) for look in looks]

    def _look(self, source: Source) -> "_Look":
        """How a video is cut, and what the detector sees in it, if it is asked."""
        clip, longest_s = source.clip, self._longest_s
        is_long = self._task.is_counting and clip.duration_s > longest_s
        is_checked = self._task.is_counting and self._is_checked(clip)
        by_segment = self._task.is_counting and self._by_segment
        try:
            unlike = self._unlike(clip)
            seen = detect_long(clip) if is_long or is_checked or by_segment else None
        except VideoError as error:
            return _Look(source, [], str(error))
        if by_segment and seen is not None:
            spans = plan_segments(seen.cycles, clip.duration_s, longest_s)
            spans = spans or plan_windows((), clip.duration_s, longest_s)
            return _Look(source, spans, seen=seen if is_checked else None, unlike=unlike)
        if not is_long or seen is None:
            whole = Span(0.0, clip.duration_s, 0.0, clip.duration_s)
            return _Look(source, [whole], seen=seen, unlike=unlike)
        spans = plan_windows(seen.cycles, clip.duration_s, longest_s)
        return _Look(source, spans, seen=seen if is_checked else None, unlike=unlike)

    def _unlike(self, clip: Clip) -> float | None:
        if self._looks is None:
            return None
        return self._looks.distance(look_of(self._inputs.plan(clip, self.recipe.video)))

    def _is_checked(self, clip: Clip) -> bool:
        return clip.duration_s <= CHECKED_S if self.is_checked is None else self.is_checked

    def votes(self, clips: Sequence[Clip]) -> list[Vote | str]:
        """What the answers to each clip come to, or why it cannot be shown to the model."""
        prompts = [
            # What is drawn depends on the id: the same for a video, whatever is asked beside it.
            replace(prompt, prompt_id=f"count-{clip.video}-{clip.start_s:.3f}-{clip.action}")
            for prompt, clip in zip(
                prompts_of(clips, self._inputs, self.recipe), clips, strict=True
            )
        ]
        groups: dict[str, RolloutGroup] = {}
        self._engine.add(prompts, self._settings)
        while self._engine.num_unfinished:
            groups |= {group.prompt.prompt_id: group for group in self._engine.step()}
        refused = {one.prompt.prompt_id: one.message for one in self._engine.take_refused()}
        return [
            refused[prompt.prompt_id]
            if prompt.prompt_id in refused
            else self._vote(groups[prompt.prompt_id])
            for prompt in prompts
        ]

    def _vote(self, group: RolloutGroup) -> Vote:
        found = vote(predictions_of(group, self._task, self.recipe.data.dialect), self._task)
        if self._calibration is None or found.count is None:
            return found
        return replace(found, confidence=self._calibration(found.confidence))

    def _counted(self, look: "_Look", found: Sequence[Vote | str]) -> VideoCount | Failure:
        source = look.source
        votes = [one for one in found if not isinstance(one, str)]
        if len(votes) < len(found) or not votes:
            told = [one for one in found if isinstance(one, str)]
            return Failure(source.video, next(iter(told), look.problem))
        if self._by_segment and self._task.is_counting:
            counted = named_by_sight(add_windows(source, look.spans, votes))
        elif len(votes) == 1:
            counted = _of_one(source, votes[0])
        else:
            counted = add_windows(source, look.spans, votes)
        counted = replace(counted, model=self.model, action=source.clip.action, unlike=look.unlike)
        return doubted(counted if look.seen is None else checked(counted, look.seen))


@dataclass(frozen=True)
class _Look:
    """A video before the model is asked.

    Attributes:
        source: The video.
        spans: Its windows; none if it cannot be decoded.
        problem: Why not.
        seen: What the detector saw, if that is to be compared.
        unlike: How far it looks from the clips of the training, if that is known.
    """

    source: Source
    spans: list[Span]
    problem: str = ""
    seen: Detection | None = None
    unlike: float | None = None


def _of_one(source: Source, found: Vote) -> VideoCount:
    return VideoCount(
        video=source.video,
        duration_s=source.clip.duration_s,
        count=found.count,
        verdict=found.verdict,
        reason=found.reason,
        confidence=found.confidence,
        cycles=found.shown.cycles,
        vote=found,
    )


def checked(counted: VideoCount, found: Detection) -> VideoCount:
    """A model's count beside what the detector found.

    Where that counts too, the same number makes a count surer, another one less sure
    (`confidence.beside`).
    """
    if found.verdict != COUNT or counted.count is None:
        return replace(counted, detection=found)
    own, other = counted.confidence, found.confidence
    is_same = counted.count == found.count
    confidence = beside(own, other, is_same=is_same)
    doubt = counted.reason
    if not doubt and not is_same and confidence < _LEAST_CONFIDENCE:
        doubt = f"the periodicity detector counts {found.count} ({other:.2f} sure)"
    return replace(
        counted,
        detection=found,
        confidence=confidence,
        reason=doubt,
        verdict=NOT_SURE if doubt else counted.verdict,
    )


def doubted(counted: VideoCount) -> VideoCount:
    """Not sure of a clip that looks unlike those of the training.

    It is where the detector is sure of the same number. A model answers as confidently about what
    it has never seen.
    """
    if not counted.is_foreign or not counted.is_sure or counted.is_confirmed:
        return counted
    doubt = (
        f"it looks unlike the clips that the model was trained on ({counted.unlike:.1f} times as "
        "far from them as the most unusual of them)"
    )
    confidence = _OF_FOREIGN * counted.confidence
    return replace(counted, verdict=NOT_SURE, reason=doubt, confidence=confidence)
