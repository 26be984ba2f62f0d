"""Random Count Sampling: strata, balance, order, resume and crops."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from actrep_ray.config import ConfigError, SamplingConfig
from actrep_ray.driver.cropping import crop_clip
from actrep_ray.driver.sampling import CountSampler, quantile_bins
from data_prep.files import DataError
from data_prep.schema import Clip
from data_prep.strata import make_strata, stratum_of


def make_clip(
    name: str, count: int, *, split: str = "train", is_marked: bool = True, gap_s: float = 0.5
) -> Clip:
    """`count` cycles of 1 s, `gap_s` between them, 3 s before and after."""
    cycles = tuple((3 + i * (1 + gap_s), 4 + i * (1 + gap_s)) for i in range(count))
    return Clip(
        id=name,
        dataset="test",
        split=split,
        video=f"/videos/{name}.mp4",
        start_s=5.0,
        end_s=5.0 + (cycles[-1][1] if cycles else 3.0) + 3.0,
        video_fps=30.0,
        num_frames=10_000,
        width=64,
        height=64,
        action="squat",
        count=count,
        cycles=cycles if is_marked else None,
    )


def make_clips(counts: dict[int, int], *, is_marked: bool = True) -> list[Clip]:
    return [
        make_clip(f"c{count}-{i}", count, is_marked=is_marked)
        for count, num in counts.items()
        for i in range(num)
    ]


LONG_TAIL = {0: 4, 3: 240, 8: 175, 15: 154, 30: 150, 50: 40}


def test_names_of_strata() -> None:
    names = [s.name for s in make_strata((0, 5, 10, 20, 40))]
    assert names == ["0", "1-5", "6-10", "11-20", "21-40", "41+"]
    assert [s.name for s in make_strata((3, 4))] == ["0-3", "4", "5+"]


@given(st.lists(st.integers(0, 50), min_size=1, unique=True).map(sorted), st.integers(0, 200))
def test_a_count_lies_in_exactly_one_stratum(bins: list[int], count: int) -> None:
    strata = make_strata(bins)
    holding = [s for s in strata if s.holds(count)]
    assert holding == [stratum_of(count, strata)]


def test_quantile_bins_cut_into_equal_parts_and_never_split_a_count() -> None:
    assert quantile_bins([1, 2, 3, 4, 5, 6, 7, 8], 4) == (2, 4, 6)
    assert quantile_bins([3] * 10, 4) == ()
    assert [s.name for s in make_strata(quantile_bins([3] * 10, 4))] == ["0+"]
    sampler = CountSampler(
        make_clips({1: 2, 2: 2, 9: 2, 40: 2}), SamplingConfig(num_quantiles=2), seed=0
    )
    assert sampler.num_clips == {"0-2": 4, "3+": 4}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_draws_follow_the_weights(power: float) -> None:
    clips = make_clips(LONG_TAIL)
    sampler = CountSampler(clips, SamplingConfig(power=power), seed=7)
    sampler.take(10_000)
    frequencies = np.array(list(LONG_TAIL.values())) / len(clips)
    target = frequencies**power / (frequencies**power).sum()
    assert list(sampler.weights.values()) == pytest.approx(list(target))
    observed = list(sampler.histogram.values())
    assert sum(observed) == 10_000
    assert chisquare(observed, target * 10_000).pvalue > 0.001


def test_a_stratum_deals_each_clip_once_per_pass_and_changes_the_order() -> None:
    sampler = CountSampler(make_clips({3: 20, 8: 5}), SamplingConfig(), seed=1)
    passes = [[s.clip.id for s in sampler.take_from("1-5", 20)] for _ in range(3)]
    assert all(sorted(p) == sorted(f"c3-{i}" for i in range(20)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert sampler.histogram["1-5"] == 60


def test_empty_strata_are_left_out() -> None:
    sampler = CountSampler(make_clips({3: 2, 50: 2}), SamplingConfig(), seed=0)
    assert sampler.weights == {"1-5": 0.5, "41+": 0.5}
    assert {s.stratum for s in sampler.take(100)} == {"1-5", "41+"}
    with pytest.raises(ValueError, match=r"stratum '6-10' cannot be served, expected one of 1-5"):
        sampler.take_from("6-10", 1)


def test_refills_leave_the_order_of_other_strata_alone() -> None:
    clips = make_clips(LONG_TAIL)
    plain, refilled = (CountSampler(clips, SamplingConfig(), seed=3) for _ in range(2))
    refilled.take_from("0", 17)
    expected = [s for s in plain.take(200) if s.stratum != "0"]
    assert [s for s in refilled.take(200) if s.stratum != "0"] == expected


@given(
    seed=st.integers(0, 2**32),
    power=st.floats(0, 1),
    crop=st.sampled_from([0.0, 0.5]),
    before=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=6),
)
@settings(max_examples=40)
def test_equal_when_saved_and_resumed_at_any_step(
    seed: int, power: float, crop: float, before: list[tuple[bool, int]]
) -> None:
    clips = make_clips({0: 2, 3: 5, 8: 4, 50: 1})
    config = SamplingConfig(power=power, crop_probability=crop)
    sampler = CountSampler(clips, config, seed)
    for is_refill, num in before:
        if is_refill:
            sampler.take_from("1-5", num)
        else:
            sampler.take(num)
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = CountSampler(clips, config, seed)
    resumed.load_state_dict(state)
    assert resumed.take(25) == sampler.take(25)
    assert resumed.take_from("1-5", 5) == sampler.take_from("1-5", 5)
    assert resumed.histogram == sampler.histogram
    assert resumed.state_dict() == sampler.state_dict()


def test_the_saved_state_of_earlier_runs_goes_on_with_the_same_clips() -> None:
    """Checkpoints hold this; draws and crops are those that the first version gave."""
    config = SamplingConfig(crop_probability=0.5, zero_crops=True)
    sampler = CountSampler(make_clips({0: 2, 3: 5, 8: 4, 50: 2}), config, seed=11)
    state = {
        "version": 1,
        "seed": 11,
        "fingerprint": "2011d78b0393c375",
        "num_drawn": 9,
        "dealt": {
            "0": [2, 1, 1],
            "1-5": [3, 2, 1],
            "6-10": [3, 0, 3],
            "11-20": [1, 0, 1],
            "21-40": [2, 0, 2],
            "41+": [0, 0, 0],
        },
        "issued": {"0": 2, "1-5": 3, "6-10": 3, "11-20": 1, "21-40": 2, "41+": 0},
    }
    sampler.load_state_dict(state)
    assert sampler.state_dict() == state
    assert [sampled.clip.id for sampled in sampler.take(8)] == [
        "c3-1",
        "c50-1@32.622-78.396",
        "c50-1@5.855-74.984",
        "c50-0@31.456-56.503",
        "c0-1",
        "c50-0",
        "c0-0",
        "c50-0@22.377-43.072",
    ]


def test_one_by_one_is_the_same_as_all_at_once() -> None:
    clips = make_clips(LONG_TAIL)
    once, singly = (CountSampler(clips, SamplingConfig(), seed=5) for _ in range(2))
    assert once.take(64) == [singly.take(1)[0] for _ in range(64)]


def test_seeds_differ() -> None:
    clips = make_clips(LONG_TAIL)
    first, second = (CountSampler(clips, SamplingConfig(), seed=s).take(64) for s in (0, 1))
    assert first != second


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_are_refused(split: str) -> None:
    clips = [*make_clips({3: 2}), make_clip("held-out", 4, split=split)]
    with pytest.raises(ValueError, match=f"clip 'held-out' is of split '{split}': only train"):
        CountSampler(clips, SamplingConfig(), seed=0)


def test_no_clips_and_doubled_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="no clips of the train split"):
        CountSampler([], SamplingConfig(), seed=0)
    with pytest.raises(ValueError, match="'c3-0' was given twice"):
        CountSampler(make_clips({3: 1}) * 2, SamplingConfig(), seed=0)


@pytest.mark.parametrize(
    ("counts", "config", "seed", "key"),
    [
        ({3: 2}, SamplingConfig(), 1, "seed"),
        ({3: 3}, SamplingConfig(), 0, "fingerprint"),
        ({3: 2}, SamplingConfig(power=0.5), 0, "fingerprint"),
    ],
)
def test_a_state_of_another_run_is_refused(
    counts: dict[int, int], config: SamplingConfig, seed: int, key: str
) -> None:
    state = CountSampler(make_clips({3: 2}), SamplingConfig(), seed=0).state_dict()
    with pytest.raises(ValueError, match=f"sampler state: {key}="):
        CountSampler(make_clips(counts), config, seed).load_state_dict(state)


# --- crops


def check_crop(crop: Clip, source: Clip) -> None:
    """A crop's labels are those of the cycles inside it, and it cuts through none."""
    assert source.cycles is not None
    start, end = crop.start_s - source.start_s, crop.end_s - source.start_s
    assert -1e-9 <= start < end <= source.duration_s + 1e-9
    inside = [(a, b) for a, b in source.cycles if a >= start - 1e-6 and b <= end + 1e-6]
    outside = [(a, b) for a, b in source.cycles if b <= start + 1e-6 or a >= end - 1e-6]
    assert len(inside) + len(outside) == len(source.cycles)
    assert crop.count == len(inside)
    assert crop.cycles is not None
    np.testing.assert_allclose(
        np.array(crop.cycles).reshape(-1, 2), np.array(inside).reshape(-1, 2) - start, atol=1.1e-3
    )
    assert all(0 <= a < b <= crop.duration_s + 1e-9 for a, b in crop.cycles)


