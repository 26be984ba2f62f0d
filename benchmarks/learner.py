"""What computing a group's prompt once saves the learner, in seconds and memory.

One group (a video prompt and G answers of 64 to 192 tokens) goes forward and backward in three
ways, vision tower included, on the same weights and in one process:

    packed        the learner, `packing: shared_prefix`: one row [prompt, answer_1 ... answer_G]
    padded        the learner, `packing: none`: each answer in a row with its prompt
    per_sequence  as TRL does it: the stock model, one sequence at a time, logits of the answer

The bound by token count is (tokens read per sequence) / (tokens read packed); the share of it that
is reached can exceed 1, because the vision tower runs once rather than G times and attention costs
less than its tokens say. On a CPU seconds are CPU seconds of one thread, so that other work on the
machine does not count, and memory is the growth of the resident set; on a GPU, wall seconds and
what PyTorch allocated.

    python benchmarks/learner.py [--quick] [--device cpu|cuda] [--shapes tiny|Qwen3-VL-4B-Instruct]
    python benchmarks/learner.py --quickstart data/quickstart/clips.jsonl

`--quickstart` measures one update of `recipes/quickstart_grpo.yaml` instead (24 prompts x 8
answers, real clips, reference answers), with packing and without. The last line is one JSON object.
"""

import argparse
import copy
import ctypes
import gc
import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from actrep_ray.config import load_recipe
from actrep_ray.learner.batch.packing import collate, micro_batches, packed_length, split_row
from actrep_ray.learner.policy import Policy
from actrep_ray.models.qwen_vl import EncodedPrompt, mrope_positions
from actrep_ray.models.tiny import base_model_folder, write_tiny_model

# Visual tokens as (temporal patches, height, width) after merging.
VIDEOS = {200: (8, 5, 5), 1000: (10, 10, 10), 4000: (40, 10, 10)}
GROUP_SIZES = (4, 8, 16)
QUICK = [(200, 8), (1000, 8)]
BUDGET = 16384  # tokens of one forward pass, in all ways
SHAPES = ("tiny", "Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct")
TEXT_IDS = (10, 400)

Way = Callable[[EncodedPrompt, list[torch.Tensor]], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two cases, each once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", choices=SHAPES, default="tiny", help="sizes of the model")
    parser.add_argument(
        "--cases", nargs="+", metavar="VISUALxG", help="only these, for example 1000x8 4000x16"
    )
    parser.add_argument("--repeats", type=int, default=2, help="the fastest one counts")
    parser.add_argument("--quickstart", type=Path, help="measure the quickstart's update instead")
    args = parser.parse_args()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # "no accelerator found"
    disable_progress_bar()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"benchmark": "learner", "skipped": "no CUDA device"}))
        return
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.quickstart:
        print(json.dumps(measure_quickstart(args.quickstart, 1 if args.quick else args.repeats)))
        return
    cases = QUICK if args.quick else [(n, g) for n in VIDEOS for g in GROUP_SIZES]
    if args.cases:
        given = [text.partition("x") for text in args.cases]
        cases = [(n, g) for n in VIDEOS for g in GROUP_SIZES if (str(n), "x", str(g)) in given]
        if len(cases) < len(given):
            parser.error(f"--cases: visual tokens are {[*VIDEOS]}, G is {GROUP_SIZES}")
    print(json.dumps(measure_ways(args, cases, 1 if args.quick else args.repeats)))


def measure_ways(
    args: argparse.Namespace, cases: Sequence[tuple[int, int]], repeats: int
) -> dict[str, Any]:
    """Every case in every way; prints a line each."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with device:
        model = make_model(args.shapes).to(dtype)
    ways: dict[str, Way] = {
        "packed": packed_way(copy.deepcopy(model), shares_prefix=True),
        "padded": packed_way(copy.deepcopy(model), shares_prefix=False),
        "per_sequence": per_sequence_way(model),
    }
    warm_up = make_prompt(model.config, (2, 2, 2)), make_answers(2)
    for way in ways.values():
        way(*warm_up)
    print(
        f"{'visual':>6} {'G':>3}  {'way':<13}{'seconds':>9}{'MiB':>8}   faster   bound  share",
        flush=True,
    )
    results = []
    for num_visual, group_size in cases:
        prompt = make_prompt(model.config, VIDEOS[num_visual])
        answers = make_answers(group_size)
        found = {name: measure(way, prompt, answers, repeats, device) for name, way in ways.items()}
        result = compare(num_visual, prompt, answers, found)
        report(result)
        results.append(result)
    return {
        "benchmark": "learner",
        "quick": args.quick,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "shapes": args.shapes,
        "cases": results,
    }


def measure(
    way: Way,
    prompt: EncodedPrompt,
    answers: list[torch.Tensor],
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds (of the fastest repeat), peak MiB (of the first), and the log-probabilities."""
    seconds, memory = [], 0.0
    log_probs = torch.zeros(0)
    for repeat in range(repeats):
        base = start_memory(device)
        start = clock(device)
        log_probs = way(prompt, answers)
        seconds.append(clock(device) - start)
        if repeat == 0:
            memory = peak_memory(device) - base
    return {"seconds": min(seconds), "peak_mib": memory / 2**20, "log_probs": log_probs}


