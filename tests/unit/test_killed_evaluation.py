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

from actrep_ray.config import ConfigError, Recipe, override
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

    def submit(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: Callable[[RolloutGroup], None],
    ) -> None:
        self.waiting = list(prompts)
        self.settings, self.on_group = settings, on_group

    def wait(self, is_done: Callable[[], Any], what: Callable[[], str]) -> None:
        while not is_done():
            for group in self.engine.generate([self.waiting.pop(0)], self.settings):
                self.num_answered += 1
                self.on_group(group)


@contextmanager
def one_engine(job: EvaluationJob) -> Iterator[OneEngine]:
    cfg = job.recipe
    yield OneEngine(HfEngine(job.model, cfg.rollout, cfg.video, device="cpu", seed=0))


def job_of(data: Path, model: Path, out: Path, *settings: str) -> EvaluationJob:
    recipe = override(
        Recipe(),
        [f"data.path={json.dumps(str(data))}", f"model.path={json.dumps(str(model))}",
         f"video.cache_dir={json.dumps(str(data.parent / 'frames'))}", "video.fps=2",
         "device=cpu", "rollout.engine=hf", "rollout.max_response_tokens=16",
         "eval.num_bootstrap=50", *settings],
    )  # fmt: skip
    return prepare_evaluation(recipe, model, split="test", out_dir=out)


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


def test_killed_none_is_answered_twice_and_none_is_missing(
    data: Path, model: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = job_of(data, model, whole).run(one_engine)
    journal = cut / "answered.jsonl"
    command = [sys.executable, __file__, str(data), str(model), str(cut)]
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

    with pytest.raises(ConfigError, match="begun with another one of: settings;"):
        job_of(data, model, cut, "video.fps=3").run(one_engine)

    used: list[OneEngine] = []

    @contextmanager
    def noted(job: EvaluationJob) -> Iterator[OneEngine]:
        with one_engine(job) as engine:
            used.append(engine)
            yield engine

    assert job_of(data, model, cut).run(noted) == expected
    assert [engine.num_answered for engine in used] == [NUM_CLIPS - num_before]
    found = rows_of(cut / "predictions.jsonl")
    assert found == rows_of(whole / "predictions.jsonl")
    assert len({json.loads(row)["clip_id"] for row in found}) == len(found) == NUM_CLIPS
    assert not journal.exists()
    # Once more: nothing is left to be answered.
    assert job_of(data, model, cut).run(noted) == expected
    assert len(used) == 1


if __name__ == "__main__":
    rows, folder, target = map(Path, sys.argv[1:])
    job_of(rows, folder, target).run(one_engine)
