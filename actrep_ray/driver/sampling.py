"""Random Count Sampling (RCS): which clip is issued next, so that rare counts are seen too.

Counts in real sets are long-tailed. A draw first picks a count stratum (its weight is its natural
frequency to a power: 0 is uniform, 1 leaves the set as it is), then a clip of it. A stratum deals
each of its clips once per pass, in a new order every pass. With `sampling.crop_probability` a draw
takes a longer clip that can serve the stratum and crops a CONTIGUOUS window of k annotated cycles
out of it, k in the stratum; the crop is relabelled. Clips without marks are never cropped.

RCS is named by ActRep-R1, which publishes no code for it; the definition here is ours.

The order is a function of the seed and of how often each stratum was drawn from, never of a
generator's hidden state: the saved state is a handful of integers, and refilling one stratum does
not disturb the order of another. Only the train split is ever issued.
"""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from actrep_ray.config import SamplingConfig
from data_prep.schema import Clip, Cycle
from data_prep.strata import Stratum, make_strata

_STATE_VERSION = 1
_MARK_SLACK_S = 1e-6  # marks may differ from the clip's end by less than this


@dataclass(frozen=True)
class SampledClip:
    """One draw.

    Attributes:
        clip: What to ask about. A crop has its own id, window, count and cycles.
        stratum: Name of the stratum that it was drawn for.
        source_id: Id of the clip in the data file; `clip.id` unless it is a crop.
    """

    clip: Clip
    stratum: str
    source_id: str

    @property
    def is_crop(self) -> bool:
        """Whether the clip is a window cut out of a longer one."""
        return self.clip.id != self.source_id


def quantile_bins(counts: Sequence[int], num_quantiles: int) -> tuple[int, ...]:
    """Upper ends of at most `num_quantiles` strata of about as many clips each, for `make_strata`.

    Equal counts are never split, so a count that fills several quantiles gives fewer strata.
    """
    shares = np.arange(1, num_quantiles) / num_quantiles
    ends = np.quantile(np.asarray(counts), shares, method="inverted_cdf") if len(shares) else []
    return tuple(sorted({int(end) for end in ends if end < max(counts)}))


