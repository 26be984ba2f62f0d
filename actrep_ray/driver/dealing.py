"""Issuing rows stratum by stratum, whatever a stratum is: the part that all samplers share.

    take ─► a stratum, drawn by weight ─► a row of it, as `_draw_from` gives it ─► SampledClip

The weight of a stratum is its natural frequency to the power `sampling.power`. A stratum deals each
of its rows once per pass, in a new order every pass.

The order is a function of the seed and of how often each stratum was drawn from, never of a
generator's hidden state: the saved state is a handful of integers, and refilling one stratum does
not disturb the order of another. Only the train split is ever issued.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np

from actrep_ray.config import ConfigError, SamplingConfig
from data_prep.files import DataError
from data_prep.rows import Row

_STATE_VERSION = 1
# What a random number is for: each use has generators of its own, by the second number of the seed.
_STRATUM, _DRAW, _ORDER_OF_WHOLE, _ORDER_OF_CROPS = range(4)

RowT = TypeVar("RowT", bound=Row, covariant=True)


@dataclass(frozen=True)
class SampledClip(Generic[RowT]):
    """A drawn clip (or image).

    Attributes:
        clip: What to ask about. A crop has its own id, window, count and cycles.
        stratum: Name of the stratum that it was drawn for.
        source_id: Id of the clip in the data file; `clip.id` unless it is a crop.
    """

    clip: RowT
    stratum: str
    source_id: str

    @property
    def is_crop(self) -> bool:
        """Whether the clip is a window cut out of a longer one."""
        return self.clip.id != self.source_id


class Sampler(ABC, Generic[RowT]):
    """Issues rows of the train split.

    Args:
        clips: The rows, all of the train split; their order is part of what is reproducible.
        config: Settings.
        seed: Decides everything that is drawn.
        whole: By name of each stratum, which rows lie in it.
        croppable: Likewise, which can be cropped to lie in it (`_crop`).

    Attributes:
        weights: Weight of each stratum that can be served, by name; they add up to 1.

    Raises:
        DataError: for no rows, a row of another split, or two rows with one id.
    """

    def __init__(
        self,
        clips: Sequence[RowT],
        config: SamplingConfig,
        seed: int,
        *,
        whole: Mapping[str, Sequence[int]],
        croppable: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        _check_clips(clips)
        self.config = config
        self.seed = seed
        self._clips = tuple(clips)
        self._indices = {name: i for i, name in enumerate(whole)}
        self._whole = self._make_decks(_ORDER_OF_WHOLE, whole)
        self._croppable = self._make_decks(_ORDER_OF_CROPS, croppable)
        self.weights = self._find_weights()
        self._num_drawn = 0
        self._dealt = {name: _Dealt() for name in self.weights}
        self._excluded: set[int] = set()

    @property
    def num_clips(self) -> dict[str, int]:
        """Clips of the set in each stratum: the histogram before sampling."""
        return {name: len(deck) for name, deck in self._whole.items()}

    @property
    def histogram(self) -> dict[str, int]:
        """How often each stratum was issued so far: the histogram after sampling."""
        return {name: self._dealt.get(name, _Dealt()).num_draws for name in self._whole}

    def take(self, num: int) -> list[SampledClip[RowT]]:
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

    def peek(self, num: int) -> list[SampledClip[RowT]]:
        """What `take(num)` would draw now; nothing is drawn."""
        ahead = copy.copy(self)
        ahead._dealt = {name: replace(dealt) for name, dealt in self._dealt.items()}
        return ahead.take(num)

    def take_from(self, stratum: str, num: int) -> list[SampledClip[RowT]]:
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
            "fingerprint": self.fingerprint,
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

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """What the order depends on besides the seed."""

    def _crop(self, clip: Any, stratum: int, rng: np.random.Generator) -> RowT:
        """A row that lies in a stratum, cut out of a croppable one that does not."""
        raise NotImplementedError

    # --- one draw

    def _draw(self, name: str) -> SampledClip[RowT]:
        """The next row of a stratum, whole or cropped."""
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
            clip = self._crop(source, index, rng)
        else:
            number, dealt.num_whole = self._whole[name].next(dealt.num_whole, self._excluded)
            source = clip = self._clips[number]
        return SampledClip(clip, name, source.id)

    def _can_serve(self, name: str) -> bool:
        decks = (self._whole[name], self._croppable[name])
        return any(deck.num_left(self._excluded) for deck in decks)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    def _make_decks(self, use: int, found: Mapping[str, Sequence[int]]) -> dict[str, "_Deck"]:
        return {
            name: _Deck(found.get(name, ()), (self.seed, use, index))
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


def _check_clips(clips: Sequence[Row]) -> None:
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
