"""Shared-prefix packing: a prompt and its answers as one row, several rows as one batch.

Video prompts are long and a group repeats its prompt G times, so a group is one row::

    tokens      v v v v q q | a a a a | b b      (answers a, b, c; the last token of an answer
    answer      0 0 0 0 0 0 | 1 1 1 1 | 2 2       is predicted but never read, so it is left out)
    position    0 1 2 3 4 5 | 6 7 8 9 | 6 7
    sees        the prompt and its own answer, causally

which costs P + sum(R_i) tokens in place of G * (P + R) and gives the same log-probabilities and
gradients: no answer sees another, and each continues at the position that follows the prompt.
The vision tower runs once for each row. Prior art: Prefix Grouper, arXiv 2506.05433.

A row that would exceed the token budget is cut into rows of fewer answers, each with the prompt;
`packing: none` is the case of one answer a row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from actrep_ray.config import ConfigError
from actrep_ray.learner.batch.attention import PrefixLayout, prefix_mask
from actrep_ray.models.qwen_vl import EncodedPrompt

AnswerKey = tuple[int, int]
"""(number of the learner row, number of the answer in it)"""

BATCH_COST = 1 / 16  # of a micro-batch, as a share of a full one; see docs/decisions/006


@dataclass(frozen=True)
class PackedRow:
    """One prompt with some of its answers.

    Attributes:
        row: Number of the learner row that it comes from.
        prompt: The prompt, encoded.
        answers: Numbers of the answers in the learner row.
        responses: int64 [R_i], the tokens of those answers.
    """

    row: int
    prompt: EncodedPrompt
    answers: tuple[int, ...]
    responses: tuple[torch.Tensor, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that are read: the prompt, and each answer without its last token."""
        return packed_length(len(self.prompt.input_ids), [len(r) for r in self.responses])


@dataclass(frozen=True)
class PackedBatch:
    """Rows padded to the longest, and where to find the tokens that are predicted.

    A answers of at most T tokens lie in B rows of at most L tokens.

    Attributes:
        input_ids: int64 [B, L]
        position_ids: int64 [3, B, L]
        layout: Who sees whom; None if every row holds one answer, where plain causal attention is
            the same.
        pixel_values: float32 [num_patches, patch_dim], of all rows with a clip
        features: [taps, num_patches, width] in place of them, if the tower is frozen
        grid_thw: int64 [rows with a clip, 3]
        predictors: int64 [A, T], index in the flat [B * L] of the token that predicts each target
        targets: int64 [A, T], the answers' tokens
        target_mask: bool [A, T], False on padding
        answers: Which each of the A answers is
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: PrefixLayout | None
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    target_mask: torch.Tensor
    answers: tuple[AnswerKey, ...]
    features: torch.Tensor | None = None

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return int(self.target_mask.sum())

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        layout = self.layout and self.layout.to(device)
        return replace(self, layout=layout, **moved)

    def padded(self, values: Sequence[np.ndarray]) -> torch.Tensor:
        """Values of the answers' tokens, float32 [R_i] each, laid out as `targets`: [A, T]."""
        out = np.zeros(self.targets.shape, dtype=np.float32)
        for a, value in enumerate(values):
            out[a, : len(value)] = value
        return torch.from_numpy(out).to(self.targets.device)


def packed_length(num_prompt_tokens: int, response_lengths: Iterable[int]) -> int:
    """Tokens of a row: every answer's last token is predicted, not read."""
    return num_prompt_tokens + sum(length - 1 for length in response_lengths)


def split_row(
    row: int,
    row_id: str,
    prompt: EncodedPrompt,
    responses: Sequence[np.ndarray],
    *,
    budget: int,
    shares_prefix: bool,
) -> list[PackedRow]:
    """Lay one prompt and its answers out as one row, or as several where the budget demands it.

    Args:
        row: Number of the learner row.
        row_id: Its name, for messages.
        prompt: The encoded prompt, P tokens.
        responses: int [R_i] of each answer, R_i of at least 1.
        budget: Most tokens of a row.
        shares_prefix: False puts each answer into a row of its own.

    Raises:
        ValueError: if an answer is empty.
        ConfigError: if one does not fit the budget with its prompt.
    """
    rows: list[list[int]] = []
    length = 0
    num_prompt_tokens = len(prompt.input_ids)
    for i, response in enumerate(responses):
        if len(response) == 0:
            raise ValueError(f"{row_id}: answer {i} has no tokens, expected at least 1")
        alone = packed_length(num_prompt_tokens, [len(response)])
        if alone > budget:
            raise ConfigError(
                f"{row_id}: prompt and answer {i} are {alone} tokens, more than "
                f"learner.micro_batch_tokens={budget}: raise it, or lower video.max_frames, "
                "video.max_pixels or rollout.max_response_tokens"
            )
        if shares_prefix and rows and length + len(response) - 1 <= budget:
            rows[-1].append(i)
            length += len(response) - 1
        else:
            rows.append([i])
            length = alone
    tokens = [torch.from_numpy(np.asarray(response, dtype=np.int64)) for response in responses]
    return [
        PackedRow(row, prompt, tuple(numbers), tuple(tokens[i] for i in numbers))
        for numbers in rows
    ]


