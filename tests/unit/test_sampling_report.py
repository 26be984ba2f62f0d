"""`actrep prepare rcs-report` and `rcs-export`: counts before and after; draws as a file."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import SamplingConfig
from actrep_ray.driver.sampling import CountSampler
from actrep_ray.driver.sampling_report import export_clips, rcs_report
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.shown import ShownImage


def make_clip(name: str, count: int, split: str = "train") -> Clip:
    """`count` cycles of 1 s with 1 s before, between and after them."""
    cycles = tuple((1.0 + 2 * i, 2.0 + 2 * i) for i in range(count))
    return Clip(
        id=name,
        dataset="test",
        split=split,
        video=f"videos/{name}.mp4",
        start_s=2.0,
        end_s=4.0 + 2 * count,
        video_fps=10.0,
        num_frames=1000,
        width=64,
        height=64,
        action="squat",
        count=count,
        cycles=cycles,
    )


CLIPS = [make_clip(f"c{count}-{i}", count) for count, num in ((3, 6), (8, 2)) for i in range(num)]


def test_strata_before_and_after_by_hand() -> None:
    report = rcs_report(CLIPS, SamplingConfig(bins=(0, 5)), seed=1, num_draws=1000)
    zero, low, high = report.rows
    assert (zero.num_clips, zero.num_draws, zero.draws_per_source) == (0, 0, 0.0)
    assert (low.name, low.num_clips, low.num_sources, low.num_crops) == ("1-5", 6, 6, 0)
    assert (high.name, high.num_clips, high.num_sources, high.num_crops) == ("6+", 2, 2, 0)
    assert low.num_draws + high.num_draws == 1000
    assert high.draws_per_source == high.num_draws / 2
    assert abs(low.num_draws - 500) < 80  # uniform: five standard deviations
    assert report.before == {3: 6, 8: 2}
    assert report.after == {3: low.num_draws, 8: high.num_draws}
    assert "mean count 4.2 ->" in report.text()  # (6 * 3 + 2 * 8) / 8 = 4.25
    assert "nothing serves 0" in report.text()


def test_crops_are_counted_and_fill_empty_strata() -> None:
    config = SamplingConfig(bins=(0, 2, 5), crop_probability=1.0, crop_min_s=0.5, zero_crops=True)
    report = rcs_report(CLIPS, config, seed=1, num_draws=600)
    by_name = {row.name: row for row in report.rows}
    assert by_name["0"].num_crops == by_name["0"].num_draws > 0
    assert by_name["1-2"].num_crops == by_name["1-2"].num_draws > 0
    assert by_name["1-2"].num_clips == 0
    assert by_name["1-2"].num_sources == 8
    assert set(report.after) == set(range(8))  # 8 itself is always cropped to less


def test_the_report_says_how_many_gaps_are_called_zero() -> None:
    settings = {"bins": (0, 2, 5), "crop_probability": 1.0, "crop_min_s": 0.5}
    off = rcs_report(CLIPS, SamplingConfig(**settings), seed=1, num_draws=600)
    on = rcs_report(CLIPS, SamplingConfig(**settings, zero_crops=True), seed=1, num_draws=600)
    assert (off.num_zero_crops, off.after[0]) == (0, 0)
    assert off.num_zero_crops_if_on == on.num_zero_crops == on.num_zero_crops_if_on == on.after[0]
    share = f"{on.after[0]} draws ({on.after[0] / 600:.1%})"
    assert f"without marks: {share}" in on.text()
    assert f"without marks: none; with sampling.zero_crops they would be {share}" in off.text()
    still = [*CLIPS, make_clip("still", 0)]  # looked at as a whole, and not counted here
    report = rcs_report(still, SamplingConfig(crop_probability=0.5), seed=1, num_draws=600)
    assert report.after[0] > 0
    assert report.num_zero_crops == 0
    plain = rcs_report(CLIPS, SamplingConfig(), seed=1, num_draws=60)
    assert "without marks" not in plain.text()


def test_an_export_is_what_the_driver_would_issue(tmp_path: Path) -> None:
    config = SamplingConfig(crop_probability=0.5, crop_min_s=0.5)
    exported = export_clips(CLIPS, config, seed=7, num=60, folder=tmp_path)
    drawn = [sampled.clip for sampled in CountSampler(CLIPS, config, seed=7).take(60)]
    assert [clip.id.partition("#")[0] for clip in exported] == [clip.id for clip in drawn]
    assert [clip.cycles for clip in exported] == [clip.cycles for clip in drawn]
    assert len({clip.id for clip in exported}) == 60
    again = max(Counter(clip.id for clip in drawn).values())
    assert any(clip.id.endswith(f"#{again}") for clip in exported)
    assert export_clips(CLIPS, config, seed=7, num=60, folder=tmp_path) == exported
    assert export_clips(CLIPS, config, seed=8, num=60, folder=tmp_path) != exported


def test_commands_write_a_picture_and_a_file_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "clips.jsonl"
    held_out = [make_clip("v", 4, "validation"), make_clip("t", 4, "test")]
    ready = ShownImage("images/ready.png", 64, 64)
    write_clips(data, [replace(clip, images=(ready,)) for clip in [*CLIPS, *held_out]])
    crops = ["--set", "sampling.crop_probability=0.5"]
    assert main(["prepare", "rcs-report", str(data), "--draws", "500", *crops]) == 0
    assert (tmp_path / "rcs-report.png").read_bytes().startswith(b"\x89PNG")
    assert "draws per source" in capsys.readouterr().out
    out = tmp_path / "balanced.jsonl"
    arguments = ["prepare", "rcs-export", str(data), "--num", "40", "--out", str(out), *crops]
    assert main([*arguments, "--with-validation"]) == 0
    assert "40 draws from 8 clips of train" in capsys.readouterr().out
    clips = list(read_clips(out))
    assert Counter(clip.split for clip in clips) == {"train": 40, "validation": 1}
    assert {Path(clip.video).parent for clip in clips} == {tmp_path / "videos"}
    lines = out.read_text().splitlines()
    assert all('"video": "videos/' in line and '"images/ready.png"' in line for line in lines)
    for clip in clips:
        assert len(clip.cycles or ()) == clip.count
    assert main(["prepare", "rcs-report", str(data), "--draws", "0"]) == 2
    assert "0 draws, expected at least 1" in capsys.readouterr().err
