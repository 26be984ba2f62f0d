"""An image in the learner is what transformers' own path for images computes, beside videos too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actrep_ray.config import ConfigError, VideoConfig
from actrep_ray.learner.batch.packing import collate, split_row
from actrep_ray.learner.policy import Policy
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.tiny import FAMILIES
from actrep_ray.records import Prompt
from actrep_ray.rollout.vllm_engine import VllmEngine
from data_prep.video import plan_image, read_frames
from tests.images import draw_image


@torch.no_grad()
def by_transformers(
    model: Any, inputs: QwenVLInputs, row: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Log-probabilities of a row's answers by tokens, positions and pixels of transformers alone.

    Also the positions of the prompt, int64 [3, P].
    """
    num_before = len(row.plan.before)
    prompt = inputs.processor(
        text=[inputs.prompt_text(row.question, shown="image", num_before=num_before)],
        images=[Image.fromarray(read_frames(plan)[0]) for plan in row.plan.shown],
        do_resize=False,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    ids, kinds, grid = prompt["input_ids"], prompt["mm_token_type_ids"], prompt["image_grid_thw"]
    values = []
    for response in row.responses:
        answer = torch.from_numpy(response).long()[None]
        whole = torch.cat([ids, answer], dim=1)
        logits = model(
            input_ids=whole,
            mm_token_type_ids=torch.cat([kinds, torch.zeros_like(answer)], dim=1),
            pixel_values=prompt["pixel_values"],
            image_grid_thw=grid,
            use_cache=False,
        ).logits[0, ids.shape[1] - 1 : -1]
        logits[:, list(inputs.visual_token_ids)] = -torch.inf
        values.append(logits.log_softmax(dim=-1).gather(1, answer.T)[:, 0])
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
    return values, positions[:, 0]


@torch.no_grad()
def by_learner(model: Any, inputs: QwenVLInputs, rows: list[Any]) -> list[list[torch.Tensor]]:
    """Log-probabilities of the answers of rows that lie in one packed batch."""
    policy = Policy(model, inputs.visual_token_ids)
    pieces = [
        piece
        for i, row in enumerate(rows)
        for piece in split_row(
            i,
            row.row_id,
            inputs.encode(row.question, row.plan, *map(read_frames, row.plan.shown)),
            row.responses,
            budget=10_000,
            shares_prefix=True,
        )
    ]
    batch = collate(pieces)
    log_probs, _ = policy(batch, temperature=1.0)
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for k in sorted(range(len(batch.answers)), key=lambda k: batch.answers[k]):
        found[batch.answers[k][0]].append(log_probs[k][batch.target_mask[k]])
    return found


def test_vllm_without_room_refuses_an_image(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png", 0, (96, 128))
    plan = plan_image(path, (96, 128), min_pixels=1024, max_pixels=12288, factor=32)
    engine = VllmEngine.__new__(VllmEngine)  # refused before anything is asked of it
    engine._max_images = 0
    told = r"'a' shows 1 .* room for 0 .*rollout\.takes_images=true"
    with pytest.raises(ConfigError, match=told):
        engine.request(Prompt("p", "a", "What is shown?", plan))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_beside_a_video_are_those_of_transformers(
    family: str,
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    inputs = QwenVLInputs(tiny_model(family))
    model = load_model(tiny_model(family), dtype="float32").eval()
    with torch.no_grad():  # those of a fresh model hardly depend on pixels
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight *= 6
    clip, first, second = make_rows(inputs, 3, 2)
    config = VideoConfig(min_pixels=3136, max_pixels=96 * 128)
    plans = [
        plan_image(
            draw_image(tmp_path / f"{i}.png", i, size),
            size,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            factor=inputs.factor,
        )
        for i, size in enumerate(((96, 128), (64, 64)))
    ]
    several = replace(plans[1], before=(plans[0], plans[1]))
    rows = [replace(first, plan=plans[0]), clip, replace(second, plan=plans[1])]
    rows.append(replace(second, plan=several))
    found = by_learner(model, inputs, rows)
    stock = load_model(tiny_model(family), dtype="float32").eval()
    stock.load_state_dict(model.state_dict())  # without the learner's attention
    for i in (0, 2, 3):
        expected, positions = by_transformers(stock, inputs, rows[i])
        frames = map(read_frames, rows[i].plan.shown)
        prompt = inputs.encode(rows[i].question, rows[i].plan, *frames)
        np.testing.assert_array_equal(prompt.position_ids, positions)
        assert prompt.next_position == int(positions.max()) + 1
        for a, b in zip(found[i], expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    [alone] = by_learner(model, inputs, [clip])
    for a, b in zip(found[1], alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    # The comparison can fail: another image gives other numbers.
    other = by_transformers(stock, inputs, replace(rows[0], plan=plans[1]))[0]
    assert max(float((a - b).abs().max()) for a, b in zip(found[0], other, strict=True)) > 1e-3
    other_way = replace(plans[0], before=(plans[1], plans[1]))
    other = by_transformers(stock, inputs, replace(rows[3], plan=other_way))[0]
    assert max(float((a - b).abs().max()) for a, b in zip(found[3], other, strict=True)) > 1e-3
