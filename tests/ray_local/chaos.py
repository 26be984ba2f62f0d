"""A run of two workers of each kind whose workers are killed and stopped while videos break.

    python -m tests.ray_local.chaos FOLDER --seeds 0 1 2    for each: data, a run, what it came to

What is done, to whom and when is drawn from the seed; the run's own pace decides in which step each
fault falls. One engine is killed while weights are pushed and one rank while a checkpoint is saved.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from actrep_ray.config import Recipe, load_recipe, override
from actrep_ray.driver.strata import make_sampler
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.faults import read_faults
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_clips
from data_prep.files import read_jsonl
from data_prep.synthetic.dataset import write_dataset

KINDS = {"reward": "RewardWorker", "engine": "RolloutWorker", "rank": "_Rank"}
SIZE = 4  # prompts a step
RECIPE = """
stage: grpo
name: chaos
runs_dir: {folder}
device: cpu
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl, max_quarantined_share: 0.2}}
sampling: {{bins: [3]}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, num_workers: 2, num_cpus: 0.4, max_model_len: 512, max_response_tokens: 16,
          max_restarts: 200}}
reward: {{num_workers: 2, num_cpus: 0.1, max_restarts: 200,
         weights: {{"early_letters:early_letters": 1.0}}}}
learner: {{num_workers: 2, num_cpus: 0.4, max_restarts: 200, lr: 1.0e-3}}
train: {{num_steps: {steps}, prompts_per_step: 4, group_size: 4, max_staleness: {staleness},
        on_untrained: log}}
