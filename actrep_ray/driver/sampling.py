"""Random Count Sampling (RCS): which clip is issued next, so that rare counts are seen too.

Counts in real sets are long-tailed. A draw first picks a count stratum (its weight is its natural
frequency to a power: 0 is uniform, 1 leaves the set as it is), then a clip of it. A stratum deals
each of its clips once per pass, in a new order every pass. With `sampling.crop_probability` a draw
takes a longer clip that can serve the stratum and crops a CONTIGUOUS window of k annotated cycles
out of it, k in the stratum; the crop is relabelled. Clips without marks are never cropped, and
gaps without marks are only with `sampling.zero_crops`.

RCS is named by ActRep-R1, which publishes no code for it; the definition here is ours. What it
shares with other ways to draw, the order and the saved state, is in `dealing`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from actrep_ray.config import ConfigError, SamplingConfig
from actrep_ray.driver.cropping import can_crop, crop_clip
from actrep_ray.driver.dealing import Sampler
from data_prep.schema import Clip
from data_prep.strata import Stratum, make_strata, stratum_of


def quantile_bins(counts: Sequence[int], num_quantiles: int) -> tuple[int, ...]:
    """Upper ends of at most `num_quantiles` strata of about as many clips each, for `make_strata`.

    Equal counts are never split, so a count that fills several quantiles gives fewer strata.
    """
    shares = np.arange(1, num_quantiles) / num_quantiles
    ends = np.quantile(np.asarray(counts), shares, method="inverted_cdf") if len(shares) else []
    return tuple(sorted({int(end) for end in ends if end < max(counts)}))


def count_strata(clips: Sequence[Clip], config: SamplingConfig) -> list[str]:
    """The count stratum of each clip, by name."""
    strata = make_strata(config.bins)
    return [stratum_of(clip.count, strata).name for clip in clips]


class CountSampler(Sampler[Clip]):
    """Issues clips of the train split by Random Count Sampling.

    Args:
        clips: The clips, all of the train split; their order is part of what is reproducible.
        config: Strata, power and cropping.
        seed: Decides everything that is drawn.

    Attributes:
        strata: All strata, by rising counts.

    Raises:
        DataError: for no clips, a clip of another split, or two clips with one id.
    """

    def __init__(self, clips: Sequence[Clip], config: SamplingConfig, seed: int) -> None:
        bins = config.bins
        if config.num_quantiles is not None:
            bins = quantile_bins([clip.count for clip in clips], config.num_quantiles)
        self.strata = make_strata(bins)
        super().__init__(
            clips,
            config,
            seed,
            whole={s.name: _holding(s, clips) for s in self.strata},
            croppable={s.name: _croppable(s, clips, config) for s in self.strata},
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler that gave `state` was; see `Sampler`."""
        if (
            not self.config.zero_crops
            and state.get("fingerprint") != self.fingerprint
            and state.get("fingerprint") == self._fingerprint(zero_crops=True)
        ):
            raise ConfigError(
                "sampler state: the run that saved it also drew crops of count 0 out of gaps "
                "without marks; go on as it did with --set sampling.zero_crops=true"
            )
        super().load_state_dict(state)

    def _crop(self, clip: Clip, stratum: int, rng: np.random.Generator) -> Clip:
        return crop_clip(clip, self.strata[stratum], self.config, rng)

    @cached_property
    def fingerprint(self) -> str:
        """What the order depends on besides the seed."""
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


def _holding(stratum: Stratum, clips: Sequence[Clip]) -> list[int]:
    """Which clips have such a count."""
    return [i for i, clip in enumerate(clips) if stratum.holds(clip.count)]


def _croppable(stratum: Stratum, clips: Sequence[Clip], config: SamplingConfig) -> list[int]:
    """Which clips can be cropped to such a count."""
    if config.crop_probability == 0:
        return []
    return [i for i, clip in enumerate(clips) if can_crop(clip, stratum, config)]
