"""Tier A: the learner's computing on one GPU, with torch, transformers, pydantic and numpy alone.

No Ray, no vLLM, no video, no tokenizer, no network and no checkpoint: models are the shipped
configs with random weights, clips are noise. Each check prints one JSON line with `ok`; docs/gpu.md
says what each must show. What a device cannot run is skipped with the reason.

    python benchmarks/gpu_bare.py                  # on a GPU, real widths
    python benchmarks/gpu_bare.py --device cpu     # the same at toy sizes

The last line is one JSON object with the numbers of checks that passed, failed and were skipped;
the exit code is 1 if one failed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stand_ins import stand_in_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # no installed package either
MISSING = stand_in_for("av", "cv2", "PIL", "xxhash", "accelerate")

from actrep_ray.learner.batch import attention  # noqa: E402
from actrep_ray.learner.batch.packing import PackedBatch, collate, split_row  # noqa: E402
from actrep_ray.learner.policy import Policy  # noqa: E402
from actrep_ray.models.published import find_config  # noqa: E402
from actrep_ray.models.qwen_vl import EncodedPrompt, component_of, mrope_positions  # noqa: E402

GIB = 2**30
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
_PACKAGES = ("torch", "transformers", "pydantic", "numpy")
_TOY = {
    "text_config": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "vocab_size": 2048,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "moe_intermediate_size": 96,
    },
    "vision_config": {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
        "out_hidden_size": 128, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip
_TOY_IDS = {"video_token_id": 5, "image_token_id": 4, "vision_start_token_id": 2,
            "vision_end_token_id": 3}  # fmt: skip


class SkipError(Exception):
    """A check that this device cannot run; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What the checks run on.

    Attributes:
        device: Where.
        is_toy: Whether sizes are those of a CPU.
    """

    device: torch.device
    is_toy: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of computation."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        """Most memory of tensors since `forget`; None on a CPU."""
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None

    def forget(self) -> None:
        """Begin to count memory anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes on a GPU too")
    parser.add_argument("--only", nargs="+", choices=[c.__name__ for c in CHECKS], default=None)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"skipped": f"no CUDA device (torch {torch.__version__})"}))
        return
    setting = Setting(torch.device(args.device), args.quick or args.device == "cpu")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for check in CHECKS:
        if args.only is None or check.__name__ in args.only:
            torch.manual_seed(0)
            setting.forget()
            counts[run(check, setting)] += 1
    print(json.dumps({"benchmark": "gpu_bare", "device": args.device, **counts}))
    sys.exit(1 if counts["failed"] else 0)


def run(check: "Check", setting: Setting) -> str:
    """One check and its line; an error fails it and the others go on."""
    try:
        found = check(setting)
        outcome = "passed" if found["ok"] else "failed"
    except SkipError as reason:
        found, outcome = {"skipped": str(reason)}, "skipped"
    except Exception as error:  # noqa: BLE001 - told in the check's line, and by the exit code
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        outcome = "failed"
    print(json.dumps({"check": check.__name__, **found}), flush=True)
    return outcome


# ---------------------------------------------------------------- the checks


def imports(setting: Setting) -> dict[str, Any]:
    """Versions, the device, and that nothing of a node was loaded."""
    # What only a node has; stand-ins are told.
    loaded = [name for name in ("ray", "vllm", "verl") if name in sys.modules]
    found: dict[str, Any] = {"ok": not loaded, "loaded": loaded, "stand_ins": MISSING}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found |= {"ok": False, name: None}
    cuda = torch.cuda.get_device_name() if setting.device.type == "cuda" else None
    return found | {"cuda": torch.version.cuda, "gpu": cuda}


def packed_attention(setting: Setting) -> dict[str, Any]:
    """Shared-prefix attention against a dense mask, forward and backward."""
    return _against_dense(setting, attention.shared_prefix_attention, lambda batch: batch.layout)


