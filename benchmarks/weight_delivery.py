"""How much of what a bfloat16 learner has learned reaches an engine, after 1, 5 and 20 steps.

A learner trains the shipped base: all weights, or adapters that are sent merged or alone. How
log-probabilities have changed since the first push is measured three times on the same answers:
exactly (a learner in float32 with the float32 weights), in the engine, and in the learner's own
bfloat16. The share of one is <change, exact change> / <exact change, exact change> over all tokens.

    python benchmarks/weight_delivery.py [--engine hf|vllm] [--computes float32|bfloat16]
        [--ways full merged adapter] [--lr 1e-5] [--quick]

An engine that computes in float32 shows what was sent and nothing else. One in bfloat16 shows what
is sampled from: its own rounding hides small changes whatever is sent, as the learner's does. The
engine draws by the same numbers each time, so that answers agree until a token is another one; what
comes before it is compared. `--quick`: two steps, adapters alone.

The last line is one JSON object.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from actrep_ray.config import Recipe
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.pretrain.motion import QUESTIONS
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.worker import start_engine
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video_writer import encode_mp4

WAYS = ("full", "merged", "adapter")
_SETTINGS = SamplingSettings(max_tokens=48, group_size=8)
_RANK = 16


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    options.add_argument("--computes", choices=("float32", "bfloat16"), default="float32")
    options.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options.add_argument("--lr", type=float, default=1e-5)
    options.add_argument("--quick", action="store_true", help="two steps, adapters alone")
    args = options.parse_args()
    at_steps = (1, 2) if args.quick else (1, 5, 20)
    rows = []
    with tempfile.TemporaryDirectory(prefix="actrep-delivery-") as folder:
        model, prompts_of = make_model(Path(folder)), PromptMaker(Path(folder))
        for way in ("adapter",) if args.quick else args.ways:
            recipe = make_recipe(model, Path(folder), args.engine, way, args.lr)
            rows += measure(recipe, prompts_of(recipe), args.computes, at_steps, way)
    result = {
        "benchmark": "weight_delivery",
        "quick": args.quick,
        "engine": args.engine,
        "computes": args.computes,
        "lr": args.lr,
        "rows": rows,
    }
    print(json.dumps(result))


def make_model(folder: Path) -> Path:
    """The shipped base with weights that bfloat16 holds exactly."""
    model = folder / "model"
    shutil.copytree(base_model_folder(), model)
    file = model / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return model


def make_recipe(model: Path, folder: Path, engine: str, way: str, lr: float) -> Recipe:
    """A recipe in bfloat16."""
    lora = {"rank": _RANK, "alpha": 2 * _RANK, "send": way} if way != "full" else {}
    settings = {
        "device": "cpu",
        "model": {"path": str(model), "lora": lora},
        "video": {"fps": 4, "max_pixels": 4096, "cache_dir": str(folder / "frames")},
        "rollout": {"engine": engine, "max_model_len": 1024, "kv_cache_gib": 0.25},
        "train": {"prompts_per_step": 4, "group_size": _SETTINGS.group_size},
        "learner": {"lr": lr},
    }
    return Recipe.model_validate(settings)


class PromptMaker:
    """Questions that the base was pretrained on, about two drawn clips."""

    def __init__(self, folder: Path) -> None:
        self.clips = []
        for index in range(2):
            spec = clip_spec("easy", 7, "train", index)
            path = folder / f"{index}.mp4"
            encode_mp4(path, draw_clip(spec), spec.fps)
            self.clips.append(replace(spec.clip, video=str(path)))

    def __call__(self, recipe: Recipe) -> list[Prompt]:
        inputs = QwenVLInputs(recipe.model.path)
        return [
            Prompt(f"{kind}-{clip.id}", clip.id, QUESTIONS[kind], inputs.plan(clip, recipe.video))
            for kind in ("how", "at")
            for clip in self.clips
        ]


def measure(
    recipe: Recipe, prompts: Sequence[Prompt], computes: str, at_steps: Sequence[int], way: str
) -> list[dict[str, object]]:
    """Shares after some steps, one row each."""
    learner, exact = start_learner(recipe, "bfloat16"), start_learner(recipe, "float32")
    engine = start_engine(with_dtype(recipe, computes), recipe.model.path)
    found: list[dict[str, object]] = []
    try:
        engine.load_weights(dict(learner.iter_weights()), 0)
        first = engine.generate(prompts, _SETTINGS)
        rows = rows_of(first)
        copy_weights(learner, exact)
        before = learner.log_probs(rows), exact.log_probs(rows)
        for step in range(1, max(at_steps) + 1):
            learner.update(rows, step)
            if step not in at_steps:
                continue
            engine.load_weights(dict(learner.iter_weights()), step)
            again = engine.generate(prompts, _SETTINGS)
            copy_weights(learner, exact)
            after = learner.log_probs(rows), exact.log_probs(rows)
            changes = changes_of(first, again, before, after)
            found.append({"way": way, "step": step, **shares(*changes)})
            print(found[-1], flush=True)
    finally:
        engine.shutdown()
        learner.shutdown()
    return found


def start_learner(recipe: Recipe, dtype: str) -> LearnerWorker:
    """The only rank."""
    learner = LearnerWorker(with_dtype(recipe, dtype), recipe.model.path, 0, 1, total_steps=100)
    learner.setup("127.0.0.1", 0)
    return learner


def with_dtype(recipe: Recipe, dtype: str) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})


@torch.no_grad()
def copy_weights(source: LearnerWorker, target: LearnerWorker) -> None:
    """All weights, those that are trained in their float32."""
    source.strategy.reshard()
    target.strategy.reshard()
    pairs = zip(target.policy.parameters(), source.policy.parameters(), strict=True)
    for parameter, given in pairs:
        parameter.copy_(given)


Scores = Sequence[tuple[np.ndarray, ...]]


def changes_of(
    first: Sequence[RolloutGroup],
    again: Sequence[RolloutGroup],
    before: tuple[Scores, Scores],
    after: tuple[Scores, Scores],
) -> tuple[np.ndarray, ...]:
    """Changes of the engine, the learner and exactly, at tokens that were drawn both times."""
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    for i, (group, other) in enumerate(zip(first, again, strict=True)):
        for k, (old, new) in enumerate(zip(group.rollouts, other.rollouts, strict=True)):
            num = min(len(old.token_ids), len(new.token_ids))
            differs = np.flatnonzero(old.token_ids[:num] != new.token_ids[:num])
            num = int(differs[0]) if len(differs) else num
            found[0].append(new.rollout_log_probs[:num] - old.rollout_log_probs[:num])
            for values, was, now in zip(found[1:], before, after, strict=True):
                values.append(now[i][k][:num] - was[i][k][:num])
    return tuple(np.concatenate(values).astype(np.float64) for values in found)


def shares(engine: np.ndarray, learner: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    size = exact @ exact
    return {
        "engine": round(float(engine @ exact / size), 4),
        "learner": round(float(learner @ exact / size), 4),
        "exact_rms": round(float(np.sqrt(size / len(exact))), 5),
        "engine_rms": round(float(np.sqrt(np.mean(engine**2))), 5),
        "num_tokens": len(exact),
    }


def rows_of(groups: Sequence[RolloutGroup]) -> list[LearnerRow]:
    signs = np.where(np.arange(_SETTINGS.group_size) % 2, -1.0, 1.0).astype(np.float32)
    return [row_of(replace(group, advantages=signs)) for group in groups]


if __name__ == "__main__":
    main()