def compare(
    num_visual: int, prompt: EncodedPrompt, answers: list[torch.Tensor], found: dict[str, Any]
) -> dict[str, Any]:
    """Ratios to the packed way, and how far its log-probabilities are from the others'."""
    size, lengths = len(prompt.input_ids), [len(answer) for answer in answers]
    num_packed = packed_length(size, lengths)
    num_alone = sum(packed_length(size, [length]) for length in lengths)
    packed = found["packed"]
    gap = max(
        float((one["log_probs"] - packed["log_probs"]).abs().max())
        for name, one in found.items()
        if name != "packed"
    )
    bound = num_alone / num_packed
    return {
        "visual_tokens": num_visual,
        "prompt_tokens": size,
        "group_size": len(answers),
        "token_bound": round(bound, 2),
        "log_prob_gap": gap,
        **{name: _summary(one, packed["seconds"], bound) for name, one in found.items()},
    }


def _summary(one: dict[str, Any], packed_s: float, bound: float) -> dict[str, float]:
    summary = {"seconds": round(one["seconds"], 3), "peak_mib": round(one["peak_mib"], 1)}
    if one["seconds"] != packed_s:
        faster = one["seconds"] / packed_s
        summary |= {
            "packed_is_faster": round(faster, 2),
            "share_of_bound": round(faster / bound, 2),
        }
    return summary


def report(result: dict[str, Any]) -> None:
    for name in ("packed", "padded", "per_sequence"):
        one = result[name]
        line = (
            f"{result['visual_tokens']:>6} {result['group_size']:>3}  {name:<13}"
            f"{one['seconds']:>9.3f}{one['peak_mib']:>8.0f}"
        )
        if name != "packed":
            line += (
                f"{one['packed_is_faster']:>8.2f}x{result['token_bound']:>7.2f}x"
                f"{one['share_of_bound']:>7.2f}"
            )
        print(line, flush=True)


# ---------------------------------------------------------------------------------------- ways


def packed_way(model: Any, *, shares_prefix: bool) -> Way:
    """The learner's own path."""
    policy = Policy(model, (int(model.config.video_token_id),))

    def run(prompt: EncodedPrompt, answers: list[torch.Tensor]) -> torch.Tensor:
        responses = [answer.numpy() for answer in answers]
        rows = split_row(0, "row", prompt, responses, budget=BUDGET, shares_prefix=shares_prefix)
        found: dict[int, torch.Tensor] = {}
        num_tokens = sum(len(answer) for answer in answers)
        for chosen in micro_batches(rows, BUDGET):
            batch = collate(chosen).to(device_of(model))
            batch = replace(batch, pixel_values=batch.pixel_values.to(model.dtype))
            log_probs, _ = policy(batch, temperature=1.0)
            (-log_probs.sum() / num_tokens).backward()
            for k, (_, answer) in enumerate(batch.answers):
                found[answer] = log_probs[k][batch.target_mask[k]].detach()
        model.zero_grad(set_to_none=True)
        return torch.cat([found[a] for a in sorted(found)]).float().cpu()

    return run


def per_sequence_way(model: Any) -> Way:
    """The stock model on `[prompt, answer]`, one after the other, as TRL's per-token log-probs."""

    def run(prompt: EncodedPrompt, answers: list[torch.Tensor]) -> torch.Tensor:
        device = device_of(model)
        found = []
        num_tokens = sum(len(answer) for answer in answers)
        pixels = prompt.pixel_values.to(device, model.dtype)
        for answer in answers:
            after = prompt.next_position + torch.arange(len(answer))
            positions = torch.cat([prompt.position_ids, after.expand(3, -1)], dim=1)
            ids = torch.cat([prompt.input_ids, answer])[None]
            logits = model(
                input_ids=ids.to(device),
                attention_mask=torch.ones_like(ids).to(device),
                position_ids=positions[:, None].to(device),
                pixel_values_videos=pixels,
                video_grid_thw=prompt.grid_thw.to(device),
                logits_to_keep=len(answer) + 1,
                use_cache=False,
            ).logits[0, :-1]
            logits[:, int(model.config.video_token_id)] = -1e9  # as the learner does
            log_all = logits.float().log_softmax(dim=-1)
            log_probs = log_all.gather(1, answer.to(device)[:, None])[:, 0]
            (-log_probs.sum() / num_tokens).backward()
            found.append(log_probs.detach())
        model.zero_grad(set_to_none=True)
        return torch.cat(found).float().cpu()

    return run


# ---------------------------------------------------------------------------------------- inputs


def make_model(shapes: str) -> Any:
    """Random weights: the small Qwen3-VL, or the shapes of a published model from its config."""
    torch.manual_seed(0)
    if shapes == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            config: Any = AutoConfig.from_pretrained(write_tiny_model(folder))
    else:
        path = files("actrep_ray") / "models" / "assets" / "configs" / f"{shapes}.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").train()


