"""Recognition by its recipes in one process: SFT, then GRPO steps, all real but for Ray."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import actrep_ray.models
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.groups import row_of, split_trainable
from actrep_ray.driver.phases import make_prompt, prompt_name
from actrep_ray.driver.sources import training_settings
from actrep_ray.driver.strata import make_sampler
from actrep_ray.evaluation.predictors import evaluate
from actrep_ray.learner.loss.algorithms import compute_advantages
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import RolloutGroup
from actrep_ray.rollout.hf_engine import HfEngine
from actrep_ray.scoring.dispatch import with_scores
from actrep_ray.scoring.worker import GroupScores, RewardWorker, make_spec, texts_of
from actrep_ray.sft import answered
from actrep_ray.sft import row_of as sft_row_of
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.activities.dataset import write_activities
from data_prep.activities.shots import take_shots
from data_prep.rows import images_among, read_rows, write_rows
from rewards.reference import Reference

ROOT = Path(__file__).resolve().parents[2]
BASE = Path(actrep_ray.models.__file__).parent / "assets" / "tiny_qwen3_vl"
CLASSES = ("jump", "lie", "spread_arms", "squat")
NUM_SFT_STEPS, NUM_STEPS = 70, 3

pytestmark = pytest.mark.lengthy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four classes in the style `block`, four shots of each."""
    numbers = {"train": 12, "test": 2}
    path = write_activities(tmp_path / "a", style="block", num_images=numbers, seed=0)
    rows = [row for row in images_among(read_rows(path)) if row.label in CLASSES]
    write_rows(path, rows)
    write_rows(tmp_path / "a" / "shots.jsonl", take_shots(rows, 4, seed=0, has_splits=True))
    return tmp_path


def recipe_of(stage: str, folder: Path, *settings: str) -> Recipe:
    name = "rows" if stage == "sft" else "shots"
    common = [
        f"data.path={folder / 'a' / name}.jsonl",
        f"video.cache_dir={folder / 'frames'}",
        f"runs_dir={folder / 'runs'}",
        "device=cpu",
        "rollout.engine=hf",
        "data.reasoning=none",  # short answers are learned sooner
    ]
    return load_recipe(ROOT / "recipes" / f"recognition_tiny_{stage}.yaml", [*common, *settings])


def fine_tune(folder: Path, worker: LearnerWorker, recipe: Recipe) -> list[float]:
    inputs = QwenVLInputs(BASE)
    pairs = answered(load_clips(recipe, "train"), recipe)
    rows = [sft_row_of(clip, answer, recipe, inputs) for clip, answer in pairs]
    draw = random.Random(0)
    losses = [worker.sft_step(draw.sample(rows, 16))["loss"] for _ in range(NUM_SFT_STEPS)]
    worker.save_model(folder / "sft")
    return losses


def scored(
    groups: Sequence[RolloutGroup],
    labels: Mapping[str, Reference],
    worker: RewardWorker,
    recipe: Recipe,
) -> list[RolloutGroup]:
    found = worker.score([texts_of(group, labels, recipe) for group in groups])
    scores = [one for one in found if isinstance(one, GroupScores)]
    return [with_scores(group, one) for group, one in zip(groups, scores, strict=True)]


def test_few_shots_are_learned_from(data: Path, make_worker: Callable[..., LearnerWorker]) -> None:
    sft = recipe_of("sft", data, "learner.warmup_steps=4")
    losses = fine_tune(data, make_worker(sft, BASE, NUM_SFT_STEPS), sft)
    assert losses[-1] < 0.3 * losses[0], losses

    grpo = recipe_of("grpo", data, "rollout.temperature=1.0", "train.prompts_per_step=4")
    task, inputs = load_task(grpo.task), QwenVLInputs(data / "sft")
    engine = HfEngine(data / "sft", grpo.rollout, grpo.video, device="cpu", seed=0)
    learner = make_worker(grpo, data / "sft", NUM_STEPS)
    rewards = RewardWorker(make_spec(grpo), grpo.task)
    shots = load_clips(grpo, "train")
    sampler = make_sampler(shots, grpo)
    assert sampler.num_clips == dict.fromkeys(CLASSES, 4)

    num_trained = 0
    for step in range(1, NUM_STEPS + 1):
        drawn = sampler.take(grpo.train.prompts_per_step)
        prompts = [
            make_prompt(prompt_name(step, i), one, grpo, inputs.plan(one.clip, grpo.video))
            for i, one in enumerate(drawn)
        ]
        labels = labels_of([one.clip for one in drawn], task)
        groups = engine.generate(prompts, training_settings(grpo))
        groups = scored(groups, labels, rewards, grpo)
        trainable, _ = split_trainable(groups, grpo)
        if not trainable:
            continue
        ready = compute_advantages(trainable, grpo.algorithm, grpo.reward.part_weights)
        metrics = learner.update([row_of(group) for group in ready], step)
        assert metrics["log_prob_gap_mean"] < 1e-4  # engine and learner see one image alike
        assert metrics["grad_norm"] > 0
        engine.load_weights(dict(learner.iter_weights()), policy_version=step)
        num_trained += 1
    assert num_trained > 0
    tests = load_clips(grpo, "test")
    found = evaluate(tests, engine, inputs, grpo, data / "predictions.jsonl")
    assert len(tests) == 8
    assert found["accuracy"].value >= 0.5  # a quarter by chance
    engine.shutdown()
