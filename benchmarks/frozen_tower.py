"""What running a frozen vision tower once for each clip saves an update.

A Qwen3-VL of the 2B model's proportions (an eighth as wide, a third as deep), tower frozen, is
trained on groups of 8 answers to clips of 1,000 visual tokens, with a reference policy: each clip
passes the tower twice an update, as reference and in training, unless its features are kept. CPU
seconds of one thread, so that other work on the machine does not count; both ways in one process,
on the same rows, and their losses have to agree.

    python benchmarks/frozen_tower.py [--quick]

The last line is one JSON object; `first` is the update that computes the features, `later` one that
finds them.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actrep_ray.config import load_recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.published import find_config
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_random_model
from actrep_ray.records import LearnerRow
from data_prep.schema import Clip
from data_prep.video_writer import encode_mp4

GROUP_SIZE = 8
WIDTHS, DEPTHS = 8, 3  # what those of the 2B model are divided by


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="one clip, one later update")
    args = options.parse_args()
    logging.disable(logging.WARNING)
    num_clips, num_later = (1, 1) if args.quick else (4, 3)
    with tempfile.TemporaryDirectory(prefix="tower-") as root:
        folder = Path(root)
        model = write_random_model(folder / "model", scaled_config())
        kept, plain = (
            measure(folder, model, num_clips, num_later, caches=caches) for caches in (True, False)
        )
    assert np.allclose(kept["losses"], plain["losses"], rtol=1e-4), (kept, plain)
    later = [float(np.median(found["seconds"][1:])) for found in (kept, plain)]
    result = {
        "benchmark": "frozen_tower",
        "quick": args.quick,
        "visual_tokens": kept["visual_tokens"],
        "group_size": GROUP_SIZE,
        "first_s": round(kept["seconds"][0], 2),
        "later_s": round(later[0], 2),
        "with_pixels_s": round(later[1], 2),
        "first_faster": round(later[1] / kept["seconds"][0], 2),
        "later_faster": round(later[1] / later[0], 2),
    }
    print(json.dumps(result))


def scaled_config() -> dict[str, Any]:
    """The published 2B model's, narrower and flatter, with heads as wide as its own."""
    _, config = find_config("Qwen3-VL-2B-Instruct")
    text, vision = config["text_config"], config["vision_config"]
    for part, names in (
        (text, ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")),
        (vision, ("hidden_size", "intermediate_size", "num_heads", "out_hidden_size")),
    ):
        part |= {name: part[name] // WIDTHS for name in names}
    text |= {"num_hidden_layers": text["num_hidden_layers"] // DEPTHS, "vocab_size": 8192}
    taps = [(block + 1) // DEPTHS - 1 for block in vision["deepstack_visual_indexes"]]
    vision |= {"depth": vision["depth"] // DEPTHS, "deepstack_visual_indexes": taps}
    return config


def measure(
    folder: Path, model: Path, num_clips: int, num_later: int, *, caches: bool
) -> dict[str, Any]:
    """CPU seconds and losses of updates, the first of which meets the clips."""
    settings = [
        "stage=grpo",
        "device=cpu",
        f"model.path={model}",
        "model.dtype=float32",
        "model.freeze=[vision_tower]",
        "video.max_pixels=102400",
        f"video.cache_dir={folder / 'frames'}",
        f"runs_dir={folder}",
        "algorithm.kl_coef=0.04",
        f"train.prompts_per_step={num_clips}",
        f"train.group_size={GROUP_SIZE}",
        "train.max_log_prob_gap=99",
        f"learner.cache_features={str(caches).lower()}",
    ]
    recipe = load_recipe(None, settings)
    worker = LearnerWorker(recipe, str(model), 0, 1, 100)
    worker.setup("127.0.0.1", 0)
    torch.set_num_threads(1)
    inputs, chance = QwenVLInputs(model), np.random.default_rng(0)
    rows = []
    for number in range(num_clips):
        clip = noise_clip(folder, number)
        lengths = chance.integers(64, 193, GROUP_SIZE)
        rows.append(
            LearnerRow(
                row_id=clip.id,
                question="How often?",
                plan=inputs.plan(clip, recipe.video),
                num_prompt_tokens=0,
                responses=tuple(chance.integers(10, 400, n).astype(np.int32) for n in lengths),
                advantages=chance.normal(size=GROUP_SIZE).astype(np.float32),
            )
        )
    if not caches:  # pixels are kept from then on
        for row in rows:
            worker.encoder.encode(row)
    seconds, losses = [], []
    for step in range(1, num_later + 2):
        began = time.process_time()
        losses.append(worker.update(rows, step)["loss"])
        seconds.append(time.process_time() - began)
    grid = worker.encoder.encode(rows[0]).grid_thw[0]
    worker.shutdown()
    tokens = int(grid.prod()) // inputs.merge_size**2
    return {"seconds": seconds, "losses": losses, "visual_tokens": tokens}


def noise_clip(folder: Path, number: int) -> Clip:
    """20 frames of 320 x 320 pixels at 4 fps."""
    path = folder / f"{number}.mp4"
    shape = (20, 320, 320, 3)
    encode_mp4(path, np.random.default_rng(number).integers(0, 256, shape, np.uint8), 4)
    return Clip(
        id=f"clip-{number}",
        dataset="noise",
        split="train",
        video=str(path),
        start_s=0.0,
        end_s=5.0,
        video_fps=4.0,
        num_frames=20,
        width=320,
        height=320,
        action="unknown",
        count=0,
    )


if __name__ == "__main__":
    main()
