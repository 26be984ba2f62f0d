"""What Random Count Sampling does to a set: counts before and after, and the draws as a file.

Both issue clips as the driver does, with the recipe's settings and seed; `export_clips` gives the
very clips that a GRPO run with them starts with, for supervised fine-tuning on the same balance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.config import SamplingConfig
from actrep_ray.driver.dealing import SampledClip
from actrep_ray.driver.sampling import CountSampler
from data_prep.rows import portable_row
from data_prep.schema import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _BLUE, _ORANGE = "#b4bac6", "#2a6fb8", "#e07b28"


@dataclass(frozen=True)
class StratumRow:
    """One count stratum before and after sampling.

    Attributes:
        name: For example "6-10".
        num_clips: Clips of the set with such a count.
        num_draws: Draws that were issued for it.
        num_crops: How many of them are crops of longer clips.
        num_sources: Different clips of the set behind them.
    """

    name: str
    num_clips: int
    num_draws: int
    num_crops: int
    num_sources: int

    @property
    def draws_per_source(self) -> float:
        """How often a clip comes back: high where few clips have to serve a stratum."""
        return self.num_draws / self.num_sources if self.num_sources else 0.0


@dataclass(frozen=True)
class RcsReport:
    """A set before and after sampling.

    Attributes:
        rows: By stratum.
        before: Clips by count.
        after: Draws by count.
        num_zero_crops: Draws that are crops of count 0 out of clips that have repetitions: their
            gaps without marks.
        num_zero_crops_if_on: How many these would be with `sampling.zero_crops`.
    """

    rows: tuple[StratumRow, ...]
    before: Counter[int]
    after: Counter[int]
    num_zero_crops: int
    num_zero_crops_if_on: int

    def text(self) -> str:
        """The table that `actrep prepare rcs-report` prints."""
        num_clips, num_draws = self.before.total(), self.after.total()
        lines = [f"{'counts':>9} {'clips':>7} {'share':>6}    {'draws':>7} {'share':>6}  "]
        lines[0] += f"{'crops':>6} {'sources':>8} {'draws per source':>17}"
        for row in self.rows:
            lines.append(
                f"{row.name:>9} {row.num_clips:>7,} {row.num_clips / num_clips:>6.1%} -> "
                f"{row.num_draws:>7,} {row.num_draws / num_draws:>6.1%}  {row.num_crops:>6,} "
                f"{row.num_sources:>8,} {row.draws_per_source:>17.1f}"
            )
        lines.append(
            f"mean count {_mean(self.before):.1f} -> {_mean(self.after):.1f}, "
            f"different counts {len(self.before)} -> {len(self.after)}"
        )
        if self.num_zero_crops_if_on:
            lines.append(self._zero_crops())
        empty = [row.name for row in self.rows if not row.num_sources]
        if empty:
            lines.append(f"nothing serves {', '.join(empty)}: no clip has, or can be cropped to it")
        return "\n".join(lines)

    def _zero_crops(self) -> str:
        """How many draws are called 0 because nobody marked anything there."""
        num, num_if_on = self.num_zero_crops, self.num_zero_crops_if_on
        share = f"{num_if_on / self.after.total():.1%}"
        if num:
            return f"crops of count 0 from gaps without marks: {num:,} draws ({share})"
        return (
            "crops of count 0 from gaps without marks: none; with sampling.zero_crops they would "
            f"be {num_if_on:,} draws ({share})"
        )


def rcs_report(
    clips: Sequence[Clip], config: SamplingConfig, *, seed: int, num_draws: int
) -> RcsReport:
    """Draw from the clips of the train split and count.

    Raises:
        ValueError: as `CountSampler`, or for `num_draws` below 1.
    """
    sampler, drawn = _draw(clips, config, seed, num_draws)
    rows = []
    for stratum in sampler.strata:
        mine = [sampled for sampled in drawn if sampled.stratum == stratum.name]
        rows.append(
            StratumRow(
                name=stratum.name,
                num_clips=sampler.num_clips[stratum.name],
                num_draws=len(mine),
                num_crops=sum(sampled.is_crop for sampled in mine),
                num_sources=len({sampled.source_id for sampled in mine}),
            )
        )
    if_on = drawn
    if not config.zero_crops and config.crop_probability:
        _, if_on = _draw(clips, config.model_copy(update={"zero_crops": True}), seed, num_draws)
    counts = {clip.id: clip.count for clip in clips}
    return RcsReport(
        tuple(rows),
        Counter(clip.count for clip in clips),
        Counter(sampled.clip.count for sampled in drawn),
        _num_zero_crops(drawn, counts),
        _num_zero_crops(if_on, counts),
    )


def _num_zero_crops(drawn: Sequence[SampledClip[Clip]], counts: Mapping[str, int]) -> int:
    """Crops of count 0 out of clips whose own count is another."""
    return sum(s.is_crop and s.clip.count == 0 and counts[s.source_id] > 0 for s in drawn)


def export_clips(
    clips: Sequence[Clip], config: SamplingConfig, *, seed: int, num: int, folder: Path
) -> list[Clip]:
    """The first draws as clips of a file in `folder`, in order; crops carry their own labels.

    A clip that is drawn again gets `#2`, `#3`, ... behind its id, for ids are unique in a file.

    Raises:
        ValueError: as `CountSampler`, or for `num` below 1.
    """
    times = Counter[str]()
    exported = []
    for sampled in _draw(clips, config, seed, num)[1]:
        clip = portable_row(sampled.clip, folder)
        times[clip.id] += 1
        number = times[clip.id]
        name = clip.id if number == 1 else f"{clip.id}#{number}"
        exported.append(replace(clip, id=name))
    return exported


def plot_report(report: RcsReport, path: Path) -> None:
    """Draw the strata, and the counts within them, before and after, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    strata, counts = figure.subplots(2, 1)
    _plot_strata(strata, report)
    _plot_counts(counts, report)
    for axes in (strata, counts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("share")
        axes.yaxis.set_major_formatter("{x:.0%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(
    clips: Sequence[Clip], config: SamplingConfig, seed: int, num: int
) -> tuple[CountSampler, list[SampledClip[Clip]]]:
    if num < 1:
        raise ValueError(f"{num} draws, expected at least 1")
    sampler = CountSampler(clips, config, seed)
    return sampler, sampler.take(num)


def _plot_strata(axes: "Axes", report: RcsReport) -> None:
    names = [row.name for row in report.rows]
    num_clips, num_draws = report.before.total(), report.after.total()
    before = [row.num_clips / num_clips for row in report.rows]
    crops = [row.num_crops / num_draws for row in report.rows]
    whole = [(row.num_draws - row.num_crops) / num_draws for row in report.rows]
    ticks = range(len(names))
    left, right = [i - 0.2 for i in ticks], [i + 0.2 for i in ticks]
    axes.bar(left, before, 0.38, color=_GREY, label=f"the set: {num_clips:,} clips")
    axes.bar(right, whole, 0.38, color=_BLUE, label=f"{num_draws:,} draws: whole clips")
    if any(crops):
        axes.bar(right, crops, 0.38, bottom=whole, color=_ORANGE, label="draws: crops")
    axes.set_xticks(list(ticks), names)
    axes.set_xlabel("count stratum")
    axes.set_title("Random Count Sampling: strata before and after")
    axes.legend(frameon=False)


def _plot_counts(axes: "Axes", report: RcsReport) -> None:
    for counts, color, filled, name in (
        (report.before, _GREY, True, "the set"),
        (report.after, _BLUE, False, "draws"),
    ):
        values = range(max(*report.before, *report.after) + 1)
        total = counts.total()
        shares = [counts[value] / total for value in values]
        edges = [value - 0.5 for value in values] + [len(values) - 0.5]
        axes.stairs(shares, edges, fill=filled, color=color, label=name, linewidth=1.3)
    axes.set_xlabel("count")
    axes.set_title("the same, count by count")
    axes.legend(frameon=False)


def _mean(counts: Counter[int]) -> float:
    return sum(count * number for count, number in counts.items()) / counts.total()