@given(
    count=st.integers(0, 60),
    gap_s=st.sampled_from([0.0, 0.5, 3.0]),
    stratum=st.sampled_from(make_strata((0, 5, 10, 20, 40))),
    seed=st.integers(0, 1000),
    zero_crops=st.booleans(),
)
@settings(max_examples=150)
def test_a_crop_holds_its_count_of_whole_cycles(
    count: int, gap_s: float, stratum: object, seed: int, zero_crops: bool
) -> None:
    clip = make_clip("long", count, gap_s=gap_s)
    config = SamplingConfig(
        crop_probability=1.0, crop_lead_s=1.5, crop_min_s=2.0, zero_crops=zero_crops
    )
    rng = np.random.default_rng(seed)
    try:
        crop = crop_clip(clip, stratum, config, rng)  # type: ignore[arg-type]
    except ValueError:
        is_zero = stratum.high == 0 and not zero_crops  # type: ignore[attr-defined]
        assert count <= stratum.low or not count or is_zero  # type: ignore[attr-defined]
        return
    assert crop.count or not count or zero_crops
    check_crop(crop, clip)
    assert stratum.holds(crop.count)  # type: ignore[attr-defined]
    assert crop.duration_s >= config.crop_min_s - 1e-9
    if crop.cycles:
        assert crop.cycles[0][0] <= config.crop_lead_s + 2e-3
        assert crop.duration_s - crop.cycles[-1][1] <= config.crop_lead_s + 2e-3


