"""Who did what when, in one run: a trace, a picture, idle shares and the bottleneck in words.

    RUN_DIR/profile/trace.json   Chrome's trace format, for chrome://tracing or ui.perfetto.dev
    RUN_DIR/profile/gantt.png    the same as a picture
    RUN_DIR/profile/summary.txt  idle share of each pool, and which setting to change

Times are wall clock, taken where the work is done; clocks of several nodes are trusted to agree to
a few milliseconds.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import Recipe
from actrep_ray.run.console import as_text, console
from data_prep.files import write_json, write_lines

_POOLS = ("rollout", "reward", "learner", "weights", "driver")
_WORKING = ("rollout", "reward", "learner")  # the others have no workers that could be idle
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_BUSY = 0.85  # share of the time from which a pool is called busy
_MAX_LANES = 24  # rows of the picture


@dataclass(frozen=True)
class Span:
    """Something that was done.

    Attributes:
        pool: `rollout`, `reward`, `learner`, `weights` (a push of them, on whichever workers) or
            `driver`.
        lane: Who: "engine 0".
        what: "generate".
        began_s: Wall clock, seconds since 1970.
        ended_s: Likewise.
    """

    pool: str
    lane: str
    what: str
    began_s: float
    ended_s: float


class Timeline:
    """Collects spans once it is switched on; until then they are dropped."""

    def __init__(self) -> None:
        self.is_on = False
        self.spans: list[Span] = []

    def add(self, pool: str, lane: str, what: str, began_s: float, ended_s: float) -> None:
        """Note what was done."""
        if self.is_on:
            self.spans.append(Span(pool, lane, what, began_s, ended_s))

    @contextmanager
    def span(self, pool: str, lane: str, what: str) -> Iterator[None]:
        """Note what is done inside."""
        began = time.time()
        try:
            yield
        finally:
            self.add(pool, lane, what, began, time.time())


@contextmanager
def profiled(timeline: Timeline, recipe: Recipe) -> Iterator[None]:
    """Observe what is done inside and write it down, even if it is cut short."""
    timeline.is_on = True
    try:
        yield
    finally:
        timeline.is_on = False
        if timeline.spans:
            folder = recipe.run_dir / "profile"
            found = write_profile(folder, timeline.spans, max_staleness=recipe.train.max_staleness)
            for line in [*found.lines(), f"{folder}: gantt.png, trace.json"]:
                console().print(as_text(line), soft_wrap=True)


@dataclass(frozen=True)
class Profile:
    """Shares of the time between the first span's begin and the last one's end.

    Attributes:
        seconds: That time.
        busy: By pool, the mean over its lanes of the share in which a lane did something.
        alone: By pool, the share of the time in which nobody else did anything.
        pushing: Share of the time in which weights were on their way to the engines, None if none
            were pushed.
        verdict: The bottleneck and the setting to change.
    """

    seconds: float
    busy: dict[str, float]
    alone: dict[str, float]
    pushing: float | None
    verdict: str

    def lines(self) -> list[str]:
        """The profile as lines of text."""
        rows = [
            f"{pool:8} idle {1 - busy:5.1%}  at work {busy:5.1%}  alone at work "
            f"{self.alone[pool]:5.1%}"
            for pool, busy in self.busy.items()
        ]
        if self.pushing is not None:
            rows.append(f"{'weights':8} on their way to the engines {self.pushing:5.1%}")
        return [f"{self.seconds:.1f} s were observed", *rows, self.verdict]


def analyse(spans: Sequence[Span], *, max_staleness: int | None) -> Profile:
    """Idle shares and the bottleneck.

    Args:
        spans: Of one run.
        max_staleness: `train.max_staleness` of the run.

    Raises:
        ValueError: if there are no spans.
    """
    if not spans:
        raise ValueError("no spans: nothing was observed")
    start, end = min(s.began_s for s in spans), max(s.ended_s for s in spans)
    seconds = max(end - start, 1e-9)
    pools = [pool for pool in _WORKING if any(s.pool == pool for s in spans)]
    busy, covers = {}, {}
    for pool in pools:
        lanes = sorted({s.lane for s in spans if s.pool == pool})
        covered = [
            _length(_cover(s for s in spans if (s.pool, s.lane) == (pool, n))) for n in lanes
        ]
        busy[pool] = sum(covered) / len(lanes) / seconds
        covers[pool] = _cover(s for s in spans if s.pool == pool)
    everybody = _length(_cover(s for s in spans if s.pool in pools))
    alone = {}
    for pool in pools:
        others = _length(_cover(s for s in spans if s.pool in pools and s.pool != pool))
        alone[pool] = (everybody - others) / seconds
    shares = [_length(cover) / seconds for cover in covers.values()]
    gain = sum(shares) / max(*shares, 1e-9)  # if all that takes turns were done at the same time
    pushes = _length(_cover(s for s in spans if s.pool == "weights")) / seconds
    verdict = _verdict(busy, alone, gain, max_staleness)
    return Profile(seconds, busy, alone, pushes or None, verdict)


def write_profile(folder: Path, spans: Sequence[Span], *, max_staleness: int | None) -> Profile:
    """Write the trace, the picture and the summary of a run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = analyse(spans, max_staleness=max_staleness)
    write_json(folder / "trace.json", chrome_trace(spans), indent=None)
    write_lines(folder / "summary.txt", profile.lines())
    draw_gantt(folder / "gantt.png", spans, profile)
    return profile


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """Spans in the Trace Event Format: one process a pool, one thread a lane, microseconds."""
    origin = min((s.began_s for s in spans), default=0.0)
    lanes = _lanes(spans)
    pools = {pool: i for i, pool in enumerate(dict.fromkeys(pool for pool, _ in lanes))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": i, "args": {"name": pool}}
        for pool, i in pools.items()
    ]
    for i, (pool, lane) in enumerate(lanes):
        name = {"name": lane}
        events.append(
            {"ph": "M", "name": "thread_name", "pid": pools[pool], "tid": i, "args": name}
        )
    for span in spans:
        events.append(
            {
                "ph": "X",
                "name": span.what,
                "cat": span.pool,
                "pid": pools[span.pool],
                "tid": lanes.index((span.pool, span.lane)),
                "ts": round(1e6 * (span.began_s - origin), 1),
                "dur": round(1e6 * (span.ended_s - span.began_s), 1),
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def draw_gantt(path: Path, spans: Sequence[Span], profile: Profile) -> None:
    """One row a lane, one colour for each thing that was done."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    origin = min(s.began_s for s in spans)
    lanes = _lanes(spans)
    shown, hidden = lanes[:_MAX_LANES], len(lanes[_MAX_LANES:])
    kinds = list(dict.fromkeys(s.what for s in spans))
    color = {what: _COLORS[i % len(_COLORS)] for i, what in enumerate(kinds)}
    figure = Figure(figsize=(11, 1.9 + 0.36 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (pool, lane) in enumerate(shown):
        some = [s for s in spans if (s.pool, s.lane) == (pool, lane)]
        axes.broken_barh(
            [(s.began_s - origin, s.ended_s - s.began_s) for s in some],
            (row - 0.38, 0.76),
            facecolors=[color[s.what] for s in some],
        )
    names = [lane if pool == "rollout" else f"{pool}: {lane}" for pool, lane in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, profile.seconds)
    axes.set_xlabel("seconds" + (f" ({hidden} more rows are in trace.json)" if hidden else ""))
    axes.spines[["top", "right"]].set_visible(False)
    idle = ", ".join(f"{pool} idle {1 - busy:.0%}" for pool, busy in profile.busy.items())
    axes.set_title(f"{idle}\n{profile.verdict}", fontsize=9, loc="left", wrap=True)
    handles = [Patch(color=color[what], label=what) for what in kinds]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=120)


def _verdict(
    busy: dict[str, float], alone: dict[str, float], gain: float, max_staleness: int | None
) -> str:
    """Which pool holds the others up, and what to do about it."""
    pool = max(busy, key=lambda name: busy[name])
    remedy = {
        "rollout": "raise rollout.num_workers or rollout.max_num_seqs, or lower "
        "rollout.max_response_tokens",
        "learner": "raise learner.num_workers or learner.micro_batch_tokens, or lower "
        "train.num_updates_per_batch",
        "reward": "raise reward.num_workers",
    }
    if busy[pool] >= _BUSY:
        return f"bottleneck: {pool}, at work {busy[pool]:.0%} of the time; {remedy[pool]}"
    takes_turns = sum(alone.values()) > _BUSY
    if takes_turns and not max_staleness:
        return (
            "bottleneck: the pools take turns; set train.max_staleness=1 to let them work at the "
            f"same time, up to {gain:.1f} times faster"
        )
    if max_staleness:
        return (
            f"bottleneck: {pool}, at work {busy[pool]:.0%} of the time, but it waits too; raise "
            f"train.max_staleness above {max_staleness}, or {remedy[pool]}"
        )
    return (
        f"bottleneck: the driver's own work between the phases, such as evaluation; {pool} is at "
        f"work {busy[pool]:.0%} of the time"
    )


def _lanes(spans: Sequence[Span]) -> list[tuple[str, str]]:
    """(pool, lane), pools in their usual order, "engine 2" before "engine 10"."""
    pairs = {(s.pool, s.lane) for s in spans}
    return sorted(pairs, key=lambda pair: (_POOLS.index(pair[0]), len(pair[1]), pair[1]))


def _cover(spans: Iterator[Span] | Sequence[Span]) -> list[tuple[float, float]]:
    """The union of intervals, in order."""
    merged: list[tuple[float, float]] = []
    for began, ended in sorted((s.began_s, s.ended_s) for s in spans):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(ended, merged[-1][1]))
        else:
            merged.append((began, ended))
    return merged


def _length(intervals: Sequence[tuple[float, float]]) -> float:
    return sum(ended - began for began, ended in intervals)