checkpoint: {{every: 1, keep: 2}}
run: {{silence_s: 5}}
"""


@dataclass(frozen=True)
class Fault:
    """What is done to a worker: `signal` once `step` is reached, the time of `delay_steps` steps
    has passed and, where it is named, `phase` has begun."""

    kind: str
    signal: signal.Signals
    step: int
    delay_steps: float
    phase: str = ""


@dataclass
class Chaos:
    """A run, its faults and its broken videos.

    Args:
        folder: Of data, model and run; made by `prepare`.
        seed: Of faults and of the choice of videos.
        num_steps: Of the run.
        num_faults: At least 3.
        staleness: `train.max_staleness`.
    """

    folder: Path
    seed: int
    num_steps: int = 40
    num_faults: int = 16
    staleness: str = "null"
    num_clips: int = 100
    done: list[tuple[Fault, int]] = field(default_factory=list)  # with the step that it fell in
    broken: list[str] = field(default_factory=list)  # rows

    @property
    def recipe(self) -> Recipe:
        """With paths of this folder."""
        return load_recipe(self.folder / "recipe.yaml")

    @property
    def run_dir(self) -> Path:
        return self.folder / "chaos"

    @property
    def notes(self) -> Path:
        return self.folder / "notes.jsonl"

    def prepare(self) -> None:
        """Write clips, an untrained model and the recipe."""
        sizes = {"train": self.num_clips}
        write_dataset(self.folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
        write_tiny_model(self.folder / "model")
        text = RECIPE.format(folder=self.folder, steps=self.num_steps, staleness=self.staleness)
        (self.folder / "recipe.yaml").write_text(text)

    def faults(self) -> list[Fault]:
        """Every kind alike, three kills to one stop, spread over the run's first nine tenths."""
        chance = random.Random(self.seed)
        kinds = [list(KINDS)[i % len(KINDS)] for i in range(self.num_faults - 2)]
        chance.shuffle(kinds)
        signals = [signal.SIGSTOP if i % 4 == 3 else signal.SIGKILL for i in range(len(kinds))]
        chance.shuffle(signals)
        aimed = [("engine", signal.SIGKILL, "push"), ("rank", signal.SIGKILL, "save")]
        drawn = [(kind, number, "") for kind, number in zip(kinds, signals, strict=True)]
        for one in aimed:
            drawn.insert(chance.randrange(len(drawn) + 1), one)
        pairs = -(-len(drawn) // 2)  # they come in twos, the second while the first is made good
        gap = 0.9 * self.num_steps / pairs
        return [
            Fault(kind, number, 1 + int(gap * (i // 2)), chance.uniform(0.1, 1.5), phase)
            for i, (kind, number, phase) in enumerate(drawn)
        ]

    def videos(self) -> list[tuple[str, str]]:
        """A twentieth of the clips, row and path, none drawn in the first third of the run.

        Each is drawn later: a deck of clips is dealt to its end before it is shuffled anew.
        """
        recipe = override(self.recipe, ["data.check_videos=false"])
        sampler = make_sampler(load_clips(recipe, "train"), recipe)
        steps = [sampler.take(SIZE) for _ in range(self.num_steps)]
        first = max(self.num_steps // 3, 3)
        early = {one.source_id for step in steps[:first] for one in step}
        late = {one.source_id: one.clip.file for step in steps[first:-2] for one in step}
        rest = sorted((row, path) for row, path in late.items() if row not in early)
        num = max(self.num_clips // 20, 1)
        return random.Random(self.seed).sample(rest, num)

    def train(self, limit_s: float) -> tuple[int, str]:
        """Exit code and output of the command, which meets all faults."""
        script, own = Path(__file__).with_name("noted_run.py"), Path(__file__).parents[1]
        command = [sys.executable, str(script), str(self.notes), "nobody", "train"]
        where = os.environ.get("PYTHONPATH", "")
        output = self.folder / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*command, str(self.folder / "recipe.yaml")],
                env=os.environ | {"PYTHONPATH": f"{own / 'own_rewards'}:{own.parent}:{where}"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threads = [
            threading.Thread(target=work, args=(process,)) for work in (self._strike, self._break)
        ]
        for thread in threads:
            thread.start()
        try:
            code = process.wait(timeout=limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for thread in threads:
                thread.join()
        return code, output.read_text()

    def step(self) -> int:
        """The last one that was written down."""
        path = self.run_dir / "metrics.jsonl"
        return max((row["step"] for row in read_metrics(path)), default=0) if path.is_file() else 0

    def _seconds_of_a_step(self) -> float:
        rows = read_metrics(self.run_dir / "metrics.jsonl")
        return float(median(row["time/step_s"] for row in rows))

    def _strike(self, process: "subprocess.Popen[bytes]") -> None:
        for fault in self.faults():
            while self.step() < fault.step:
                if process.poll() is not None:
                    return
                time.sleep(0.1)
            time.sleep(fault.delay_steps * self._seconds_of_a_step())
            phase = self.notes.with_suffix(".phase")
            while fault.phase and not (phase.is_file() and phase.read_text() == fault.phase):
                if process.poll() is not None:
                    return
                time.sleep(0.002)
            if not strike(process, fault):
                return
            self.done.append((fault, self.step()))

    def _break(self, process: "subprocess.Popen[bytes]") -> None:
        """Delete or cut one video after the other, from the first step on."""
        for number, (row, path) in enumerate(self.videos()):
            while self.step() < 1 + number % max(self.num_steps // 3 - 2, 1):
                if process.poll() is not None:
                    return
                time.sleep(0.05)
            if number % 2:
                Path(path).unlink()
            else:
                os.truncate(path, Path(path).stat().st_size // 2)
            self.broken.append(row)

    # ---------------------------------------------------------------- what it came to

    def rows(self) -> list[dict[str, Any]]:
        """Of the metrics, without the first."""
        return read_metrics(self.run_dir / "metrics.jsonl")[1:]

    def quarantined(self) -> set[str]:
        """Rows that the run could not use."""
        path = self.run_dir / "quarantine.jsonl"
        return {str(one.values["row"]) for one in read_jsonl(path, "rows")}

    def history(self) -> list[list[dict[str, Any]]]:
        """What the final weights were trained on, by step: of each the last time it was done."""
        calls = [json.loads(line) for line in self.notes.read_text().splitlines()]
        last = {call["step"]: call["rows"] for call in calls}
        return [last[step] for step in sorted(last)]

    def describe(self) -> dict[str, Any]:
        """Figures of the run."""
        rows = self.rows()
        rewards = [row["reward/mean"] for row in rows]
        tenth = max(len(rows) // 8, 1)
        faults = Counter(f"{fault.kind} {fault.signal.name}" for fault, _ in self.done)
        sums = read_faults(self.run_dir)
        return {
            "seed": self.seed,
            "staleness": self.staleness,
            "steps": len(rows),
            "faults": dict(sorted(faults.items())),
            "faults_in_all": len(self.done),
            "replaced": sums.lost.total(),
            "given_again": sums.given_again.total() - sums.given_again["learner"],
            "steps_again": sums.given_again["learner"],
            "lost_s": round(sum(sums.lost_s.values())),
            "broken": len(self.broken),
            "quarantined": len(self.quarantined()),
            "reward_first": round(sum(rewards[:tenth]) / tenth, 3),
            "reward_last": round(sum(rewards[-tenth:]) / tenth, 3),
        }


def workers(process: "subprocess.Popen[bytes]", name: str) -> Iterator[psutil.Process]:
    """The run's processes of a class of workers that run or are stopped."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith(f"ray::{name}"):
                    yield child


def strike(process: "subprocess.Popen[bytes]", fault: Fault) -> bool:
    """Send the signal to a worker of the kind, as soon as there is one; whether the run lives."""
    chance = random.Random(f"{fault}")
    while process.poll() is None:
        found = [
            one
            for one in workers(process, KINDS[fault.kind])
            if one.status() != psutil.STATUS_STOPPED
        ]
        if found:
            with contextlib.suppress(psutil.Error):
                chance.choice(found).send_signal(fault.signal)
                return True
        time.sleep(0.05)
    return False


def check(chaos: Chaos, code: int, told: str) -> None:
    """What holds of any run, whatever was done to it.

    Raises:
        AssertionError: if it does not.
    """
    assert code == 0, told[-6000:]
    assert len(chaos.done) == chaos.num_faults, "the run was over before all faults were done"
    rows, history = chaos.rows(), chaos.history()
    assert [row["step"] for row in rows] == list(range(1, chaos.num_steps + 1))
    # Conservation: what was issued was trained on, or dropped for a reason that was counted.
    # Of a video that an engine refused there is no group; of one that a rank could not read, one.
    for row, trained in zip(rows, history, strict=True):
        groups = sum(row.get(f"sampling/{stratum}", 0) for stratum in ("0-3", "4+"))
        reasons = [key for key in row if key.startswith("dropped/") and key != "dropped/groups"]
        assert row["dropped/groups"] == sum(row[key] for key in reasons)
        num_refused = len(trained) + row["dropped/groups"] - groups
        assert 0 <= num_refused <= row.get("dropped/unreadable_video", 0)
    assert sum(row.get("dropped/unreadable_video", 0) for row in rows) == len(chaos.broken)
    # Nothing is in the history of the final weights twice.
    ids = [one["id"] for step in history for one in step]
    assert len(ids) == len(set(ids))
    strata = ("trained/0-3", "trained/4+")
    assert sum(row.get(key, 0) for row in rows for key in strata) == len(ids)
    assert len(ids) >= 0.9 * SIZE * chaos.num_steps
    # What cannot be used is listed, and nothing else.
    assert chaos.quarantined() == set(chaos.broken) != set()
    # What was lost is counted: each fault, but for those that hit a worker as it was replaced.
    sums = read_faults(chaos.run_dir)
    assert all(sums.lost[role] for role in ("rollout", "reward", "learner"))
    assert f"{sums.lost.total()} workers were lost (" in told


COLUMNS = {
    "seed": "seed",
    "staleness": "`max_staleness`",
    "faults_in_all": "faults",
    "replaced": "workers replaced",
    "given_again": "prompts and groups given again",
    "steps_again": "steps done again",
    "lost_s": "a worker less for, s",
    "quarantined": "videos broken, quarantined",
    "reward_first": "reward, first eighth",
    "reward_last": "last eighth",
    "seconds": "seconds",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--faults", type=int, default=16)
    parser.add_argument(
        "--staleness", nargs="+", default=["null", "1"], help="in turn, a seed each"
    )
    parser.add_argument("--limit-s", type=float, default=1800.0)
    given = parser.parse_args()
    sys.stdout.write("| " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * len(COLUMNS) + "|\n")
    for number, seed in enumerate(given.seeds):
        folder = given.folder.resolve() / f"seed-{seed}"
        folder.mkdir(parents=True)
        staleness = given.staleness[number % len(given.staleness)]
        chaos = Chaos(folder, seed, given.steps, given.faults, staleness)
        chaos.prepare()
        began = time.monotonic()
        code, told = chaos.train(given.limit_s)
        check(chaos, code, told)
        figures = chaos.describe() | {"seconds": round(time.monotonic() - began)}
        (folder / "figures.json").write_text(json.dumps(figures))
        sys.stdout.write("| " + " | ".join(str(figures[key]) for key in COLUMNS) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