def flex_attention(setting: Setting) -> dict[str, Any]:
    """FlexAttention over the same rows."""
    if setting.device.type == "cpu":
        raise SkipError("FlexAttention has no backward pass on a CPU")

    def mask(batch: PackedBatch) -> Any:
        assert batch.layout is not None
        return attention.block_mask(batch.layout, *batch.input_ids.shape)

    return _against_dense(setting, attention.flex_attention, mask)


def block_mask_memory(setting: Setting) -> dict[str, Any]:
    """Of the analytic mask: far below the L x L bytes of one that is computed point by point."""
    found: dict[str, Any] = {"ok": True}
    for length in (512, 1024) if setting.is_toy else (4096, 16384, 49152):
        row = _row(_prompt(length // 2, (0, 0, 0), _TOY_IDS["video_token_id"], 4), 4, length // 8)
        batch = collate([row]).to(setting.device)
        assert batch.layout is not None
        setting.forget()
        before = setting.peak_gib() or 0.0
        mask = attention.block_mask(batch.layout, *batch.input_ids.shape)
        held = sum(v.nbytes for v in vars(mask).values() if isinstance(v, torch.Tensor))
        peak = None if setting.peak_gib() is None else (setting.peak_gib() or 0.0) - before
        found[str(length)] = {"held_mib": held / 2**20, "peak_gib": peak}
        found["ok"] &= max(held, (peak or 0.0) * GIB) < length**2
    return found


def sft_step(setting: Setting) -> dict[str, Any]:
    """Steps of Qwen3-VL-2B with checkpointing: finite, falling, memory as planned, FLOPs."""
    frames = (8, 4, 4) if setting.is_toy else (32, 28, 28)
    return _train(setting, "Qwen3-VL-2B-Instruct", None, frames, compares_plan=True)


def long_clip(setting: Setting) -> dict[str, Any]:
    """A clip of 20,480 visual tokens (toy: 512) through Qwen3-VL-2B, forward and backward."""
    frames = (16, 8, 16) if setting.is_toy else (160, 16, 32)
    return _train(setting, "Qwen3-VL-2B-Instruct", None, frames, num_steps=1)


def experts(setting: Setting) -> dict[str, Any]:
    """Qwen3-VL-30B-A3B cut to four layers (toy: two)."""
    frames = (8, 4, 4) if setting.is_toy else (16, 28, 28)
    return _train(setting, "Qwen3-VL-30B-A3B-Instruct", 4, frames)


def export_and_save(setting: Setting) -> dict[str, Any]:
    """Weights to pinned host memory, and into a file, GiB a second; what comes back is equal."""
    from safetensors.torch import load_file, save_file

    model = _model("Qwen3-VL-2B-Instruct", None, setting)[0]
    is_pinned = setting.device.type == "cuda"
    copies: dict[str, torch.Tensor] = {}
    seconds = []
    for _ in range(2):  # the second time pinned memory is there
        start = time.perf_counter()
        for name, weight in model.named_parameters():
            copy = copies.get(name)
            if copy is None:
                copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=is_pinned)
            copies[name] = copy.copy_(weight.detach(), non_blocking=True)
        setting.wait()
        seconds.append(time.perf_counter() - start)
    size = sum(copy.nbytes for copy in copies.values()) / GIB
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        start = time.perf_counter()
        save_file(copies, path)
        write_s = time.perf_counter() - start
        back = load_file(path)
    same = all(torch.equal(back[name], w.detach().cpu()) for name, w in model.named_parameters())
    return {
        "ok": same and back.keys() == copies.keys(),
        "gib": size,
        "export_gib_per_s": size / seconds[-1],
        "save_gib_per_s": size / write_s,
    }


Check = Callable[[Setting], dict[str, Any]]
CHECKS: tuple[Check, ...] = (
    imports, packed_attention, flex_attention, block_mask_memory, sft_step, long_clip, experts,
    export_and_save,
)  # fmt: skip


# ---------------------------------------------------------------- their means


class _Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def _against_dense(
    setting: Setting, kernel: Callable[..., Any], mask_of: Callable[[PackedBatch], Any]
) -> dict[str, Any]:
    """A kernel over packed rows against one softmax over a mask of all tokens."""
    lengths = ([40, 1, 30, 7], [90, 12]) if setting.is_toy else ([256, 1, 700, 90], [512, 300])
    prompts = [_prompt(200 + 37 * i, (0, 0, 0), 5, 4) for i in range(2)]
    rows = [
        split_row(i, "r", p, [np.ones(n, int) for n in some], budget=99999, shares_prefix=True)[0]
        for i, (p, some) in enumerate(zip(prompts, lengths, strict=True))
    ]
    batch = collate(rows).to(setting.device)
    num_rows, length = batch.input_ids.shape
    visible = torch.zeros(num_rows, length, length, dtype=torch.bool)
    for i, (prompt, some) in enumerate(zip(prompts, lengths, strict=True)):
        start = size = len(prompt.input_ids)
        visible[i, :size, :size] = torch.ones(size, size).tril().bool()
        for n in some:  # an answer's last token is predicted, not read
            end = start + n - 1
            visible[i, start:end, :size] = True
            visible[i, start:end, start:end] = torch.ones(n - 1, n - 1).tril().bool()
            start = end
        rest = torch.arange(start, length)
        visible[i, rest, rest] = True  # padding, of which nothing is compared
    is_real = visible.sum(-1) > 1
    is_real[:, 0] = True
    visible, is_real = visible.to(setting.device), is_real.to(setting.device)
    outputs, gradients = [], []
    for is_dense in (True, False):
        query, key, value = _heads(setting, num_rows, length)
        if is_dense:
            found = torch.nn.functional.scaled_dot_product_attention(
                query.float(), key.float().repeat_interleave(2, 1),
                value.float().repeat_interleave(2, 1), attn_mask=visible[:, None],
            ).transpose(1, 2)  # fmt: skip
        else:
            found = kernel(_Layer(), query, key, value, None, layout=mask_of(batch), scaling=None)[
                0
            ]
        real = found[is_real].float()
        real.square().sum().backward()
        outputs.append(real.detach())
        gradients.append(torch.cat([x.grad.float().flatten() for x in (query, key, value)]))  # type: ignore[union-attr]
    gap = float((outputs[0] - outputs[1]).norm() / outputs[0].norm())
    gradient_gap = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    limit = 1e-5 if setting.dtype == torch.float32 else 2e-2
    is_close = gap < limit and gradient_gap < limit
    return {"ok": is_close, "gap": gap, "gradient_gap": gradient_gap, "tokens": int(is_real.sum())}


def _heads(setting: Setting, num_rows: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_rows, heads, length, 64) for heads in (4, 2, 2)]
    return [
        torch.randn(shape, generator=generator).to(setting.device, setting.dtype).requires_grad_()
        for shape in shapes
    ]


