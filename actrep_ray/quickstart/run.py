"""From nothing to a small Qwen3-VL that counts: the whole system once, on real files.

Two sets of clips, as users have them: some whose repetitions are marked (level `easy`, and a few
of level `long`), from which reasoning is learned by SFT, and others of which no more than the count
is known, from which GRPO learns: most of a harder kind (`medium`), a quarter of the marked kind.
Held-out clips of both kinds keep their marks, to judge lists by.

    data ─► base model ─► SFT ───────────────► evaluation ─► GRPO ─► evaluation ─► report
     │              └──► engine starts, counts ──▲ weights ───▲ weights each step       ▲
     │                   untrained (background)                                         │
     └─► periodicity detector (a process of its own, beside the trainings) ─────────────┘

One engine is started and given new weights after each training: a start costs more than a push.
A milestone that was finished with the same settings, data and weights is not done again.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.session import cluster
from actrep_ray.config import (
    ConfigError,
    Recipe,
    load_recipe,
    override,
    recipes_folder,
    write_resolved,
)
from actrep_ray.driver.job import GrpoJob, prepare_grpo
from actrep_ray.driver.pools import Pools
from actrep_ray.evaluation.periodicity import begin_baselines, write_baseline
from actrep_ray.evaluation.predictors import evaluate
from actrep_ray.evaluation.report import Report, print_main, write_report
from actrep_ray.evaluation.run_results import DETECTOR as BASELINE
from actrep_ray.evaluation.run_results import read_run
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder, write_base_model
from actrep_ray.quickstart.data import COUNTED, KEPT, LEVELS, MARKED, SEED, write_data
from actrep_ray.quickstart.milestones import Milestones
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.console import as_text, console
from actrep_ray.run.folder import remove_others
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.metrics import write_curves
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.run.program import program
from actrep_ray.run.provenance import file_hash, provenance
from actrep_ray.run.record import RECORD
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.sft import prepare_sft
from actrep_ray.tasks.loading import load_clips, load_task
from actrep_ray.weights.sync import WeightSync
from data_prep.files import write_lines
from data_prep.rows import clips_among

_KEY = "quickstart-key"  # file in a run's folder that tells which run it is
BASE = "base"  # folder of the shipped base model inside the run folder

# The settings on which an evaluation depends, besides weights and data.
_EVAL_SECTIONS = ("data", "video", "rollout", "eval")


@dataclass(frozen=True)
class Edition:
    """What a quickstart runs on.

    Attributes:
        sft: Recipe of the first half, a file in `recipes/`.
        grpo: Recipe of the second half.
        num_clips: Clips that are rendered, by data set and split.
    """

    sft: str
    grpo: str
    num_clips: dict[str, dict[str, int]]


QUICK = Edition(
    "quickstart_sft.yaml",
    "quickstart_grpo.yaml",
    {
        MARKED: {"train": 2400, "validation": 64, "test": 240},
        COUNTED: {"train": 1600, "validation": 64, "test": 400},
    },
)
FULL = Edition(
    "tiny_sft.yaml",
    "tiny_grpo.yaml",
    {
        MARKED: {"train": 6000, "validation": 64, "test": 400},
        COUNTED: {"train": 6000, "validation": 64, "test": 400},
    },
)


def run_quickstart(*, edition: Edition = QUICK, fresh: bool, overrides: Sequence[str] = ()) -> Path:
    """Run what is not there yet; returns the path of `summary.json`.

    Args:
        edition: `QUICK`, or `FULL` for the long recipes of the small model.
        fresh: Start over: remove the run folder first.
        overrides: `key=value` settings on top of both recipes.

    Raises:
        ValueError: for settings that cannot be used.
    """
    recipes = recipes_folder()
    sft = load_recipe(recipes / edition.sft, overrides)
    grpo = load_recipe(recipes / edition.grpo, overrides)
    grpo = override(grpo, [f"model.path={json.dumps(str(sft.run_dir))}"])
    if not any(text.startswith("model.path=") for text in overrides):
        sft = override(sft, [f"model.path={json.dumps(str(Path(sft.runs_dir) / BASE))}"])
    if sft.runs_dir != grpo.runs_dir or sft.data.path != grpo.data.path:
        raise ConfigError(f"{edition.sft} and {edition.grpo} disagree on runs_dir or data.path")
    folder = Path(sft.runs_dir)
    with FolderLock.acquire(folder, "actrep quickstart") as lock:
        if fresh:
            remove_others(folder, lock.path)
        return Quickstart(sft, grpo, folder, edition).run()


class Quickstart:
    """One quickstart in one folder.

    Args:
        sft: Recipe of the first half.
        grpo: Recipe of the second half.
        folder: Where everything is written.
        edition: What the recipes are of, and the clips that are rendered.
    """

    def __init__(self, sft: Recipe, grpo: Recipe, folder: Path, edition: Edition) -> None:
        self.sft = sft
        self.grpo = grpo
        self.folder = folder
        self.edition = edition
        self.has_detector_beside = False
        self.console = console()
        self.milestones = Milestones(folder / "milestones.json", self.console)

    def run(self) -> Path:
        """All milestones that are not done yet, then the report."""
        self.prepare()
        self.keys = self.find_keys()
        self.inputs = QwenVLInputs(resolve_model(self.sft.model.path))
        self.clips = {
            recipe.stage: clips_among(
                load_clips(recipe, recipe.eval.split, limit=recipe.eval.num_clips)
            )
            for recipe in (self.sft, self.grpo)
        }
        if any(self.is_needed(name) for name in self.keys if name != BASELINE):
            detector = self.begin_detector() if self.is_needed(BASELINE) else None
            with cluster(self.sft, self.grpo):
                self.train()
            if detector is not None:
                detector.result()
        if self.is_needed(BASELINE):
            with self.milestones.doing(BASELINE, self.keys[BASELINE]):
                for stage, clips in self.clips.items():
                    write_baseline(clips, self.folder_of(stage), load_task(self.grpo.task))
        return self.report()

    def begin_detector(self) -> Future[None]:
        """Let the periodicity detector count beside the trainings, which leave a core idle."""
        clips = {self.folder_of(stage): clips for stage, clips in self.clips.items()}
        process = begin_baselines(clips, load_task(self.grpo.task))
        self.has_detector_beside = True

        def wait() -> None:
            with self.milestones.doing(BASELINE, self.keys[BASELINE]):
                process.join()
                if process.exitcode:  # what it said stands on the screen
                    raise RuntimeError(f"{BASELINE}: its process ended with {process.exitcode}")

        return in_background(wait, BASELINE)

    def prepare(self) -> None:
        """Render the videos and write the base model, where they are not there."""
        data, model = Path(self.sft.data.path), Path(self.sft.model.path)
        key = hash_of(LEVELS, KEPT, self.edition.num_clips, SEED)
        if not (self.milestones.is_done("data", key) and data.is_file()):
            is_ours = self.milestones.is_known("data")
            with self.milestones.doing("data", key):
                write_data(data, self.edition.num_clips, overwrite=is_ours)
        if model == self.folder / BASE:
            key = file_hash(base_model_folder() / "model.safetensors")
            if not (self.milestones.is_done("model", key) and model.is_dir()):
                with self.milestones.doing("model", key):
                    write_base_model(model, overwrite=True)

    def find_keys(self) -> dict[str, str]:
        """What each milestone depends on, as a hash: settings, data, weights, what came before."""
        data, model = file_hash(Path(self.sft.data.path)), resolve_model(self.sft.model.path)
        base = hash_of(data, file_hash(model / "model.safetensors"))
        shown = hash_of(*(self.grpo.model_dump_json(include={name}) for name in _EVAL_SECTIONS))
        sft = hash_of(base, self.sft.model_dump_json())
        grpo = hash_of(sft, self.grpo.model_dump_json())
        return {
            BASELINE: hash_of(data, shown),
            "untrained": hash_of(base, shown),
            "sft": sft,
            "sft evaluation": hash_of(sft, shown),
            "grpo": grpo,
            "grpo evaluation": hash_of(grpo, shown),
        }

    def train(self) -> None:
        """Both trainings and all evaluations that are not done yet, in a running cluster."""
        base = resolve_model(self.sft.model.path)
        engine = SharedEngine(self.grpo)
        untrained = in_background(partial(self.begin_engine, engine, base))
        sft_learners = self.train_sft() if self.is_needed("sft") else None
        untrained.result()
        sft = resolve_model(self.sft.run_dir)
        grpo_learners = None
        if self.is_needed("grpo"):
            resume = is_resumable(self.grpo.run_dir, self.keys["grpo"])
            job = prepare_grpo(self.grpo, resume=resume, overwrite=not resume)
            write_lines(self.grpo.run_dir / _KEY, [self.keys["grpo"]])
            start_learners = partial(
                LearnerPool.start,
                self.grpo,
                job.model,
                self.grpo.train.num_steps,
                base=job.base,
            )
            grpo_learners = in_background(start_learners)
        self.evaluate("sft evaluation", engine, sft, sft_learners)
        if sft_learners is not None:
            sft_learners.shutdown()
        if grpo_learners is not None:
            self.train_grpo(job, engine, grpo_learners.result())
        learners = grpo_learners.result() if grpo_learners else None
        self.evaluate("grpo evaluation", engine, resolve_model(self.grpo.run_dir), learners)

    def begin_engine(self, engine: "SharedEngine", base: Path) -> None:
        """While SFT runs: start the engine and count with the untrained model."""
        if self.is_needed("untrained") or self.is_needed("sft"):
            engine.hold(base, None)
        self.evaluate("untrained", engine, base, None)

    def train_sft(self) -> LearnerPool:
        """Supervised fine-tuning; returns the learners, which hold its result."""
        resume = is_resumable(self.sft.run_dir, self.keys["sft"])
        job = prepare_sft(self.sft, resume=resume, overwrite=not resume)
        write_lines(self.sft.run_dir / _KEY, [self.keys["sft"]])
        with self.milestones.doing("learner start"):
            learners = LearnerPool.start(self.sft, job.model, self.sft.sft.num_steps, base=job.base)
        with self.milestones.doing("sft", self.keys["sft"]):
            job.run(learners)
        return learners

    def train_grpo(self, job: GrpoJob, engine: "SharedEngine", learners: LearnerPool) -> None:
        """Reinforcement learning with the engine that is there."""
        rollouts = engine.hold(resolve_model(self.sft.run_dir), None)
        with self.milestones.doing("grpo", self.keys["grpo"]):
            sync = WeightSync(learners, rollouts)
            checkpoint = job.run(Pools(rollouts, RewardPool.start(self.grpo), learners, sync))
        engine.held = checkpoint.folder  # the last step pushed these weights

    def is_needed(self, name: str) -> bool:
        """Whether a milestone has to be done."""
        return not self.milestones.is_done(name, self.keys[name])

    def evaluate(
        self, name: str, engine: "SharedEngine", model: Path, learners: LearnerPool | None
    ) -> None:
        """Count in the held-out clips with one set of weights, if that was not done yet."""
        if not self.is_needed(name):
            return
        rollouts = engine.hold(model, learners)
        with self.milestones.doing(name, self.keys[name]):
            for stage, clips in self.clips.items():
                path = self.folder_of(stage) / f"predictions-{name.split()[0]}.jsonl"
                evaluate(clips, rollouts, self.inputs, self.grpo, path)

    def folder_of(self, stage: str) -> Path:
        """Where the predictions lie that are about the clips of what a stage learned from."""
        return self.folder if stage == self.grpo.stage else self.folder / MARKED

    def report(self) -> Path:
        """Score, draw, write `summary.json`, and print what a person wants to know."""
        marked = self.folder_of(self.sft.stage)
        write_resolved(self.sft, marked / RECORD, provenance(self.sft))
        with self.milestones.doing("report"):
            reports = {
                name: write_report(read_run(folder), folder)
                for name, folder in ((COUNTED, self.folder), (MARKED, marked))
            }
        self.write_held_out(reports)
        path = self.folder / "summary.json"
        write_lines(path, [json.dumps(self.summary(reports), indent=2)])
        for name, report in reports.items():
            self.console.print(as_text(f"Held-out clips of {name}", "bold"))
            print_main(report, self.console)
        self.console.print(self.seconds_table())
        self.console.print(as_text(self.next_commands(reports[COUNTED])), soft_wrap=True)
        return path

    def write_held_out(self, reports: Mapping[str, Report]) -> None:
        """Curves of the held-out clips over both trainings, for TensorBoard: a run each kind."""
        sft = self.sft.sft.num_steps
        steps = {"untrained": 0, "sft": sft, "grpo": sft + self.grpo.train.num_steps}
        for data, report in reports.items():
            points = {
                step: {
                    f"eval/{figure}": interval.value
                    for figure, interval in report.metrics[name].values.items()
                }
                for name, step in steps.items()
            }
            write_curves(self.folder / "held-out" / data, points)

    def summary(self, reports: Mapping[str, Report]) -> dict[str, Any]:
        """The numbers of a quickstart, as JSON values."""
        return {
            **{name: _figures(report) for name, report in reports.items()},
            "seconds": {**self.milestones.seconds, "total": round(self.milestones.total_s, 1)},
            "num_clips": self.edition.num_clips,
            "seed": self.grpo.seed,
            **provenance(self.grpo),
        }

    def seconds_table(self) -> Table:
        """How long each milestone took."""
        table = Table(title="Seconds", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.add_column("milestone")
        table.add_column("seconds", justify="right")
        table.add_column("")
        for name, seconds in self.milestones.seconds.items():
            note = "" if name in self.milestones.done_now else "re-used"
            if name == "untrained":
                note = f"{note} while SFT ran".strip()
            if name == BASELINE and self.has_detector_beside:
                note = f"{note} beside the trainings".strip()
            table.add_row(name, f"{seconds:.0f}", note)
        table.add_row("this call", f"{self.milestones.total_s:.0f}")
        return table

    def next_commands(self, report: Report) -> str:
        """Text on where the results are and how to go on."""
        grpo, data = self.grpo.run_dir, self.grpo.data.path
        video = _from_here(Path(self.clips[self.grpo.stage][0].video))
        larger = _from_here(recipes_folder() / "qwen3_vl_4b_grpo.yaml")
        actrep = shlex.quote(program("actrep"))
        longer = f"  {actrep} quickstart --full   # the same, longer and better"
        return "\n".join(
            [
                f"Curves and a clip: {report.pictures['summary']}",
                f"Page with all tables: {report.page}",
                "",
                "Go on with",
                f"  {shlex.quote(program('tensorboard'))} --logdir {self.folder}",
                f"  {actrep} count {video} --checkpoint {grpo}",
                f"  {actrep} evaluate --checkpoint {grpo} --data {data}",
                *([longer] if self.edition is not FULL else []),
                f"  {actrep} check {larger}   # a real model, on GPUs",
            ]
        )


def _figures(report: Report) -> dict[str, Any]:
    """Figures of each predictor, and the differences between GRPO and SFT, with intervals."""
    figures: dict[str, Any] = {
        ("constant" if name.startswith("constant") else name): {
            "n": metrics.num_clips,
            **{key: asdict(interval) for key, interval in metrics.values.items()},
        }
        for name, metrics in report.metrics.items()
    }
    paired = report.differences["sft \u2192 grpo"]
    return {**figures, "paired": {key: asdict(interval) for key, interval in paired.items()}}


def _from_here(path: Path) -> Path:
    """The path as it is typed in the current folder, where it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class SharedEngine:
    """One rollout pool that is given the weights that are wanted.

    Args:
        recipe: Settings of the engines.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.pool: RolloutPool | None = None
        self.held: Path | None = None

    def hold(self, model: Path, learners: LearnerPool | None) -> RolloutPool:
        """The pool with the weights of `model`.

        Args:
            model: Checkpoint folder.
            learners: Hold its weights, if they are running; else the engine is started with them.
        """
        if self.pool is not None and self.held != model:
            if learners is not None:
                WeightSync(learners, self.pool).push(0)
            else:
                self.pool.shutdown()
                self.pool = None
        if self.pool is None:
            self.pool = RolloutPool.start(self.recipe, model)
        self.held = model
        return self.pool


def is_resumable(run_dir: Path, key: str) -> bool:
    """Whether what a run's folder holds is the same run, cut short."""
    marker = run_dir / _KEY
    if not (marker.is_file() and (run_dir / RECORD).is_file()):
        return False
    return marker.read_text(encoding="utf-8").strip() == key


def hash_of(*parts: Any) -> str:
    """A short hash of some values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
