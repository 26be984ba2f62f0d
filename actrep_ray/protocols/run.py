"""A protocol from its checkpoint to its tables, in one cluster with one engine.

    for each trial: SFT or GRPO from the checkpoint ─► weights to the engine ─► every exam

An exam that was answered is not asked again, and a training that was cut short goes on. Between
trainings only ranks are started anew.
"""

from functools import partial
from pathlib import Path

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.session import cluster
from actrep_ray.config import Recipe
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.pools import Pools
from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.evaluation.predictors import evaluate, predictions_of, prompts_of
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.protocols.figures import agreement
from actrep_ray.protocols.plan import Exam, Trial
from actrep_ray.protocols.report import report_protocol
from actrep_ray.protocols.setup import Protocol
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.console import as_text, console
from actrep_ray.run.folder import remove_others
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.record import RECORD
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.sft import prepare_sft
from actrep_ray.tasks.loading import load_clips, load_task
from actrep_ray.weights.sync import WeightSync
from data_prep.files import write_json

_NUM_SAMPLES = 8  # by which it is told how sure an answer is


def run_protocol(protocol: Protocol, *, overwrite: bool = False) -> Path:
    """Do what is not done yet, and write the tables; returns the page of the report.

    Args:
        protocol: What is asked for.
        overwrite: Remove what its folder holds.

    Raises:
        ValueError: for settings, data or a model that cannot be used.
    """
    with FolderLock.acquire(protocol.out, "actrep evaluate --protocol") as lock:
        if overwrite:
            remove_others(protocol.out, lock.path)
        protocol.begin()
        missing = [trial for trial in protocol.trials if _exams_left(protocol, trial)]
        if missing:
            recipes = {trial.method: protocol.recipe_of(trial) for trial in missing}
            with cluster(*recipes.values(), stacks=protocol.out / "stacks"):
                _Runner(protocol).run(missing)
        return report_protocol(protocol)


def _exams_left(protocol: Protocol, trial: Trial) -> list[Exam]:
    return [exam for exam in protocol.exams if not protocol.is_done(trial, exam)]


class _Runner:
    """The trials of a protocol over one engine.

    Args:
        protocol: What is asked for.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.inputs = QwenVLInputs(protocol.model)

    def run(self, trials: list[Trial]) -> None:
        """Train and ask, one trial after the other."""
        shown = self.protocol.recipe_of(self.protocol.trials[0])
        engine = in_background(partial(RolloutPool.start, shown, self.protocol.model))
        for number, trial in enumerate(trials, 1):
            console().print(as_text(f"{number}/{len(trials)} {trial.name}", "bold"))
            recipe = self.protocol.recipe_of(trial)
            if trial.method == "zero-shot":
                self.ask(trial, engine.result())
            elif trial.method == "sft":
                self.train_sft(trial, recipe, engine.result())
            else:
                self.train_grpo(trial, recipe, engine.result())

    def train_sft(self, trial: Trial, recipe: Recipe, rollouts: RolloutPool) -> None:
        """Fine-tune on the shots, give the engine the weights, and ask."""
        resume = (recipe.run_dir / RECORD).is_file()
        job = prepare_sft(recipe, resume=resume)
        learners = LearnerPool.start(recipe, job.model, recipe.sft.num_steps, base=job.base)
        job.run(learners)
        WeightSync(learners, rollouts).push(recipe.sft.num_steps)
        self.ask(trial, rollouts)
        learners.shutdown()

    def train_grpo(self, trial: Trial, recipe: Recipe, rollouts: RolloutPool) -> None:
        """Reinforce on the shots and ask: the engine holds the weights of the last step."""
        resume = (recipe.run_dir / RECORD).is_file()
        job = prepare_grpo(recipe, resume=resume)
        learners = LearnerPool.start(recipe, job.model, recipe.train.num_steps, base=job.base)
        rewards = RewardPool.start(recipe)
        job.run(Pools(rollouts, rewards, learners, WeightSync(learners, rollouts)))
        self.ask(trial, rollouts)
        rewards.shutdown()
        learners.shutdown()

    def ask(self, trial: Trial, rollouts: RolloutPool) -> None:
        """All exams that are left, by the weights that the engine holds."""
        for exam in _exams_left(self.protocol, trial):
            recipe = self.protocol.recipe_to_ask(trial, exam)
            images = load_clips(recipe, "test")
            path = self.protocol.predictions(trial, exam)
            path.parent.mkdir(parents=True, exist_ok=True)
            evaluate(images, rollouts, self.inputs, recipe, path)
            if self.protocol.name == "open-set":
                self.ask_again(trial, exam, recipe, rollouts)

    def ask_again(self, trial: Trial, exam: Exam, recipe: Recipe, rollouts: RolloutPool) -> None:
        """How sure each answer is: the share of sampled ones that agree with it."""
        task = load_task(recipe.task)
        prompts = prompts_of(load_clips(recipe, "test"), self.inputs, recipe)
        settings = SamplingSettings(recipe.rollout.max_response_tokens, _NUM_SAMPLES)
        path = self.protocol.predictions(trial, exam)
        greedy = {one.clip_id: one.reading for one in read_predictions(path, task)}
        sure = {}
        for group in rollouts.generate(prompts, settings):
            name = group.prompt.clip_id
            sampled = predictions_of(group, task, recipe.data.dialect)
            sure[name] = agreement(greedy[name], [one.reading for one in sampled])
        write_json(self.protocol.certainties(trial, exam), sure)
