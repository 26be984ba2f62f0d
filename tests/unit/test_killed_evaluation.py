"""An evaluation that is killed goes on: no clip is answered twice, and none is missing."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, Recipe, override
from actrep_ray.evaluation import jobs
from actrep_ray.evaluation.jobs import EvaluationJob, prepare_evaluation
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import Engine, SamplingSettings
from actrep_ray.rollout.hf_engine import HfEngine
from data_prep.synthetic.dataset import write_dataset

pytestmark = pytest.mark.slow

NUM_CLIPS = 12


class OneEngine:
    """An engine in this process, asked as a pool is: what is added is computed while one waits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_answered = 0
        self.waiting: list[tuple[Prompt, SamplingSettings, Callable[[RolloutGroup], None]]] = []

    def submit(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: Callable[[RolloutGroup], None],
    ) -> None:
        self.waiting += [(prompt, settings, on_group) for prompt in prompts]

    def wait(self, is_done: Callable[[], Any], what: Callable[[], str]) -> None:
        while not is_done():
            prompt, settings, on_group = self.waiting.pop(0)
            for group in self.engine.generate([prompt], settings):
                self.num_answered += 1
                on_group(group)


@contextmanager
def one_engine(job: EvaluationJob) -> Iterator[OneEngine]:
    cfg = job.recipe
    yield OneEngine(HfEngine(job.model, cfg.rollout, cfg.video, device="cpu", seed=0))


def job_of(
    data: Path, model: Path, out: Path, *settings: str, num_samples: int = 0
) -> EvaluationJob:
    recipe = override(
        Recipe(),
        [f"data.path={json.dumps(str(data))}", f"model.path={json.dumps(str(model))}",
         f"video.cache_dir={json.dumps(str(data.parent / 'frames'))}", "video.fps=2",
         "device=cpu", "rollout.engine=hf", "rollout.max_response_tokens=16",
         "eval.num_bootstrap=50", *settings],
    )  # fmt: skip
    return prepare_evaluation(recipe, model, split="test", out_dir=out, num_samples=num_samples)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"train": 1, "validation": 1, "test": NUM_CLIPS}
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, level="easy", num_clips=sizes, seed=0, num_processes=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def rows_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.parametrize("num_samples", [0, 3])
def test_killed_none_is_answered_twice_and_none_is_missing(
    data: Path, model: Path, tmp_path: Path, num_samples: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = job_of(data, model, whole, num_samples=num_samples).run(one_engine)
    journal = cut / "answered.jsonl"
    command = [sys.executable, __file__, str(data), str(model), str(cut), str(num_samples)]
    process = subprocess.Popen(command)
    ends = time.monotonic() + 300
    while len(rows_of(journal)) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < ends
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    with journal.open("a") as file:  # what a process that is killed while it writes leaves
        file.write('{"clip_id": "cut o')
    num_before = len(rows_of(journal)) - 1
    assert 3 <= num_before < NUM_CLIPS

    with pytest.raises(ConfigError, match=r"another one of: video.fps \(2.0 -> 3.0\);"):
        job_of(data, model, cut, "video.fps=3", num_samples=num_samples).run(one_engine)
    with pytest.raises(ConfigError, match="begun with another one of: samples;"):
        job_of(data, model, cut, num_samples=0 if num_samples else 2).run(one_engine)

    used: list[OneEngine] = []

    @contextmanager
    def noted(job: EvaluationJob) -> Iterator[OneEngine]:
        with one_engine(job) as engine:
            used.append(engine)
            yield engine

    # Other engines and other shares of memory give the same answers.
    engines = ("rollout.num_workers=3", "rollout.kv_cache_gib=0.5", "rollout.max_num_seqs=7")
    job = job_of(data, model, cut, *engines, num_samples=num_samples)
    assert job.run(noted) == expected
    groups_of_clip = 2 if num_samples else 1
    assert [one.num_answered for one in used] == [groups_of_clip * (NUM_CLIPS - num_before)]
    found = rows_of(cut / "predictions.jsonl")
    assert found == rows_of(whole / "predictions.jsonl")
    rows = [json.loads(row) for row in found]
    assert len({row["clip_id"] for row in rows}) == len(rows) == NUM_CLIPS
    assert [len(row.get("samples", ())) for row in rows] == [num_samples] * NUM_CLIPS
    assert not journal.exists()
    # Once more: nothing is left to be answered.
    assert job.run(noted) == expected
    assert len(used) == 1


def test_every_checkpoint_is_in_the_metrics_with_what_its_samples_come_to(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, whose engines run in this process."""
    monkeypatch.setattr(jobs, "rollout_workers", one_engine)
    other, out = write_tiny_model(tmp_path / "other", seed=5), tmp_path / "out"
    words = ["evaluate", "--checkpoint", str(other), str(model), "--data", str(data)]
    words += ["--out", str(out), "--no-baseline", "--samples", "3", "--temperature", "0.5"]
    for setting in (
        *("video.fps=2", "device=cpu", "rollout.engine=hf", "rollout.max_response_tokens=16"),
        *("eval.num_bootstrap=50", f"video.cache_dir={json.dumps(str(tmp_path / 'frames'))}"),
    ):
        words += ["--set", setting]
    assert main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    sampled = ["{}", "{}, majority of 3", "{}, median of 3"]
    named = [name.format(of.name) for of in (model, other) for name in sampled]
    assert sorted(name for name in metrics["predictors"] if "constant" not in name) == sorted(named)
    last = metrics["predictors"][model.name]
    assert {key: metrics[key] for key in last} == last  # as of one alone
    assert last["samples"] == {"num": 3, "temperature": 0.5, "top_p": 1.0}
    assert list(last["pass_at"]) == ["1", "2", "3"]
    rows = list(map(json.loads, rows_of(out / f"predictions-{model.name}.jsonl")))
    assert {len(row["samples"]) for row in rows} == {3}
    drawn = [sample["text"] for row in rows for sample in row["samples"]]
    assert len(set(drawn)) > len(drawn) // 2  # and not one answer three times
    assert main([*words, "--resume"]) == 0
    assert json.loads((out / "metrics.json").read_text()) == metrics


if __name__ == "__main__":
    given, folder, target = map(Path, sys.argv[1:4])
    job_of(given, folder, target, num_samples=int(sys.argv[4])).run(one_engine)
