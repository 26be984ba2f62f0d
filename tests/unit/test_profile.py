"""Idle shares by hand, the verdict in words, and files that can be opened."""

import json
from pathlib import Path

import pytest

from actrep_ray.config import load_recipe
from actrep_ray.run.profile import Span, Timeline, analyse, chrome_trace, profiled, write_profile

# Two steps in turns: engines 4 s and 3 s, learner 2 s; then engine 0 once more.
TURNS = [
    Span("rollout", "engine 0", "generate", 100.0, 104.0),
    Span("rollout", "engine 1", "generate", 100.0, 103.0),
    Span("reward", "workers", "score", 104.0, 104.5),
    Span("learner", "ranks", "update", 104.5, 106.5),
    Span("rollout", "engine 0", "load weights", 106.5, 107.0),
    Span("rollout", "engine 0", "generate", 107.0, 110.0),
]


def test_shares_by_hand() -> None:
    profile = analyse(TURNS, max_staleness=None)
    assert profile.seconds == 10.0
    assert profile.busy == pytest.approx(
        {"rollout": (7.5 + 3) / 20, "reward": 0.05, "learner": 0.2}
    )
    assert profile.alone == pytest.approx({"rollout": 0.75, "reward": 0.05, "learner": 0.2})
    assert "the pools take turns; set train.max_staleness=1" in profile.verdict
    assert "1.3 times" in profile.verdict  # (0.75 + 0.05 + 0.2) / 0.75: somebody generates 7.5 s


def test_a_push_has_a_line_of_its_own_and_is_nobodys_work() -> None:
    push = [
        Span("weights", "sync", "export", 106.3, 106.5),
        Span("weights", "sync", "deliver", 106.5, 107.1),
    ]
    without, profile = (analyse(spans, max_staleness=None) for spans in (TURNS, [*TURNS, *push]))
    assert (profile.busy, profile.alone) == (without.busy, without.alone)
    assert profile.verdict == without.verdict
    assert without.pushing is None
    assert profile.pushing == pytest.approx(0.08)
    assert "weights  on their way to the engines  8.0%" in profile.lines()
    events = chrome_trace([*TURNS, *push])["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["rollout", "reward", "learner", "weights"]


def test_overlapping_spans_of_a_lane_count_once() -> None:
    spans = [
        Span("learner", "ranks", "update", 0.0, 6.0),
        Span("learner", "ranks", "export weights", 5.0, 8.0),
        Span("rollout", "engine 0", "generate", 0.0, 10.0),
    ]
    profile = analyse(spans, max_staleness=1)
    assert profile.busy == pytest.approx({"rollout": 1.0, "learner": 0.8})
    assert profile.alone == pytest.approx({"rollout": 0.2, "learner": 0.0})
    assert profile.verdict.startswith("bottleneck: rollout, at work 100% of the time")
    assert "rollout.num_workers" in profile.verdict


def test_a_busy_learner_is_named_with_its_settings() -> None:
    spans = [
        Span("learner", "ranks", "update", 0.0, 9.5),
        Span("rollout", "engine 0", "generate", 0.0, 4.0),
        Span("rollout", "engine 0", "generate", 9.0, 10.0),
    ]
    verdict = analyse(spans, max_staleness=2).verdict
    assert verdict.startswith("bottleneck: learner, at work 95%")
    assert "learner.num_workers" in verdict


def test_pools_that_wait_for_each_other_need_more_staleness() -> None:
    spans = [
        Span("learner", "ranks", "update", 0.0, 5.0),
        Span("rollout", "engine 0", "generate", 4.0, 10.0),
    ]
    assert "raise train.max_staleness above 1" in analyse(spans, max_staleness=1).verdict


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was observed"):
        analyse([], max_staleness=None)


def test_the_trace_has_a_row_for_each_worker_in_microseconds() -> None:
    events = chrome_trace(TURNS)["traceEvents"]
    update = next(event for event in events if event["name"] == "update")
    assert (update["ts"], update["dur"]) == (4.5e6, 2e6)
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["engine 0", "engine 1", "workers", "ranks"]
    assert len({event["tid"] for event in events if event["ph"] == "X"}) == 4


def test_files_of_a_run_that_was_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(None, [f"runs_dir={tmp_path}"])
    timeline = Timeline()
    timeline.add("driver", "main", "unseen", 0.0, 1.0)

    def work() -> None:
        with profiled(timeline, recipe), timeline.span("learner", "ranks", "update"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    folder = recipe.run_dir / "profile"
    assert [span.what for span in timeline.spans] == ["update"]
    assert "bottleneck" in (folder / "summary.txt").read_text()
    assert "bottleneck" in capsys.readouterr().out
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_profile(tmp_path, TURNS, max_staleness=None)
    assert (tmp_path / "gantt.png").read_bytes()[:4] == b"\x89PNG"
