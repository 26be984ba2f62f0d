"""Random Count Sampling (RCS): which clip is issued next, so that rare counts are seen too.

    take ─► a stratum, drawn by weight ─► a whole clip of it, or one to crop ─► SampledClip

Counts in real sets are long-tailed. A draw first picks a count stratum (its weight is its natural
frequency to a power: 0 is uniform, 1 leaves the set as it is), then a clip of it. A stratum deals
each of its clips once per pass, in a new order every pass. With `sampling.crop_probability` a draw
takes a longer clip that can serve the stratum and crops a CONTIGUOUS window of k annotated cycles
out of it, k in the stratum; the crop is relabelled. Clips without marks are never cropped, and
gaps without marks are only with `sampling.zero_crops`.

RCS is named by ActRep-R1, which publishes no code for it; the definition here is ours.

The order is a function of the seed and of how often each stratum was drawn from, never of a
generator's hidden state: the saved state is a handful of integers, and refilling one stratum does
not disturb the order of another. Only the train split is ever issued.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from actrep_ray.config import ConfigError, SamplingConfig
from actrep_ray.driver.cropping import can_crop, crop_clip
from data_prep.files import DataError
from data_prep.schema import Clip
from data_prep.strata import make_strata

_STATE_VERSION = 1
# What a random number is for: each use has generators of its own, by the second number of the seed.
_STRATUM, _DRAW, _ORDER_OF_WHOLE, _ORDER_OF_CROPS = range(4)


@dataclass(frozen=True)
class SampledClip:
    """A drawn clip.

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


def describe_strata(num_clips: Mapping[str, int], weights: Mapping[str, float]) -> str:
    """How many clips each count stratum has, and which share of the draws it gets."""
    strata = (f"{name}: {num} ({weights.get(name, 0.0):.0%})" for name, num in num_clips.items())
    return f"clips by count (share of the draws): {', '.join(strata)}"