def micro_batches(rows: Sequence[PackedRow], budget: int) -> list[list[PackedRow]]:
    """Group rows of like length so that rows times the longest is at most `budget` tokens.

    Longest first: if memory does not suffice, the first batch says so. Of all ways to cut the
    sorted rows, the one that computes least: padding included, and a fixed cost for each batch.
    """
    ordered = sorted(rows, key=lambda row: (-row.num_tokens, row.row, row.answers))
    best = [(0.0, 0)]  # cost of the first n rows, and where the last batch of them begins
    for end in range(1, len(ordered) + 1):
        choices = [(best[end - 1][0] + ordered[end - 1].num_tokens, end - 1)]
        for start in range(end - 2, -1, -1):
            tokens = (end - start) * ordered[start].num_tokens
            if tokens > budget:
                break
            choices.append((best[start][0] + tokens, start))
        cost, start = min(choices)
        best.append((cost + budget * BATCH_COST, start))
    batches: list[list[PackedRow]] = []
    end = len(ordered)
    while end:
        start = best[end][1]
        batches.append(ordered[start:end])
        end = start
    return batches[::-1]


def collate(rows: Sequence[PackedRow]) -> PackedBatch:
    """Pad rows to the longest and index what they predict."""
    length = max(row.num_tokens for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids = torch.zeros(3, len(rows), length, dtype=torch.long)
    reads: list[torch.Tensor] = []
    predictors: list[torch.Tensor] = []
    for b, row in enumerate(rows):
        end = len(row.prompt.input_ids)
        input_ids[b, :end] = row.prompt.input_ids
        position_ids[:, b, :end] = row.prompt.position_ids
        last_of_prompt = b * length + end - 1
        for response in row.responses:
            start, end = end, end + len(response) - 1
            input_ids[b, start:end] = response[:-1]
            position_ids[:, b, start:end] = row.prompt.next_position + torch.arange(end - start)
            reads.append(torch.arange(b * length + start, b * length + end))
            predictors.append(torch.cat([torch.tensor([last_of_prompt]), reads[-1]]))
    targets = [response for row in rows for response in row.responses]
    is_packed = any(len(row.responses) > 1 for row in rows)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        layout=_layout(rows, reads) if is_packed else None,
        pixel_values=_joined([row.prompt.pixel_values for row in rows]),
        grid_thw=torch.cat([row.prompt.grid_thw for row in rows]),
        predictors=_pad(predictors),
        targets=_pad(targets),
        target_mask=_pad([torch.ones(len(t), dtype=torch.bool) for t in targets]),
        answers=tuple((row.row, answer) for row in rows for answer in row.answers),
        features=_joined_features([row.prompt.features for row in rows]),
    )


def _layout(rows: Sequence[PackedRow], reads: Sequence[torch.Tensor]) -> PrefixLayout:
    counts = torch.tensor([len(row.responses) for row in rows])
    prefixes = torch.tensor([len(row.prompt.input_ids) for row in rows])
    token_mask = _pad([torch.ones(len(indices), dtype=torch.bool) for indices in reads])
    return PrefixLayout(
        rows=torch.arange(len(rows)).repeat_interleave(counts),
        tokens=_pad(reads),
        token_mask=token_mask,
        mask=prefix_mask(prefixes.repeat_interleave(counts), token_mask),
    )


def _joined(pixels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Those of all clips; what has no clip has no width either."""
    return torch.cat([part for part in pixels if part.shape[1]] or list(pixels))


def _joined_features(of_rows: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    of_clips = [features for features in of_rows if features is not None]
    return torch.cat(of_clips, dim=1) if of_clips else None


def _pad(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
