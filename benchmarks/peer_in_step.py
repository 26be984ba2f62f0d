"""A peer of peers.py: one process in which each clip is decoded, answered and learned from in turn.

As ActRep-R1 does it: `generate` inside the step for one clip with G answers, the clip's pixels
repeated G times for the forward pass, logits of all tokens, log-probabilities answer by answer. The
gradients of a step's clips are added up for one optimiser step. Left out, in its favour: the
forward passes of a reference model.
"""

import time
from typing import Any

import numpy as np
import torch
from peer_work import Notes, Work

from actrep_ray.models.qwen_vl import EncodedPrompt, load_model
from data_prep.video import read_frames


def run_in_step(work: Work) -> dict[str, Any]:
    """All steps; returns what was noted."""
    model: Any = load_model(work.recipe.model.path, dtype="float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.recipe.learner.lr, weight_decay=0.0)
    notes, score = Notes(), work.scorer()
    torch.manual_seed(work.recipe.seed)
    notes.begin()
    for clips in work.steps:
        lengths: list[int] = []
        rewards: list[float] = []
        for clip in clips:
            start = time.perf_counter()
            plan = work.plan(clip)
            prompt = work.inputs.encode(work.question(clip), plan, read_frames(plan))
            answers, mask = generate(model, work, prompt)
            notes.add("generate", time.perf_counter() - start)
            texts = work.inputs.tokenizer.batch_decode(answers, skip_special_tokens=True)
            earned = torch.tensor([score(clip.id, text) for text in texts])
            advantages = (earned - earned.mean()) / (earned.std() + 1e-4)
            start = time.perf_counter()
            loss = group_loss(model, work, prompt, answers, mask, advantages)
            (loss / len(clips)).backward()
            notes.add("learn", time.perf_counter() - start)
            lengths += mask.sum(1).tolist()
            rewards += earned.tolist()
            notes.prompt_tokens.append(float(len(prompt.input_ids)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.recipe.learner.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        notes.end_step()
        notes.lengths.append(lengths)
        notes.rewards.append(float(np.mean(rewards)))
    return notes.summary()


@torch.no_grad()
def generate(model: Any, work: Work, prompt: EncodedPrompt) -> tuple[torch.Tensor, torch.Tensor]:
    """G answers, int64 [G, R], and which of their tokens count, int64 [G, R]."""
    ids = prompt.input_ids[None]
    model.eval()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=2 * (ids == work.inputs.video_pad_id).int(),
        pixel_values_videos=prompt.pixel_values,
        video_grid_thw=prompt.grid_thw,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        suppress_tokens=list(work.inputs.visual_token_ids),
        num_return_sequences=work.group_size,
        max_new_tokens=work.max_tokens,
    )
    model.train()
    answers = output[:, ids.shape[1] :]
    is_end = (answers == work.inputs.end_ids[0]).int()
    return answers, ((is_end.cumsum(1) - is_end) == 0).long()


def group_loss(
    model: Any,
    work: Work,
    prompt: EncodedPrompt,
    answers: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
) -> torch.Tensor:
    """GRPO's loss of a group, averaged within answers and then over them."""
    size, num_prompt = work.group_size, len(prompt.input_ids)
    ids = torch.cat([prompt.input_ids.expand(size, -1), answers], dim=1)
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(size, num_prompt, dtype=torch.long), mask], dim=1),
        mm_token_type_ids=2 * (ids == work.inputs.video_pad_id).int(),
        pixel_values_videos=prompt.pixel_values.repeat(size, 1),
        video_grid_thw=prompt.grid_thw.repeat(size, 1),
        use_cache=False,
    ).logits[:, :-1]
    log_probs = torch.stack(
        [
            row.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
            for row, tokens in zip(logits, ids[:, 1:], strict=True)
        ]
    )[:, num_prompt - 1 :]
    ratio = torch.exp(log_probs - log_probs.detach())
    token_loss = -ratio * advantages[:, None]
    return ((token_loss * mask).sum(1) / mask.sum(1)).mean()
