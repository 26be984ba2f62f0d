"""A count as a piece of HTML: the number, how sure, the repetitions over time, the reasoning.

Names, actions and answers come from people and models: the template escapes all that it is given.
What has `data-seek` moves the player there when it is clicked (`assets/page.js`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from actrep_ray.counting.panel import FOREIGN, basis, repetitions, second_opinion
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.videos import Failure
from data_prep.periodicity.verdict import COUNT, NOT_SURE
from data_prep.printable import printable
from rewards.grammar.layout import Cycle


@dataclass(frozen=True)
class Bar:
    """One repetition over time.

    Attributes:
        start_s: Seconds from the start of the video.
        end_s: Its end.
        left: Start as a percentage of the video, 0 to 100.
        width: Length as one.
        is_counted: Or was seen and not believed.
    """

    start_s: float
    end_s: float
    left: float
    width: float
    is_counted: bool


def show_nothing() -> str:
    """Where the count will stand."""
    return _template().render(failure="", found=None)


def show(done: VideoCount | Failure) -> str:
    """A count, or the line that says why there is none."""
    if isinstance(done, Failure):
        return _encodable(_template().render(failure=printable(done.reason), found=None))
    rejected = () if done.detection is None or done.votes else done.detection.rejected
    bars = bars_of(done.cycles, done.duration_s)
    return _encodable(
        _template().render(
            failure="",
            found=done,
            file=printable(done.video.name),
            action="" if done.action == "unknown" else printable(done.action),
            number=_number(done),
            all_the_same=_counted_all_the_same(done),
            bars=bars or bars_of(rejected, done.duration_s, is_counted=False),
            basis=[
                printable(line.strip()) for line in (*basis(done), second_opinion(done)) if line
            ],
            foreign=FOREIGN if done.is_foreign else "",
            reasoning=[printable(vote.shown.text, keeps_lines=True) for vote in done.votes],
            is_unsure=done.verdict == NOT_SURE,
        )
    )


def bars_of(cycles: Sequence[Cycle], duration_s: float, *, is_counted: bool = True) -> list[Bar]:
    """Repetitions as bars; what a model lists beyond the video stands at its end.

    Args:
        cycles: Seconds from the start of the video.
        duration_s: Length of the video.
        is_counted: See `Bar`.
    """
    length = max(duration_s, 1e-3)

    def percent(time_s: float) -> float:
        return round(100.0 * min(max(time_s, 0.0), length) / length, 3)

    return [
        Bar(start, end, percent(start), max(0.0, percent(end) - percent(start)), is_counted)
        for start, end in cycles
    ]


def _number(done: VideoCount) -> str:
    """The answer in two words."""
    if done.verdict == NOT_SURE:
        return "Not sure"
    if done.verdict == COUNT and done.count is not None:
        return repetitions(done.count)
    return "No repetition"


def _counted_all_the_same(done: VideoCount) -> str:
    """What was counted, but is in doubt."""
    if done.verdict != NOT_SURE:
        return ""
    if done.votes:
        return "" if done.count is None else f"{repetitions(done.count)} counted all the same"
    assert done.detection is not None, "somebody counted"
    rejected = done.detection.rejected
    return f"{repetitions(len(rejected))} seen" if rejected else ""


def _encodable(page: str) -> str:
    """A sampled text can hold halves of characters that UTF-8 cannot."""
    return page.encode("utf-8", errors="replace").decode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("actrep_ray.demo", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("result.html.j2")
