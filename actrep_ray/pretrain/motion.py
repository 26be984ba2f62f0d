"""Pretrain the small base on describing motion: where the moving part is, and which way it goes.

The base stands in for what a large Qwen-VL has learned before anybody fine-tunes it. It never sees
a count, a numbered list or a cycle mark: its labels are the motion tracks of the synthetic
renderer, put into four kinds of text, each with its own question.

    at      some times in no order, each with where it is, a (rest) to h (furthest): ` 3.2 f`
    how     one line for each stretch: `still 0.0-0.9s`, `out 0.9-1.6s`, `back 1.6-2.4s`
    away    one line for each excursion from the rest pose: ` 0.9-2.4s`
    what    what is seen: `A person squats. ...`

The four share the clip's tokens (`learner.packing`), so a step costs little more than with one. The
defaults made the shipped base; the commands stand beside it, in assets/tiny_qwen3_vl/README.md.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from actrep_ray.cluster.stopping import StopError, StopRequest
from actrep_ray.config import VideoConfig
from actrep_ray.learner.batch.packing import PackedBatch, PackedRow
from actrep_ray.learner.batch.packing import collate as pack
from actrep_ray.learner.policy import Policy
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.tiny import ZONES, num_parameters, write_tiny_model
from actrep_ray.pretrain import reading
from actrep_ray.pretrain.base import learning_rate, logs_of, make_optimizer, save_base, take_step
from data_prep.cot import wording
from data_prep.overwriting import refuse_filled
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import read_tracks
from data_prep.synthetic.timeline import Track
from data_prep.video import FramePlan
from data_prep.video.guard import read_guarded

log = logging.getLogger(__name__)

AT = "Where is it at each of some times?"
HOW = "Describe how it moves."
AWAY = "When is it away from rest?"
WHAT = "What is shown?"
QUESTIONS = {"at": AT, "how": HOW, "away": AWAY, "what": WHAT}
LOG, LOG_OF_MORE = "pretraining.jsonl", "rehearsal.jsonl"  # the latter of what has a `--start`
NUM_TIMES = 10  # that `at` asks about
MOVES = ("still", "out", "back")
FRAME_NAMES = ("zone", "way", "seconds", "tenths")
FRAME_CLASSES = (len(ZONES), len(MOVES), 32, 10)  # of each of these
STOP_S = 30.0  # from a signal to the end
FRAME_WEIGHT = 0.25  # of the loss of each of them
VIDEO = VideoConfig(fps=4.0, max_frames=96, min_pixels=32 * 32, max_pixels=32 * 32)


@dataclass(frozen=True)
class Example:
    """A clip in memory, and its description by kind (a key of `QUESTIONS`)."""

    clip_id: str
    plan: FramePlan
    frames: np.ndarray  # uint8 [T, H, W, 3]
    texts: dict[str, str]
    shown: np.ndarray  # int64 [pairs of frames, 4], see `describe_frames`


def describe_frames(track: Track, plan: FramePlan) -> np.ndarray:
    """What each pair of frames shows, int64 [pairs, 4].

    The columns are those of `FRAME_CLASSES`: zone, still/out/back, whole seconds, tenths.
    """
    odd = plan.timestamps_s[-1:] * (plan.num_frames % 2)  # the processor repeats the last frame
    times = np.array([*plan.timestamps_s, *odd]).reshape(-1, 2).mean(axis=1)
    zones = [ZONES.index(zone) for zone in zones_at(track, times)]
    ways = motion_of(track)[np.searchsorted(track.times_s, times).clip(max=len(track.times_s) - 1)]
    tenths = np.floor(times * 10 + 1e-6).astype(int)
    ways = [MOVES.index(way) for way in ways]
    return np.stack([zones, ways, tenths // 10, tenths % 10], axis=1)


def describe_times(track: Track, plan: FramePlan, rng: random.Random) -> str:
    """`NUM_TIMES` times, seconds, each with the letter of where the part is then."""
    tenths = [rng.randrange(int(plan.timestamps_s[-1] * 10)) for _ in range(NUM_TIMES)]
    zones = zones_at(track, np.array(tenths) / 10)
    return "".join(f" {t / 10:.1f} {zone}" for t, zone in zip(tenths, zones, strict=True))


def zones_at(track: Track, times_s: np.ndarray) -> list[str]:
    """Which of as many equal parts of the way the position lies in at each time, as a letter."""
    position = np.interp(times_s, track.times_s, track.position)
    return [ZONES[min(int(p * len(ZONES)), len(ZONES) - 1)] for p in position]


def describe_motion(track: Track) -> str:
    """One line for each stretch in which the part rests, goes out or comes back, with its times."""
    times, words = track.times_s, motion_of(track)
    lines, start = [], 0
    for i in range(1, len(words) + 1):
        if i == len(words) or words[i] != words[start]:
            end = times[min(i, len(words) - 1)]
            if end - times[start] >= 0.1:
                lines.append(f"{words[start]} {times[start]:.1f}-{end:.1f}s\n")
            start = i
    return "".join(lines)


def motion_of(track: Track) -> np.ndarray:
    """One of `MOVES` for each video frame."""
    times, position, is_moving = track.times_s, track.position, track.is_moving
    words = np.full(len(times), "still", dtype=object)
    # A turn has no way back: its second half is called so.
    is_turn = bool(np.any(np.diff(position) < -0.5))
    goes_out = position < 0.5 if is_turn else np.gradient(position, times) > 0
    words[is_moving & goes_out] = "out"
    words[is_moving & ~goes_out] = "back"
    return words


def describe_excursions(track: Track) -> str:
    """One line for each stretch between leaving the rest pose and being back there."""
    times, position, is_moving = track.times_s, track.position, track.is_moving
    lines, start = [], None
    for i in range(1, len(times)):
        if start is None:
            start = i - 1 if is_moving[i] else None
            continue
        is_low = position[i] < 0.35 and position[i] <= position[i - 1]
        wraps = position[i] - position[i - 1] < -0.5
        turns = i + 1 < len(times) and position[i + 1] > position[i]
        rests = not is_moving[i] and position[i] < 0.35
        if rests or wraps or (is_low and turns):
            lines.append(f" {times[start]:.1f}-{times[i]:.1f}s\n")
            start = i if is_moving[i] else None
    if start is not None:
        lines.append(f" {times[start]:.1f}-{times[-1]:.1f}s\n")
    return "".join(lines) or "still"


def load_examples(folder: Path, split: str, inputs: QwenVLInputs, limit: int) -> list[Example]:
    """Decode the first clips of a synthetic data set, with their descriptions."""
    tracks = read_tracks(folder / "tracks.jsonl")
    clips: list[Clip] = list(read_clips(folder / "clips.jsonl", split=split))[:limit]
    examples = []
    for clip in clips:
        plan = inputs.plan(clip, VIDEO)
        track = tracks[clip.id]
        examples.append(
            Example(
                clip_id=clip.id,
                plan=plan,
                frames=read_guarded(plan),
                texts={
                    "at": describe_times(track, plan, random.Random(clip.id)),
                    "how": describe_motion(track),
                    "away": describe_excursions(track),
                    "what": "\n".join(wording(clip.action)),
                },
                shown=describe_frames(track, plan),
            )
        )
    return examples


def collate(inputs: QwenVLInputs, examples: Sequence[Example], kinds: Sequence[str]) -> PackedBatch:
    """Every clip once, packed with each of the questions; targets are the answers' tokens alone."""
    asked = {kind: _after_video(inputs, QUESTIONS[kind]) for kind in kinds}
    rows = []
    for i, example in enumerate(examples):
        prompt = inputs.encode("", example.plan, example.frames)
        end = len(prompt.input_ids) - len(_after_video(inputs, ""))
        clip = replace(
            prompt,
            input_ids=prompt.input_ids[:end],
            position_ids=prompt.position_ids[:, :end],
            next_position=int(prompt.position_ids[0, end - 1]) + 1,
        )
        answers = [torch.from_numpy(inputs.encode_answer(example.texts[kind])) for kind in kinds]
        texts = [torch.cat([asked[k], a.long()]) for k, a in zip(kinds, answers, strict=True)]
        rows.append(PackedRow(i, clip, tuple(range(len(kinds))), tuple(texts)))
    batch = pack(rows)
    num_asked = torch.tensor([len(asked[kind]) for kind in kinds] * len(rows))
    is_answer = torch.arange(batch.targets.shape[1]) >= num_asked[:, None]
    is_at = torch.tensor([kind == "at" for kind in kinds] * len(rows))
    is_zone = torch.isin(batch.targets, _zone_tokens(inputs))
    is_answer &= is_zone | ~is_at[:, None]  # nobody can know which time is asked for next
    return replace(batch, target_mask=batch.target_mask & is_answer)