def test_crops_cover_every_count_of_the_stratum_and_all_places() -> None:
    clip = make_clip("long", 12)
    config = SamplingConfig(crop_probability=1.0)
    rng = np.random.default_rng(0)
    crops = [crop_clip(clip, make_strata((0, 5))[1], config, rng) for _ in range(400)]
    counts = Counter(crop.count for crop in crops)
    assert set(counts) == {1, 2, 3, 4, 5}
    assert min(counts.values()) > 50
    assert len({round((c.start_s - clip.start_s) / 1.5) for c in crops}) > 8


@pytest.mark.lengthy
def test_crops_serve_strata_that_no_clip_lies_in_and_count_zero() -> None:
    clips = make_clips({50: 10})
    config = SamplingConfig(crop_probability=0.5, zero_crops=True)
    sampler = CountSampler(clips, config, seed=2)
    assert set(sampler.weights) == {"0", "1-5", "6-10", "11-20", "21-40", "41+"}
    by_id = {clip.id: clip for clip in clips}
    sampled = sampler.take(3_000)
    for s in sampled:
        if s.is_crop:
            check_crop(s.clip, by_id[s.source_id])
        assert stratum_of(s.clip.count, sampler.strata).name == s.stratum
    assert chisquare(list(sampler.histogram.values())).pvalue > 0.001
    top = [s.is_crop for s in sampled if s.stratum == "41+"]
    assert 0.4 < np.mean(top) < 0.6
    assert all(s.is_crop for s in sampled if s.stratum != "41+")


def test_gaps_without_marks_are_no_zero_unless_asked_for() -> None:
    config = SamplingConfig(crop_probability=0.9)
    sampler = CountSampler(make_clips({50: 10}), config, seed=2)
    assert "0" not in sampler.weights
    assert all(s.clip.count for s in sampler.take(500))
    wide = SamplingConfig(crop_probability=1.0, bins=(5,))  # a stratum that begins with 0
    drawn = CountSampler(make_clips({50: 10}), wide, seed=2).take_from("0-5", 200)
    assert {s.clip.count for s in drawn} == {1, 2, 3, 4, 5}


def test_clips_that_have_no_repetition_serve_the_stratum_of_zero() -> None:
    sampler = CountSampler(make_clips({0: 3, 50: 10}), SamplingConfig(crop_probability=0.5), seed=2)
    drawn = sampler.take_from("0", 200)
    assert {s.source_id for s in drawn} == {"c0-0", "c0-1", "c0-2"}
    assert {s.clip.count for s in drawn} == {0}


