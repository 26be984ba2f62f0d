"""Teach the small base to read: numbered lists and running numbers, as text alone.

The base stands in for a large model, which has read billions of digits before anybody fine-tunes
it. Of itself a model of this size cannot even copy a number: `rep11:`, ` 11` and `11` are three
tokens that have nothing to do with each other. The lessons are texts without a video, and the
vision tower is frozen, so that they can say nothing about what pixels show.

    list      the grammar's answer about random repetitions: the number of each, total and answer
    numbers   a run of consecutive numbers, up or down, each in one of the three spellings

Learned is only what can be known from the text before it: no time of a list. The command stands in
assets/tiny_qwen3_vl/README.md.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from actrep_ray.config import DataConfig
from actrep_ray.models.qwen_vl import QwenVLInputs, component_of, load_model
from actrep_ray.models.tiny import MAX_COUNT, NUMBER_FORMS, shape_number_embeddings
from actrep_ray.pretrain.base import learning_rate, logs_of, make_optimizer, save_base, take_step
from data_prep.lists import LEARNED, Lesson, list_lesson
from data_prep.overwriting import refuse_filled

log = logging.getLogger(__name__)

MAX_LENGTH = 40  # repetitions of a list
LISTS_PER_LENGTH = 4  # that are looked at to say how sure the model is
LOG = "reading.jsonl"
QUESTION = DataConfig(path="").question  # that lists answer
_OF_NUMBERS = "Describe each."
KINDS = (*LEARNED, "number")
WEIGHTS = {"label": 1.0, "total": 1.0, "answer": 1.0, "number": 0.5}  # of each kind's mean
LIST_SHARE = 0.8  # of the lessons; the others are numbers


def numbers_lesson(rng: random.Random) -> Lesson:
    """Consecutive numbers: the way is known from the second one on."""
    step, length = rng.choice((1, -1)), rng.randint(4, 16)
    first = rng.randrange(MAX_COUNT + 1)
    numbers = [n for n in range(first, first + step * length, step) if 0 <= n <= MAX_COUNT]
    spelling = rng.choice(NUMBER_FORMS)
    text, learned = "", []
    for i, number in enumerate(numbers):
        word = spelling.format(number)
        if i >= 2:
            learned.append(("number", len(text), len(text) + len(word)))
        text += word if word.endswith("\n") else f"{word}\n"
    return Lesson(_OF_NUMBERS, text, tuple(learned))


def lessons(rng: random.Random, num: int, question: str) -> list[Lesson]:
    """A mix of both."""
    drawn = []
    for _ in range(num):
        is_list = rng.random() < LIST_SHARE
        length = rng.randint(0, MAX_LENGTH)
        drawn.append(list_lesson(rng, length, question) if is_list else numbers_lesson(rng))
    return drawn


@dataclass(frozen=True)
class TextBatch:
    """Texts of one batch, padded on the right.

    Attributes:
        input_ids: int64 [B, L].
        kinds: Index into `KINDS` of what is learned about each token, -1 where nothing is; [B, L].
    """

    input_ids: torch.Tensor
    kinds: torch.Tensor


def collate(inputs: QwenVLInputs, drawn: Sequence[Lesson]) -> TextBatch:
    """Lessons as chats without a video."""
    ids, kinds = [], []
    for lesson in drawn:
        prompt = inputs.tokenizer.apply_chat_template(
            [{"role": "user", "content": lesson.question}],
            tokenize=False,
            add_generation_prompt=True,
        )
        encoded = inputs.tokenizer(
            prompt + lesson.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ends = torch.tensor(encoded["offset_mapping"]) - len(prompt)  # [L, 2]
        of_token = torch.full((len(ends),), -1)
        for kind, first, end in lesson.learned:
            of_token[(ends[:, 0] < end) & (ends[:, 1] > first)] = KINDS.index(kind)
        ids.append(torch.tensor(encoded["input_ids"]))
        kinds.append(of_token)
    pad = torch.nn.utils.rnn.pad_sequence
    return TextBatch(
        pad(ids, batch_first=True, padding_value=inputs.tokenizer.pad_token_id),
        pad(kinds, batch_first=True, padding_value=-1),
    )


def log_probs(model: Any, batch: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token that is learned: its log-probability, float32 [N], and its kind, int64 [N]."""
    num, length = batch.input_ids.shape
    positions = torch.arange(length).expand(3, num, length)
    hidden = model.model(
        input_ids=batch.input_ids, position_ids=positions, use_cache=False
    ).last_hidden_state
    is_learned = batch.kinds[:, 1:] >= 0
    logits = model.lm_head(hidden[:, :-1][is_learned]).float()
    wanted = batch.input_ids[:, 1:][is_learned]
    values = -functional.cross_entropy(logits, wanted, reduction="none")
    return values, batch.kinds[:, 1:][is_learned]


