"""Supervised fine-tuning: the reference answers of clips, learned by the workers that GRPO uses.

The target is rendered from a clip's cycles (`data_prep.cot`), or comes from the file of answers
that a teacher wrote (`data.answers`; clips without one are left out). Every one earns the full
reward; that is checked before anything starts. Loss is on the answer's tokens alone.

The order of clips is a function of (seed, step): epochs are seeded permutations laid end to end,
and step s takes the clips s * B to (s + 1) * B of that line. A resumed run therefore goes on with
the clips that the killed one would have seen. In place of a clip that turns out unusable comes the
next one of its stratum in that line (`driver.quarantine`).
"""

import logging
from collections.abc import Callable, Collection, Container, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from actrep_ray.cluster.session import cluster
from actrep_ray.cluster.stopping import StopError, StopRequest, remember_notice
from actrep_ray.cluster.supervision import WorkerLostError
from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe
from actrep_ray.driver.checkpoints import RunCheckpoints
from actrep_ray.driver.quarantine import STATE_KEY, Quarantine, QuarantinedRow
from actrep_ray.driver.restarts import run_with_restarts
from actrep_ray.driver.strata import strata_of
from actrep_ray.driver.text_lists import text_lists
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.records import LearnerRow
from actrep_ray.run.best import BestStep
from actrep_ray.run.checkpoint import Checkpoint, is_due
from actrep_ray.run.console import as_text, console
from actrep_ray.run.faults import FaultLog
from actrep_ray.run.folder import open_run
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.run.progress import step_progress
from actrep_ray.run.trackers import check_trackers
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.cot import read_answers
from data_prep.files import DataError
from data_prep.looks import some_of
from data_prep.rows import Row
from data_prep.video import FileState

_log = logging.getLogger(__name__)
_SHOWN = {"loss": "sft/loss", "validation": "sft/validation_loss", "tok/s": "sft/tokens_per_s"}


def prepare_sft(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
) -> "SftJob":
    """Check everything that can be checked before a worker starts, and take the run's folder.

    Args:
        recipe: Settings; `stage` is "sft".
        resume, overwrite, allow_changes: As of `open_run`.

    Raises:
        ValueError: for settings, data or a model that cannot be used.
    """
    check_this_machine(recipe)
    check_trackers(recipe.run.trackers)
    remember_notice(recipe.run.preemption_notice or "")
    BestStep(recipe)
    check_deepspeed(recipe)
    model = resolve_model(recipe.model.path)
    data = SftData.load(recipe, model, is_resumed=resume)
    opened = open_run(
        recipe,
        model,
        resume=resume,
        overwrite=overwrite,
        allow_changes=allow_changes,
    )
    return SftJob(recipe, data, model, opened.start, opened.lock)


@dataclass(frozen=True)
class SftJob:
    """A run whose settings, data and model were checked; nothing has been started.

    Its folder is locked until `run` ends, or nothing refers to the job. `base` is what `model.path`
    means: found and checked once.
    """

    recipe: Recipe
    data: "SftData"
    base: Path
    start: Checkpoint | None
    lock: FolderLock | None = None

    @property
    def model(self) -> Path:
        """Folder of the weights that the run starts from."""
        return self.start.folder if self.start else self.base

    def run(self, learners: LearnerPool | None = None) -> Checkpoint:
        """Fine-tune the model on the train split; returns the last checkpoint.

        Args:
            learners: A pool that was started for this recipe and model; it is left running. None
                starts one in a cluster of its own and ends both.
        """
        with self.lock or nullcontext():
            if learners is None:
                return self._run_in_cluster()
            return _train(self.recipe, self.data, learners, self.start)

    def _run_in_cluster(self) -> Checkpoint:
        """Train with ranks of this run's own, started again where one is lost."""

        def attempt(start: Checkpoint | None, faults: FaultLog) -> Checkpoint:
            job = replace(self, start=start)
            num_steps = self.recipe.sft.num_steps
            learners = LearnerPool.start(self.recipe, job.model, num_steps, base=self.base)
            faults.replaced("learner")
            try:
                return _train(self.recipe, self.data, learners, start)
            except WorkerLostError:
                learners.shutdown()
                raise

        with cluster(self.recipe):
            return run_with_restarts(self.recipe, attempt, self.start)