class CountSampler:
    """Issues clips of the train split by Random Count Sampling.

    Args:
        clips: The clips, all of the train split; their order is part of what is reproducible.
        config: Strata, power and cropping.
        seed: Decides everything that is drawn.

    Attributes:
        strata: All strata, by rising counts.
        weights: Weight of each stratum that can be served, by name; they add up to 1.

    Raises:
        DataError: for no clips, a clip of another split, or two clips with one id.
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
        self._indices = {stratum.name: i for i, stratum in enumerate(self.strata)}
        self._whole = self._make_decks(_ORDER_OF_WHOLE, self._find_whole())
        self._croppable = self._make_decks(_ORDER_OF_CROPS, self._find_croppable())
        self.weights = self._find_weights()
        self._num_drawn = 0
        self._dealt = {name: _Dealt() for name in self.weights}
        self._excluded: set[int] = set()

    @property
    def num_clips(self) -> dict[str, int]:
        """Clips of the set in each stratum: the histogram before RCS."""
        return {name: len(deck) for name, deck in self._whole.items()}

    @property
    def histogram(self) -> dict[str, int]:
        """How often each stratum was issued so far: the histogram after RCS."""
        return {s.name: self._dealt.get(s.name, _Dealt()).num_draws for s in self.strata}

    def take(self, num: int) -> list[SampledClip]:
        """Draw clips, each from a stratum drawn by weight.

        Raises:
            DataError: if every clip is excluded.
        """
        names = [name for name in self.weights if self._can_serve(name)]
        if not names:
            raise DataError("every clip of train is in quarantine: nothing to sample from")
        bounds = np.cumsum([self.weights[name] for name in names])
        sampled = []
        for _ in range(num):
            point = self._rng(_STRATUM, self._num_drawn).random() * bounds[-1]
            name = names[min(int(np.searchsorted(bounds, point, side="right")), len(names) - 1)]
            self._num_drawn += 1
            sampled.append(self._draw(name))
        return sampled

    def peek(self, num: int) -> list[SampledClip]:
        """What `take(num)` would draw now; nothing is drawn."""
        ahead = copy.copy(self)
        ahead._dealt = {name: replace(dealt) for name, dealt in self._dealt.items()}
        return ahead.take(num)

    def take_from(self, stratum: str, num: int) -> list[SampledClip]:
        """Draw clips of one stratum, to refill groups that were dropped.

        They are of any other if all of its clips are excluded.

        Raises:
            ValueError: if the stratum does not exist or nothing can serve it.
        """
        if stratum not in self.weights:
            raise ValueError(
                f"stratum {stratum!r} cannot be served, expected one of {', '.join(self.weights)}"
            )
        if not self._can_serve(stratum):
            return self.take(num)
        return [self._draw(stratum) for _ in range(num)]

    def exclude(self, row_id: str) -> None:
        """Never draw a clip of the data again, whole or cropped; the order of the others stays."""
        self._excluded.update(i for i, clip in enumerate(self._clips) if clip.id == row_id)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on, as JSON-able values."""
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "fingerprint": self._own_fingerprint,
            "num_drawn": self._num_drawn,
            "dealt": {name: list(astuple(dealt)) for name, dealt in self._dealt.items()},
            "issued": {name: dealt.num_draws for name, dealt in self._dealt.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler that gave `state` was.

        Raises:
            ConfigError: if it was another seed, other clips or other settings.
        """
        mine = self.state_dict()
        if (
            not self.config.zero_crops
            and state.get("fingerprint") != mine["fingerprint"]
            and state.get("fingerprint") == self._fingerprint(zero_crops=True)
        ):
            raise ConfigError(
                "sampler state: the run that saved it also drew crops of count 0 out of gaps "
                "without marks; go on as it did with --set sampling.zero_crops=true"
            )
        for key in ("version", "seed", "fingerprint"):
            if state.get(key) != mine[key]:
                raise ConfigError(
                    f"sampler state: {key}={state.get(key)!r}, this run has {mine[key]!r}: the "
                    "seed, the clips of train or the sampling settings are not those of the run "
                    "that saved it"
                )
        self._num_drawn = int(state["num_drawn"])
        self._dealt = {
            name: _Dealt(*(int(number) for number in state["dealt"][name])) for name in self.weights
        }

    # --- one draw

    def _draw(self, name: str) -> SampledClip:
        """The next clip of a stratum, whole or cropped."""
        index, dealt = self._indices[name], self._dealt[name]
        num_whole = self._whole[name].num_left(self._excluded)
        num_croppable = self._croppable[name].num_left(self._excluded)
        rng = self._rng(_DRAW, index, dealt.num_draws)
        dealt.num_draws += 1
        is_crop = num_croppable > 0 and (
            num_whole == 0 or float(rng.random()) < self.config.crop_probability
        )
        if is_crop:
            number, dealt.num_crops = self._croppable[name].next(dealt.num_crops, self._excluded)
            source = self._clips[number]
            clip = crop_clip(source, self.strata[index], self.config, rng)
        else:
            number, dealt.num_whole = self._whole[name].next(dealt.num_whole, self._excluded)
            source = clip = self._clips[number]
        return SampledClip(clip, name, source.id)

    def _can_serve(self, name: str) -> bool:
        decks = (self._whole[name], self._croppable[name])
        return any(deck.num_left(self._excluded) for deck in decks)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    # --- what can serve which stratum

    def _find_whole(self) -> list[list[int]]:
        """By stratum, the clips with such a count."""
        return [
            [i for i, clip in enumerate(self._clips) if stratum.holds(clip.count)]
            for stratum in self.strata
        ]

    def _find_croppable(self) -> list[list[int]]:
        """By stratum, the clips that can be cropped to such a count."""
        if self.config.crop_probability == 0:
            return [[] for _ in self.strata]
        return [
            [i for i, clip in enumerate(self._clips) if can_crop(clip, stratum, self.config)]
            for stratum in self.strata
        ]

    def _make_decks(self, use: int, found: Sequence[Sequence[int]]) -> dict[str, "_Deck"]:
        return {
            name: _Deck(found[index], (self.seed, use, index))
            for name, index in self._indices.items()
        }

    def _find_weights(self) -> dict[str, float]:
        frequencies = {
            name: len(deck) / len(self._clips)
            for name, deck in self._whole.items()
            if len(deck) or len(self._croppable[name])
        }
        weights = {name: f**self.config.power for name, f in frequencies.items()}  # 0 ** 0 is 1
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    @cached_property
    def _own_fingerprint(self) -> str:
        return self._fingerprint()

    def _fingerprint(self, *, zero_crops: bool | None = None) -> str:
        """What the order depends on besides the seed.

        States from before `zero_crops` do not name it, and such crops were drawn then: it is named
        only where it decides, and only where it is off.

        Args:
            zero_crops: In place of the setting.
        """
        has_zero_crops = self.config.zero_crops if zero_crops is None else zero_crops
        settings = self.config.model_dump_json(exclude={"zero_crops"})
        if self.config.crop_probability and not has_zero_crops:
            settings += "\nzero_crops=false"
        digest = hashlib.sha256(settings.encode())
        for clip in self._clips:
            digest.update(f"\n{clip.id}\t{clip.count}\t{clip.start_s}\t{clip.end_s}".encode())
            digest.update(repr(clip.cycles).encode())
        return digest.hexdigest()[:16]


@dataclass
class _Dealt:
    """How often a stratum was drawn from: in all, for a whole clip, for one to crop."""

    num_draws: int = 0
    num_whole: int = 0
    num_crops: int = 0


class _Deck:
    """Clips that are dealt once per pass, in a new order every pass.

    Args:
        clips: Their indices in the set.
        seed: Decides the orders.
    """

    def __init__(self, clips: Sequence[int], seed: tuple[int, ...]) -> None:
        self._clips = clips
        self._seed = seed
        self._order = -1, np.zeros(0, int)  # a pass and its order; only saves time

    def __len__(self) -> int:
        return len(self._clips)

    def num_left(self, excluded: AbstractSet[int]) -> int:
        """Clips that are not excluded."""
        return len(self._clips) - sum(i in excluded for i in self._clips) if excluded else len(self)

    def next(self, number: int, excluded: AbstractSet[int]) -> tuple[int, int]:
        """The first clip that is dealt after `number` others and not excluded.

        Returns:
            The clip, and how many have been dealt with it.
        """
        while (clip := self.deal(number)) in excluded:
            number += 1
        return clip, number + 1

    def deal(self, number: int) -> int:
        """The clip that is dealt after `number` others."""
        number_of_pass, position = divmod(number, len(self._clips))
        if self._order[0] != number_of_pass:
            rng = np.random.default_rng((*self._seed, number_of_pass))
            self._order = number_of_pass, rng.permutation(len(self._clips))
        return self._clips[int(self._order[1][position])]


def _check_clips(clips: Sequence[Clip]) -> None:
    if not clips:
        raise DataError("no clips of the train split: nothing to sample from")
    seen = set()
    for clip in clips:
        if clip.split != "train":
            raise DataError(
                f"clip {clip.id!r} is of split {clip.split!r}: only train may be sampled for "
                "training"
            )
        if clip.id in seen:
            raise DataError(f"clip {clip.id!r} was given twice, expected ids to be unique")
        seen.add(clip.id)