def _after_video(inputs: QwenVLInputs, question: str) -> torch.Tensor:
    """Tokens of the prompt from the question on, int64 [Q]."""
    text = inputs.prompt_text(question).rpartition("<|vision_end|>")[2]
    return torch.tensor(inputs.tokenizer(text, add_special_tokens=False)["input_ids"])


def _zone_tokens(inputs: QwenVLInputs) -> torch.Tensor:
    """The tokens of the zones, int64 [8]."""
    texts = [f" {zone}" for zone in ZONES]
    return torch.tensor([inputs.tokenizer(text)["input_ids"][0] for text in texts])


def batches(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Endless seeded batches of clips of about one length, so that little of a batch is padding."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        order.sort(key=lambda i: examples[i].plan.num_frames // 8 + rng.random())
        starts = list(range(0, len(order) - batch_size + 1, batch_size))
        for start in rng.sample(starts, len(starts)):
            yield [examples[i] for i in order[start : start + batch_size]]


def mirrored(frames: np.ndarray, rng: random.Random) -> np.ndarray:
    """Frames [T, H, W, 3] as they are or mirrored left to right, with their colours exchanged."""
    channels = rng.sample(range(3), 3)
    return np.ascontiguousarray(frames[:, :, :: rng.choice((1, -1))][..., channels])


def pretrain(args: argparse.Namespace) -> None:
    """Train from random weights (or `--start`) and write a checkpoint folder with its log."""
    torch.manual_seed(args.seed)
    out = Path(args.out)
    refuse_filled(out, overwrite=args.overwrite)
    overwrite = bool(args.overwrite)
    start = Path(args.start or write_tiny_model(out, seed=args.seed, overwrite=overwrite))
    inputs = QwenVLInputs(start)
    model: Any = load_model(start, dtype="float32").train()
    train = [e for d in args.data for e in load_examples(Path(d), "train", inputs, args.clips)]
    held_out = load_examples(Path(args.data[0]), "validation", inputs, 64)
    log.info("%d clips, %d parameters", len(train), sum(p.numel() for p in model.parameters()))
    policy = Policy(model, inputs.visual_token_ids)
    frames = FrameHeads(model, inputs.video_pad_id)
    trained = [*model.parameters(), *frames.heads.parameters()]
    optimizer = make_optimizer(trained)
    stream = batches(train, args.batch_size, args.seed)
    rng = random.Random(args.seed)
    logs, rows = logs_of(start), list[str]()
    began = time.monotonic()
    with StopRequest("", STOP_S) as stop:
        for step, examples in zip(range(args.steps), stream, strict=False):
            seen = [replace(e, frames=mirrored(e.frames, rng)) for e in examples]
            rate = learning_rate(step, args.steps, args.lr, args.warmup)
            batch = collate(inputs, seen, list(QUESTIONS))
            log_probs, _ = policy(batch, temperature=1.0)
            loss = -log_probs.sum() / batch.num_targets
            shown = frames.losses(batch, seen)
            (loss + FRAME_WEIGHT * shown.sum()).backward()
            if args.lessons:
                parts = reading.losses_of_lessons(model, inputs, args.lessons, rng)
                reading.weighted(parts).backward()
            norm = take_step(optimizer, rate)
            row = {"step": step + 1, "loss": loss.item()}
            row |= {f"frame_{n}_loss": x for n, x in zip(FRAME_NAMES, shown.tolist(), strict=True)}
            row |= {"grad_norm": norm, "lr": rate, "time_s": time.monotonic() - began}
            is_due = (step + 1) % args.every == 0 or step + 1 == args.steps
            if is_due:
                row |= validate(policy, inputs, held_out)
                log.info("%s", {key: round(value, 4) for key, value in row.items()})
            rows.append(json.dumps(row))
            if is_due or stop.is_asked:
                save_base(model, inputs, out, logs | {LOG_OF_MORE if args.start else LOG: rows})
            stop.check()


class FrameHeads(torch.nn.Module):
    """Reads off the second decoder layer what each pair of frames shows; left out of the base.

    Text alone teaches it slowly, since a zone is only learned from once it is found, and only
    found once it is known.

    Args:
        model: The Qwen-VL model.
        marker_id: The token of each pair of frames, whose state is read.
    """

    def __init__(self, model: Any, marker_id: int) -> None:
        super().__init__()
        width = model.config.get_text_config().hidden_size
        self.heads = torch.nn.ModuleList([torch.nn.Linear(width, n) for n in FRAME_CLASSES])
        self.marker_id = marker_id
        self.states = torch.empty(0)
        model.model.language_model.layers[1].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.states = output[0] if isinstance(output, tuple) else output

    def losses(self, batch: PackedBatch, examples: Sequence[Example]) -> torch.Tensor:
        """Mean cross-entropy of each of `FRAME_CLASSES`, [4], after the model's forward pass."""
        states = self.states[batch.input_ids == self.marker_id]  # [N, H]
        truth = torch.from_numpy(np.concatenate([example.shown for example in examples]))
        pairs = zip(self.heads, truth.T, strict=True)
        return torch.stack([functional.cross_entropy(head(states), t) for head, t in pairs])


def validate(policy: Policy, inputs: QwenVLInputs, examples: Sequence[Example]) -> dict[str, float]:
    """Mean cross-entropy of each kind of description on held-out clips, nats per token."""
    result: dict[str, float] = {}
    with torch.no_grad():
        for kind in QUESTIONS:
            batch = collate(inputs, examples, [kind])
            log_probs, _ = policy(batch, temperature=1.0)
            result[f"val_{kind}_loss"] = float(-log_probs.sum() / batch.num_targets)
    return result


def main() -> None:
    """The command line of pretraining."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", action="append", required=True, help="folder of synthetic clips")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --out")
    parser.add_argument("--start", help="checkpoint to go on from (random weights without it)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--clips", type=int, default=1_000_000, help="at most, of each folder")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument(
        "--lessons", type=int, default=0, help="texts to read beside each batch, of `reading`"
    )
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parser.parse_args()
    try:
        pretrain(args)
    except StopError as stopped:
        log.warning("%s; what was learned is in %s (--start goes on from it)", stopped, args.out)
        raise SystemExit(stopped.code) from stopped
    log.info("%s: %d parameters", args.out, num_parameters(args.out))


if __name__ == "__main__":
    main()