class CountSampler:
    """Issues clips of the train split by Random Count Sampling.

    Args:
        clips: The clips, all of the train split; their order is part of what is reproducible.
        config: Strata, power and cropping.
        seed: Of everything that is drawn.

    Raises:
        ValueError: for no clips, a clip of another split, or two clips with one id.
    """

    def __init__(self, clips: Sequence[Clip], config: SamplingConfig, seed: int) -> None:
        _check_clips(clips)
        self.config = config
        self.seed = seed
        self._clips = tuple(clips)
        bins = config.bins
        if config.num_quantiles is not None:
            bins = quantile_bins([clip.count for clip in clips], config.num_quantiles)
        self.strata = make_strata(bins)
        self._natural = {
            s.name: tuple(i for i, clip in enumerate(clips) if s.holds(clip.count))
            for s in self.strata
        }
        self._croppable = self._find_croppable()
        self.weights = self._find_weights()
        self._num_drawn = 0
        self._dealt = {name: [0, 0, 0] for name in self.weights}  # draws, whole clips, crops
        self._issued = dict.fromkeys(self.weights, 0)
        self._orders: dict[tuple[str, int], tuple[int, np.ndarray]] = {}  # only saves time

    @property
    def num_clips(self) -> dict[str, int]:
        """Clips of the set in each stratum: the histogram before RCS."""
        return {name: len(indices) for name, indices in self._natural.items()}

    @property
    def histogram(self) -> dict[str, int]:
        """How often each stratum was issued so far: the histogram after RCS."""
        return {s.name: self._issued.get(s.name, 0) for s in self.strata}

    def take(self, num: int) -> list[SampledClip]:
        """Draw clips, each from a stratum drawn by weight."""
        names = list(self.weights)
        bounds = np.cumsum(list(self.weights.values()))
        sampled = []
        for _ in range(num):
            place = self._rng(0, self._num_drawn).random() * bounds[-1]
            name = names[min(int(np.searchsorted(bounds, place, side="right")), len(names) - 1)]
            self._num_drawn += 1
            sampled.append(self._deal(name))
        return sampled

    def peek(self, num: int) -> list[SampledClip]:
        """What `take(num)` would draw now; nothing is drawn."""
        ahead = copy.copy(self)
        ahead._dealt = {name: list(counters) for name, counters in self._dealt.items()}
        ahead._issued = dict(self._issued)
        return ahead.take(num)

    def take_from(self, stratum: str, num: int) -> list[SampledClip]:
        """Draw clips of one stratum, to refill groups that were dropped.

        Raises:
            ValueError: if the stratum does not exist or nothing can serve it.
        """
        if stratum not in self.weights:
            raise ValueError(
                f"stratum {stratum!r} cannot be served, expected one of {', '.join(self.weights)}"
            )
        return [self._deal(stratum) for _ in range(num)]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on, as JSON-able values."""
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "fingerprint": self._fingerprint(),
            "num_drawn": self._num_drawn,
            "dealt": {name: list(counters) for name, counters in self._dealt.items()},
            "issued": dict(self._issued),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler that gave `state` was.

        Raises:
            ValueError: if it was another seed, other clips or other settings.
        """
        mine = self.state_dict()
        for key in ("version", "seed", "fingerprint"):
            if state.get(key) != mine[key]:
                raise ValueError(
                    f"sampler state: {key}={state.get(key)!r}, this run has {mine[key]!r}: the "
                    "seed, the clips of train or the sampling settings are not those of the run "
                    "that saved it"
                )
        self._num_drawn = int(state["num_drawn"])
        self._dealt = {name: [int(n) for n in state["dealt"][name]] for name in self.weights}
        self._issued = {name: int(state["issued"][name]) for name in self.weights}

    # --- one draw

    def _deal(self, name: str) -> SampledClip:
        counters = self._dealt[name]
        rng = self._rng(1, self._index(name), counters[0])
        counters[0] += 1
        self._issued[name] += 1
        whole, croppable = self._natural[name], self._croppable[name]
        is_crop = bool(croppable) and (
            not whole or float(rng.random()) < self.config.crop_probability
        )
        pool = croppable if is_crop else whole
        kind = 2 if is_crop else 1
        clip = self._clips[self._next_of(pool, name, kind)]
        stratum = self.strata[self._index(name)]
        issued = crop_clip(clip, stratum, self.config, rng) if is_crop else clip
        return SampledClip(issued, name, clip.id)

    def _next_of(self, pool: tuple[int, ...], name: str, kind: int) -> int:
        """The next of a pool that is dealt once per pass, in an order of its own every pass."""
        number, place = divmod(self._dealt[name][kind], len(pool))
        self._dealt[name][kind] += 1
        known, order = self._orders.get((name, kind), (-1, np.zeros(0, int)))
        if known != number:
            order = self._rng(1 + kind, self._index(name), number).permutation(len(pool))
            self._orders[name, kind] = (number, order)
        return pool[int(order[place])]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    def _index(self, name: str) -> int:
        return next(i for i, stratum in enumerate(self.strata) if stratum.name == name)

    # --- what can serve which stratum

    def _find_croppable(self) -> dict[str, tuple[int, ...]]:
        if self.config.crop_probability == 0:
            return {s.name: () for s in self.strata}
        return {
            s.name: tuple(
                i
                for i, clip in enumerate(self._clips)
                if any(_windows(clip, k, self.config) for k in _targets(clip, s, self.config))
            )
            for s in self.strata
        }

    def _find_weights(self) -> dict[str, float]:
        """Weight of each stratum that can be served; they add up to 1."""
        frequencies = {
            name: len(indices) / len(self._clips)
            for name, indices in self._natural.items()
            if indices or self._croppable[name]
        }
        weights = {name: f**self.config.power for name, f in frequencies.items()}  # 0 ** 0 is 1
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def _fingerprint(self) -> str:
        """What the order depends on besides the seed."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for clip in self._clips:
            digest.update(f"\n{clip.id}\t{clip.count}\t{clip.start_s}\t{clip.end_s}".encode())
            digest.update(repr(clip.cycles).encode())
        return digest.hexdigest()[:16]


# --- cropping


def crop_clip(
    clip: Clip, stratum: Stratum, config: SamplingConfig, rng: np.random.Generator
) -> Clip:
    """Cut a window of k consecutive cycles out of a clip, k drawn from the stratum.

    The window starts and ends inside the gaps around those cycles, at most `crop_lead_s` away from
    them, so that it holds k cycles and no part of another; for k = 0 it lies inside one gap.

    Raises:
        ValueError: if no window of the clip can serve the stratum.
    """
    choices = [(k, w) for k in _targets(clip, stratum, config) for w in _windows(clip, k, config)]
    if not choices:
        raise ValueError(f"clip {clip.id!r} has no window with a count in {stratum.name!r}")
    targets = sorted({k for k, _ in choices})
    target = targets[int(rng.integers(len(targets)))]
    windows = [window for k, window in choices if k == target]
    window = windows[int(rng.integers(len(windows)))]
    start, end = _draw_bounds(window, config.crop_min_s, rng)
    cycles = tuple(
        (max(0.0, round(a - start, 3)), min(end - start, round(b - start, 3)))
        for a, b in (clip.cycles or ())
        if a >= start - _MARK_SLACK_S and b <= end + _MARK_SLACK_S
    )
    assert len(cycles) == target, f"{clip.id}: {len(cycles)} cycles in a crop for {target}"
    return replace(
        clip,
        id=f"{clip.id}@{start:.3f}-{end:.3f}",
        start_s=clip.start_s + start,
        end_s=clip.start_s + end,
        count=target,
        cycles=cycles,
        flags=(*clip.flags, "cropped"),
    )


@dataclass(frozen=True)
class _Window:
    """Where a crop may start and end, seconds from the start of the clip."""

    first_start: float
    last_start: float
    first_end: float
    last_end: float


def _targets(clip: Clip, stratum: Stratum, config: SamplingConfig) -> range:
    """Counts of the stratum that a proper crop of this clip could have."""
    if clip.cycles is None or len(clip.cycles) != clip.count or not _is_ordered(clip):
        return range(0)
    top = clip.count - 1 if clip.count else 0
    for bound in (stratum.high, config.crop_max_count):
        top = top if bound is None else min(top, bound)
    return range(stratum.low, top + 1)


def _windows(clip: Clip, target: int, config: SamplingConfig) -> list[_Window]:
    """Every place for a window of `target` cycles that can be `crop_min_s` long."""
    cycles: tuple[Cycle, ...] = clip.cycles or ()
    edges = [(0.0, 0.0), *cycles, (clip.duration_s, clip.duration_s)]
    windows = []
    for i in range(len(edges) - 1 - target):
        gap_start, gap_end = edges[i][1], edges[i + target + 1][0]
        if target == 0:
            window = _Window(gap_start, gap_end, gap_start, gap_end)
        else:
            first, last = edges[i + 1][0], edges[i + target][1]
            window = _Window(
                max(gap_start, first - config.crop_lead_s),
                first,
                last,
                min(gap_end, last + config.crop_lead_s),
            )
        if window.last_end - window.first_start >= config.crop_min_s:
            windows.append(window)
    return windows


def _draw_bounds(window: _Window, min_s: float, rng: np.random.Generator) -> tuple[float, float]:
    """A start and an end, uniform over what is left once the crop is long enough.

    Rounded to milliseconds towards the cycles' outside, but never out of the window.
    """
    start = float(rng.uniform(window.first_start, min(window.last_start, window.last_end - min_s)))
    start = max(window.first_start, math.floor(start * 1000) / 1000)
    end = float(rng.uniform(max(window.first_end, start + min_s), window.last_end))
    return start, min(window.last_end, math.ceil(end * 1000) / 1000)


def _is_ordered(clip: Clip) -> bool:
    cycles = clip.cycles or ()
    is_inside = all(-_MARK_SLACK_S <= a < b <= clip.duration_s + _MARK_SLACK_S for a, b in cycles)
    return is_inside and all(b <= c + _MARK_SLACK_S for (_, b), (c, _) in pairwise(cycles))


def _check_clips(clips: Sequence[Clip]) -> None:
    if not clips:
        raise ValueError("no clips of the train split: nothing to sample from")
    seen = set()
    for clip in clips:
        if clip.split != "train":
            raise ValueError(
                f"clip {clip.id!r} is of split {clip.split!r}: only train may be sampled for "
                "training"
            )
        if clip.id in seen:
            raise ValueError(f"clip {clip.id!r} was given twice, expected ids to be unique")
        seen.add(clip.id)