class SftData:
    """Training and validation rows, in the order in which they are used.

    Args:
        train: Rows to train on.
        validation: Rows of the validation loss; may be empty.
        clips_per_step: B.
        seed: Decides the order.
        strata: Name of the stratum of each row to train on.
        texts: Rows without a video that a step learns from beside its clips.
    """

    def __init__(
        self,
        train: Sequence[LearnerRow],
        validation: Sequence[LearnerRow],
        *,
        clips_per_step: int,
        seed: int,
        strata: Sequence[str],
        texts: Callable[[int], list[LearnerRow]] = lambda step: [],
    ) -> None:
        self.train = train
        self.strata = strata
        self.texts = texts
        self.validation = validation
        self._clips_per_step = clips_per_step
        self._seed = seed

    @classmethod
    def load(cls, recipe: Recipe, model: Path, *, is_resumed: bool = False) -> "SftData":
        """Read and check the clips of a recipe and their answers, for a model's folder.

        Args:
            recipe: Settings.
            model: The folder.
            is_resumed: Videos may have broken since the run began: as many as it bears are left for
                it to find.

        Raises:
            DataError: naming the clip whose answer is not one to learn from, or the file of answers
                that has none for a split.
        """
        share = recipe.data.max_quarantined_share if is_resumed else 0.0
        limits = {
            "train": recipe.data.max_train_clips,
            "validation": recipe.sft.num_validation_clips,
        }
        train, validation = (
            load_clips(recipe, split, limit=limit, max_unreadable_share=share)
            for split, limit in limits.items()
        )
        inputs = QwenVLInputs(model)
        inputs.check_dialect(recipe.data.dialect)
        pairs = answered(train, recipe)
        rows = [
            [
                row_of(clip, answer, recipe, inputs, FileState.of(clip.file) if share else None)
                for clip, answer in some
            ]
            for some in (pairs, answered(validation, recipe))
        ]
        return cls(
            *rows,
            clips_per_step=recipe.sft.clips_per_step,
            seed=recipe.seed,
            strata=strata_of([clip for clip, _ in pairs], recipe),
            texts=partial(text_lists, recipe, inputs),
        )

    def batch(self, step: int, unusable: Container[str] = ()) -> list[LearnerRow]:
        """The rows of a step, the first of which is 1, none of them unusable.

        Raises:
            DataError: if all are.
        """
        first = (step - 1) * self._clips_per_step
        positions = range(first, first + self._clips_per_step)
        return [self.train[self._usable(position, unusable)] for position in positions]

    def _usable(self, position: int, unusable: Container[str]) -> int:
        """The row at a position, or the next one that can be used, of its stratum if it has any."""
        wanted = self._index(position)
        if self.train[wanted].row_id not in unusable:
            return wanted
        ahead = (self._index(position + 1 + i) for i in range(2 * len(self.train)))
        usable = [index for index in ahead if self.train[index].row_id not in unusable]
        same = (index for index in usable if self.strata[index] == self.strata[wanted])
        found = next(same, usable[0] if usable else None)
        if found is None:
            raise DataError("every clip of train is in quarantine: nothing to learn from")
        return found

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.train))
        return int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self.train))


def answered(clips: Sequence[Row], recipe: Recipe) -> list[tuple[Row, str]]:
    """Each clip with the answer that it is to teach: from `data.answers`, or from its marks.

    Raises:
        DataError: for a clip whose answer cannot be rendered, does not agree with its labels or
            earns less than the full reward, or if no clip has one.
    """
    cfg, task = recipe.data, load_task(recipe.task)
    if not cfg.answers:
        return [(clip, task.target(clip, cfg, recipe.seed)) for clip in clips]
    texts = read_answers(cfg.answers)
    pairs = [(clip, texts[clip.id]) for clip in clips if clip.id in texts]
    if clips and not pairs:
        raise DataError(f"{cfg.answers}: has no answer for any clip of split {clips[0].split!r}")
    for clip, text in pairs:
        if reason := task.rejection(text, clip, cfg):
            raise DataError(
                f"{cfg.answers}: the answer of clip {clip.id!r} is not one to learn from: {reason}"
            )
    if missing := len(clips) - len(pairs):
        _log.warning(
            "%s: %d of %d clips of split %r have no answer and are left out",
            cfg.answers,
            missing,
            len(clips),
            clips[0].split,
        )
    return pairs


