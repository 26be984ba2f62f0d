"""What is repeated in each stretch of repetitions of a video: `actrep count --segments`.

The periodicity detector finds the stretches, the model is asked about each of them alone. A stretch
is named by what the model says it sees there, or, of several actions that were asked about, by the
one whose answers are the surest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from actrep_ray.counting.long_video import Span, plan_windows, sum_windows
from actrep_ray.counting.record import VideoCount, WindowCount, segments_of
from rewards.grammar.layout import Cycle
from rewards.grammar.read import parse

UNNAMED = "unnamed"
"""A stretch about which the model says nothing but a number."""

_AROUND_S = 1.0  # that is shown before and after a stretch, if the next one is not nearer
_MOST_LETTERS = 60  # of a name
_SAME = 1e-9


def plan_segments(cycles: Sequence[Cycle], duration_s: float, longest_s: float) -> list[Span]:
    """The stretches of a video, each with a second around it; longer ones in windows.

    Args:
        cycles: What the detector found, in order; seconds from the start of the video.
        duration_s: Length of the video.
        longest_s: Most of a window.

    Returns:
        In order; none where nothing repeats.
    """
    found = segments_of(cycles)
    spans: list[Span] = []
    for i, segment in enumerate(found):
        before = found[i - 1].end_s if i else -segment.start_s
        after = found[i + 1].start_s if i + 1 < len(found) else 2 * duration_s - segment.end_s
        start = segment.start_s - min(_AROUND_S, (segment.start_s - before) / 2)
        end = segment.end_s + min(_AROUND_S, (after - segment.end_s) / 2)
        own = [(a - start, b - start) for a, b in cycles if start <= a and b <= end]
        spans += [
            Span(*(start + edge for edge in (one.start_s, one.end_s, one.from_s, one.to_s)))
            for one in plan_windows(own, end - start, longest_s)
        ]
    return spans


def named_by_sight(counted: VideoCount) -> VideoCount:
    """Each window named by the first line of what its answer says is seen."""
    windows = (replace(window, name=_sight(window.vote.shown.text)) for window in counted.windows)
    return replace(counted, windows=tuple(windows))


def named_by_action(found: Sequence[VideoCount]) -> VideoCount:
    """One count out of those of several actions: of each window, that of the surest one.

    An action of which no answer finds a repetition is none of a window. Where two are equally sure,
    which needs no reason where each was asked once, the window is in doubt.

    Args:
        found: A count for each action, with the same windows.
    """
    chosen = [
        _surest([one.action for one in found], windows)
        for windows in zip(*(one.windows for one in found), strict=True)
    ]
    first = found[0]
    return replace(
        sum_windows(first.video, first.duration_s, chosen),
        action=", ".join(one.action for one in found),
        model=first.model,
        unlike=first.unlike,
    )


def totals_of(windows: Sequence[WindowCount]) -> str:
    """How often each name is repeated in all windows, in words: "squat 8, lunge 5"."""
    totals = Counter[str]()
    for window in windows:
        totals[window.name] += window.count or 0
    return ", ".join(f"{name} {number}" for name, number in totals.items())


def _surest(actions: Sequence[str], windows: Sequence[WindowCount]) -> WindowCount:
    sure = [window.vote.confidence if window.count else -1.0 for window in windows]
    best = max(sure)
    names = [a for a, one in zip(actions, sure, strict=True) if best - one < _SAME]
    window = windows[sure.index(best)]
    if len(names) == 1:
        return replace(window, name=names[0])
    told = "none of them is repeated" if best < 0 else f"{' and '.join(names)} are equally sure"
    name = UNNAMED if best < 0 else " or ".join(names)
    return replace(window, name=name, reason=window.reason or told)


def _sight(text: str) -> str:
    """The first line of what is seen, without the full stop; `UNNAMED` where there is none."""
    lines = (parse(text).observation or "").strip().splitlines()
    name = lines[0].strip().rstrip(".") if lines else ""
    return (name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…") or UNNAMED