def make_prompt(config: Any, grid: tuple[int, int, int]) -> EncodedPrompt:
    """A video of noise between some text, laid out as the family's processor does."""
    time_, height, width = grid
    generator = torch.Generator().manual_seed(0)

    def text(n: int) -> torch.Tensor:
        return torch.randint(*TEXT_IDS, (n,), generator=generator)

    is_qwen3 = config.model_type.startswith("qwen3")  # a block and a timestamp for each patch
    blocks = [(1, height, width)] * time_ if is_qwen3 else [grid]
    pieces = [text(15)]
    for t, h, w in blocks:
        pieces += [text(3), torch.full((t * h * w,), int(config.video_token_id)), text(1)]
    input_ids = torch.cat([*pieces, text(25)])
    is_visual = (input_ids == config.video_token_id).numpy()
    positions, next_position = mrope_positions(is_visual, blocks, 1.0)
    vision = config.vision_config
    merge, patch = vision.spatial_merge_size, vision.patch_size
    patch_dim = 3 * vision.temporal_patch_size * patch * patch
    num_patches = time_ * height * width * merge * merge
    return EncodedPrompt(
        input_ids=input_ids,
        position_ids=positions,
        next_position=next_position,
        pixel_values=torch.randn(num_patches, patch_dim, generator=generator),
        grid_thw=torch.tensor([[time_, height * merge, width * merge]]),
    )


def make_answers(group_size: int) -> list[torch.Tensor]:
    """Ragged answers of 64 to 192 tokens."""
    generator = torch.Generator().manual_seed(group_size)
    lengths = torch.randint(64, 193, (group_size,), generator=generator).tolist()
    return [torch.randint(*TEXT_IDS, (n,), generator=generator) for n in lengths]


# ---------------------------------------------------------------------------------------- meters


def device_of(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def start_memory(device: torch.device) -> float:
    """Bytes in use now; the peak is counted from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed hides the next peak
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak becomes the present
    return _status("VmRSS")


def peak_memory(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


# ------------------------------------------------------------------------------------ quickstart


def measure_quickstart(clips_path: Path, repeats: int) -> dict[str, Any]:
    """One update of the quickstart's GRPO recipe on its own clips, packed and not."""
    from actrep_ray.learner.worker import LearnerWorker
    from actrep_ray.models.qwen_vl import QwenVLInputs
    from actrep_ray.sft import row_of
    from actrep_ray.tasks.loading import load_clips
    from data_prep.cot import render_answer
    from data_prep.rows import clips_among

    recipe_path = Path(__file__).parents[1] / "recipes" / "quickstart_grpo.yaml"
    settings = [f"data.path={clips_path}", "device=cpu", "learner.num_threads=1"]
    base = load_recipe(recipe_path, settings)
    model = base_model_folder()
    inputs = QwenVLInputs(model)
    clips = clips_among(load_clips(base, "train", limit=base.train.prompts_per_step))
    answers = [
        inputs.encode_answer(render_answer(clip, dialect=base.data.dialect)) for clip in clips
    ]
    rng, size = np.random.default_rng(0), base.train.group_size
    rows = []
    for i, clip in enumerate(clips):  # the answers of the clips that follow: real and ragged
        chosen = tuple(answers[(i + g) % len(answers)] for g in range(size))
        rows.append(
            replace(
                row_of(clip, "-", base, inputs),
                responses=chosen,
                advantages=rng.normal(size=size).astype(np.float32),
                rollout_log_probs=tuple(np.full(len(r), -1.0, np.float32) for r in chosen),
            )
        )
    result: dict[str, Any] = {"benchmark": "learner", "quickstart": True}
    prompts: list[int] = []
    for packing in ("shared_prefix", "none"):
        recipe = load_recipe(recipe_path, [*settings, f"learner.packing={packing}"])
        worker = LearnerWorker(recipe, str(model), 0, 1, 10)
        worker.setup("127.0.0.1", 0)
        worker.update(rows[:2], 0)  # imports, first allocations, and frames into the cache
        worker.log_probs(rows)
        prompts = [len(worker.encoder.encode(row).input_ids) for row in rows]
        cpu, wall = [], []
        for step in range(1, repeats + 1):
            start = time.process_time()
            wall.append(worker.update(rows, step)["seconds"])
            cpu.append(time.process_time() - start)
        worker.shutdown()
        result[packing] = {"cpu_s": round(min(cpu), 2), "wall_s": round(min(wall), 2)}
        print(f"{packing:<14} {min(cpu):6.2f} CPU s {min(wall):6.2f} s", flush=True)
    result["faster"] = round(result["none"]["cpu_s"] / result["shared_prefix"]["cpu_s"], 2)
    lengths = [[len(response) for response in row.responses] for row in rows]
    num_packed = sum(packed_length(p, row) for p, row in zip(prompts, lengths, strict=True))
    num_alone = sum(
        packed_length(p, [n]) for p, row in zip(prompts, lengths, strict=True) for n in row
    )
    result["token_bound"] = round(num_alone / num_packed, 2)
    result["mean_prompt_tokens"] = round(float(np.mean(prompts)), 1)
    result["mean_answer_tokens"] = round(float(np.mean([len(a) for a in answers])), 1)
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


if __name__ == "__main__":
    main()