def losses(model: Any, batch: TextBatch) -> dict[str, torch.Tensor]:
    """Mean cross-entropy of each kind that the batch holds: few totals count as many labels do."""
    values, kinds = log_probs(model, batch)
    means = {kind: -values[kinds == i] for i, kind in enumerate(KINDS)}
    return {kind: part.mean() for kind, part in means.items() if len(part)}


def losses_of_lessons(
    model: Any, inputs: QwenVLInputs, num_lessons: int, rng: random.Random
) -> dict[str, torch.Tensor]:
    """As `losses`, of some lessons that are drawn."""
    return losses(model, collate(inputs, lessons(rng, num_lessons, QUESTION)))


def weighted(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the kinds' losses, by their weights."""
    return torch.stack([WEIGHTS[kind] * part for kind, part in parts.items()]).sum()


def certainty(
    model: Any, inputs: QwenVLInputs, question: str, seed: int
) -> dict[int, tuple[float, float]]:
    """Of each length of a right list: the lowest probability of its total, and of its answer.

    Args:
        model: With its weights.
        inputs: Of the model.
        question: That the lists answer.
        seed: Decides the lists, `LISTS_PER_LENGTH` of each length.
    """
    result = {}
    with torch.no_grad():
        for length in range(MAX_LENGTH + 1):
            rng = random.Random(f"{seed}:{length}")
            drawn = [list_lesson(rng, length, question) for _ in range(LISTS_PER_LENGTH)]
            values, kinds = log_probs(model, collate(inputs, drawn))
            total, answer = (
                float(values[kinds == KINDS.index(kind)].min().exp())
                for kind in ("total", "answer")
            )
            result[length] = (total, answer)
    return result


def teach(args: argparse.Namespace) -> None:
    """Train the text part of a checkpoint on lessons and write it with its log."""
    torch.manual_seed(args.seed)
    out, start = Path(args.out), Path(args.start)
    refuse_filled(out, overwrite=args.overwrite)
    inputs = QwenVLInputs(start)
    model: Any = load_model(start, dtype="float32").train()
    shape_number_embeddings(model, inputs.tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(component_of(name) == "language_model")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained)
    rng = random.Random(args.seed)
    rows: list[str] = []
    began = time.monotonic()
    for step in range(args.steps):
        rate = learning_rate(step, args.steps, args.lr, args.warmup)
        parts = losses_of_lessons(model, inputs, args.batch_size, rng)
        weighted(parts).backward()
        norm = take_step(optimizer, rate)
        row = {"step": step + 1} | {f"{kind}_loss": part.item() for kind, part in parts.items()}
        row |= {"grad_norm": norm, "lr": rate, "time_s": time.monotonic() - began}
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            lowest = certainty(model, inputs, QUESTION, seed=1)
            row |= {"lowest_total": min(total for total, _ in lowest.values())}
            row |= {"lowest_answer": min(answer for _, answer in lowest.values())}
            log.info("%s", {key: round(value, 4) for key, value in row.items()})
        rows.append(json.dumps(row))
    save_base(model, inputs, out, logs_of(start) | {LOG: rows})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", required=True, help="checkpoint to go on from")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --out")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    teach(parser.parse_args())


if __name__ == "__main__":
    main()