def test_a_state_from_before_zero_crops_goes_on_or_says_how() -> None:
    clips = make_clips({3: 5, 50: 2})
    as_then = CountSampler(clips, SamplingConfig(crop_probability=0.5, zero_crops=True), seed=0)
    now = CountSampler(clips, SamplingConfig(crop_probability=0.5), seed=0)
    with pytest.raises(ConfigError, match=r"go on as it did with --set sampling\.zero_crops=true"):
        now.load_state_dict(as_then.state_dict())
    with pytest.raises(ConfigError, match="sampler state: fingerprint="):
        as_then.load_state_dict(now.state_dict())
    # Without crops the setting decides nothing.
    whole = CountSampler(clips, SamplingConfig(zero_crops=True), seed=0)
    CountSampler(clips, SamplingConfig(), seed=0).load_state_dict(whole.state_dict())


def test_clips_without_usable_marks_are_never_cropped() -> None:
    unmarked = make_clips({50: 3}, is_marked=False)
    sampler = CountSampler(unmarked, SamplingConfig(crop_probability=1.0), seed=0)
    assert sampler.weights == {"41+": 1.0}
    assert not any(s.is_crop for s in sampler.take(50))


def test_the_largest_count_of_a_crop_is_kept() -> None:
    config = SamplingConfig(crop_probability=1.0, crop_max_count=8)
    sampler = CountSampler(make_clips({50: 4}), config, seed=0)
    assert max(s.clip.count for s in sampler.take(300) if s.is_crop) == 8
    assert "21-40" not in sampler.weights


def test_touching_cycles_are_cut_exactly_between_them() -> None:
    clip = make_clip("tight", 30, gap_s=0.0)
    config = SamplingConfig(crop_probability=1.0)
    crop = crop_clip(clip, make_strata((0, 5, 10))[2], config, np.random.default_rng(4))
    check_crop(crop, clip)
    assert crop.cycles is not None
    assert all(b == pytest.approx(c) for (_, b), (c, _) in pairwise(crop.cycles))


# --- clips that are not drawn any more


def test_an_excluded_clip_is_never_drawn_and_the_others_keep_their_order() -> None:
    clips = make_clips({3: 4, 8: 3})
    whole, without = (CountSampler(clips, SamplingConfig(), seed=0) for _ in range(2))
    gone = clips[1].id
    without.exclude(gone)
    expected = [one.clip.id for one in whole.take_from("1-5", 12) if one.clip.id != gone]
    found = [one.clip.id for one in without.take_from("1-5", 9)]
    assert found == expected  # three passes of four clips, one of them left out
    assert [one.clip.id for one in without.take_from("6-10", 6)] == [
        one.clip.id for one in whole.take_from("6-10", 6)
    ]


def test_excluding_goes_on_after_a_resume_as_it_was() -> None:
    clips = make_clips(LONG_TAIL)
    sampler, resumed = (CountSampler(clips, SamplingConfig(), seed=0) for _ in range(2))
    first = sampler.take(40)
    gone = [one.source_id for one in first[::7]]
    for name in gone:
        sampler.exclude(name)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    for name in gone:
        resumed.exclude(name)
    ahead = [one.clip.id for one in sampler.peek(50)]
    assert [one.clip.id for one in resumed.take(50)] == ahead
    assert [one.clip.id for one in sampler.take(50)] == ahead
    assert not set(gone) & {one.source_id for one in sampler.take(2000)}


def test_a_stratum_without_clips_leaves_its_share_to_the_others() -> None:
    clips = make_clips({3: 1, 8: 3})
    sampler = CountSampler(clips, SamplingConfig(), seed=0)
    sampler.exclude(clips[0].id)
    assert {one.stratum for one in sampler.take(50)} == {"6-10"}
    assert {one.stratum for one in sampler.take_from("1-5", 5)} == {"6-10"}
    for clip in clips:
        sampler.exclude(clip.id)
    with pytest.raises(DataError, match="every clip of train is in quarantine"):
        sampler.take(1)


def test_no_crop_is_cut_out_of_an_excluded_clip() -> None:
    clips = make_clips({8: 2, 30: 2})
    config = SamplingConfig(crop_probability=0.5)
    sampler = CountSampler(clips, config, seed=0)
    sampler.exclude(clips[2].id)
    drawn = sampler.take(400)
    assert clips[2].id not in {one.source_id for one in drawn}
    assert any(one.is_crop and one.source_id == clips[3].id for one in drawn)