def _train(
    setting: Setting,
    name: str,
    num_layers: int | None,
    frames: tuple[int, int, int],
    *,
    num_steps: int = 4,
    compares_plan: bool = False,
) -> dict[str, Any]:
    """Steps of AdamW on one group about one clip of (t, h, w) merged patches."""
    from actrep_ray.config import load_recipe
    from actrep_ray.learner.strategies.optimizer import make_optimizer

    model, config = _model(name, num_layers, setting)
    answer, group = (16, 3) if setting.is_toy else (256, 4)
    recipe = load_recipe(
        None,
        [
            "stage=sft", f"model.path={name}", "model.freeze=[vision_tower]",
            f"device={setting.device.type}", "learner.gradient_checkpointing=true",
            "learner.lr=1.0e-3", f"sft.clips_per_step={group}",
        ],
    )  # fmt: skip
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(parameter_name) != "vision_tower")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    policy = Policy(model, (config.video_token_id,))
    optimizer = make_optimizer(model, recipe.learner)
    vision = config.vision_config
    patch_dim = 3 * vision.temporal_patch_size * vision.patch_size**2
    prompt = _prompt(40, frames, config.video_token_id, patch_dim, vision.spatial_merge_size)
    batch = collate([_row(prompt, group, answer)]).to(setting.device)
    losses, seconds = [], []
    for _ in range(num_steps + 1):
        setting.wait()
        start = time.perf_counter()
        log_probs, _ = policy(batch, temperature=1.0)
        loss = -log_probs.sum() / batch.target_mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        setting.wait()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - start)
    num_tokens = int(batch.input_ids.numel())
    found: dict[str, Any] = {
        "ok": bool(np.isfinite(losses).all()) and losses[-1] < losses[0],
        "loss": [round(value, 4) for value in losses],
        "visual_tokens": int(np.prod(frames)),
        "tokens_per_s": num_tokens / min(seconds[1:]),
        "peak_gib": setting.peak_gib(),
    }
    if not setting.is_toy:
        found |= _of_plan(setting, name, recipe, prompt, found["tokens_per_s"], compares_plan)
    return found