def row_of(
    clip: Row,
    answer: str,
    recipe: Recipe,
    inputs: QwenVLInputs,
    state: FileState | None = None,
) -> LearnerRow:
    """A clip with its answer as the one response; `state`: see `plan_frames`."""
    return LearnerRow(
        row_id=clip.id,
        question=load_task(recipe.task).question(clip, recipe.data),
        plan=inputs.plan(clip, recipe.video, state),
        num_prompt_tokens=0,
        responses=(inputs.encode_answer(answer),),
        advantages=np.ones(1, np.float32),
    )


def _train(
    recipe: Recipe, data: SftData, learners: LearnerPool, start: Checkpoint | None
) -> Checkpoint:
    cfg = recipe.sft
    shown = some_of(data.train) if load_task(recipe.task).is_counting else []
    checkpoints = RunCheckpoints(
        recipe, learners, cfg.num_steps, start, lambda: [row.plan for row in shown if row.plan]
    )
    step, best = checkpoints.restore(), BestStep(recipe)
    best.restore(step)
    checkpoints.keep_best(best.step)
    quarantine = Quarantine(recipe, len(data.train))
    quarantine.load_state(start.driver_state().get(STATE_KEY, ()) if start else ())
    with (
        StopRequest(
            recipe.run.preemption_notice or "",
            recipe.run.stop_s,
            (WorkerLostError,),
            learners.hurry,
        ) as stop,
        MetricLogger(
            recipe.run_dir, purge_after_step=step or -1, trackers=recipe.run.trackers
        ) as logger,
        step_progress("SFT", start=step, total=cfg.num_steps) as report,
        checkpoints,
    ):
        while step < cfg.num_steps and not best.is_over:
            stop.check()
            step += 1
            draw = partial(data.batch, step, quarantine)
            with logger.timer("learn"), stop.giving_way():
                rows = _readable(draw, learners, quarantine, step)
                metrics = _prefixed("sft/", learners.sft_step([*rows, *data.texts(step)]))
            if not stop.is_asked and is_due(cfg.validate_every, step, cfg.num_steps):
                # What is given up is the loss alone: the loop saves this step, and ends.
                with suppress(StopError), logger.timer("validate"), stop.giving_way():
                    draw = partial(_left, data.validation, quarantine)
                    if rows := _readable(draw, learners, quarantine, step):
                        metrics |= _prefixed("sft/validation_", learners.sft_loss(rows))
            logger.log(step, metrics | checkpoints.look() | quarantine.metrics())
            report(step, {name: metrics[key] for name, key in _SHOWN.items() if key in metrics})
            is_best = best.look(step, metrics)
            if is_best or best.is_over or checkpoints.is_due(step):
                checkpoints.save(step, {STATE_KEY: quarantine.state()}, is_best=is_best)
            checkpoints.reached(step, {STATE_KEY: quarantine.state()})
    for told in (quarantine.describe(), best.describe()):
        if told:
            console().print(as_text(told), soft_wrap=True)
    return checkpoints.last


def _readable(
    draw: Callable[[], list[LearnerRow]], learners: LearnerPool, quarantine: Quarantine, step: int
) -> list[LearnerRow]:
    """Rows whose frames the ranks can get; those that they cannot get are put in quarantine.

    Args:
        draw: Gives rows, none of them in quarantine.
        learners: The ranks.
        quarantine: Takes the others.
        step: Of the run.
    """
    while True:
        rows = draw()
        unreadable = learners.unreadable(rows) if rows else {}
        if not unreadable:
            return rows
        paths = {row.row_id: row.plan.video for row in rows if row.plan is not None}
        found = [QuarantinedRow(name, paths[name], step, *why) for name, why in unreadable.items()]
        quarantine.add(found)


def _left(rows: Sequence[LearnerRow], quarantine: Quarantine) -> list[LearnerRow]:
    """Those of the rows that can be used."""
    return [row for row in rows if row.row_id not in quarantine]


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in metrics.items()}