def _of_plan(
    setting: Setting, name: str, recipe: Any, prompt: EncodedPrompt, tokens_per_s: float,
    compares_plan: bool,
) -> dict[str, Any]:  # fmt: skip
    """Model-FLOPs utilisation (recomputing is not counted), and the share that was planned."""
    from actrep_ray.models.architecture import read_architecture
    from actrep_ray.planning.learner_memory import plan_learner
    from actrep_ray.planning.prompts import PromptSize

    sizes = read_architecture(name)
    flops = 6 * sizes.active_parameters * tokens_per_s
    gpu = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in gpu), None)
    found: dict[str, Any] = {"mfu": None if peak is None else flops / peak / 1e12}
    if compares_plan:
        num_visual = int((prompt.grid_thw.prod(-1)).sum()) // sizes.merge_size**2
        size = PromptSize(num_visual, len(prompt.input_ids) - num_visual)
        items = plan_learner(recipe, sizes, size).items
        found["planned_gib"] = sum(b for what, b in items if not what.startswith("CUDA")) / GIB
    return found


def _model(name: str, num_layers: int | None, setting: Setting) -> tuple[Any, Any]:
    """A model with random weights, and its config."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = json.loads(json.dumps(find_config(name)[1]))
    if num_layers is not None:
        values["text_config"]["num_hidden_layers"] = num_layers
    if setting.is_toy:
        values |= _TOY_IDS
        for section, toy in _TOY.items():
            values[section] |= toy
        values["text_config"]["rope_parameters"]["mrope_section"] = [8, 4, 4]
        if "num_experts" in values["text_config"]:
            values["text_config"] |= {"num_experts": 8, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(**values)
    with torch.device(setting.device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=setting.dtype, attn_implementation="sdpa"
        )
    return model, config


def _prompt(
    num_text: int, frames: tuple[int, int, int], video_id: int, patch_dim: int, merge: int = 2
) -> EncodedPrompt:
    """Text, a clip of (t, h, w) merged patches of noise in its midst, and text."""
    t, h, w = frames
    num_visual = t * h * w
    before = num_text // 2
    ids = torch.arange(num_text + num_visual) % 1000 + 10
    is_visual = np.zeros(len(ids), dtype=bool)
    is_visual[before : before + num_visual] = True
    ids[torch.from_numpy(is_visual)] = video_id
    blocks = [(1, h, w)] * t if num_visual else []
    positions, following = mrope_positions(is_visual, blocks, 1.0)
    grid = torch.tensor([[t, h * merge, w * merge]]) if num_visual else torch.zeros(0, 3).long()
    pixels = torch.randn(num_visual * merge**2, patch_dim)
    return EncodedPrompt(ids, positions, following, pixels, grid)


def _row(prompt: EncodedPrompt, group_size: int, num_tokens: int) -> Any:
    """A group of random answers behind their prompt."""
    rng = np.random.default_rng(0)
    answers = [rng.integers(10, 1000, num_tokens) for _ in range(group_size)]
    return split_row(0, "r", prompt, answers, budget=10**6, shares_prefix=True)[0]


if __name__ == "__main__":
    main()
