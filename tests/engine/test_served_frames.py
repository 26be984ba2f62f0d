"""A checkpoint behind vLLM's OpenAI server, in plain transformers and in `evaluate`.

Files of lengths that the rules of others do not meet go through `actrep serve`; files of an even
whole number of frames through transformers as well.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers.video_utils import load_video

from actrep_ray.cli.serve import server_command
from actrep_ray.config import Recipe, override
from actrep_ray.evaluation.predictors import predict
from actrep_ray.learner.folders import read_processor_files
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.shown_frames import with_frames
from actrep_ray.rollout.hf_engine import HfEngine
from data_prep.schema import Clip
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video.reader import read_frames
from data_prep.video_writer import encode_mp4
from tests.engine.servers import started
from tests.free_port import free_port

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
NUM_FILES = 50


def recipe_of(model: Path, cache: Path) -> Recipe:
    settings = [
        f"model.path={json.dumps(str(model))}", "device=cpu", "video.fps=4",
        "video.min_pixels=1024", "video.max_pixels=4096", "video.max_frames=40",
        f"video.cache_dir={json.dumps(str(cache))}", "rollout.engine=hf",
        "rollout.max_model_len=2048", "rollout.max_response_tokens=12", "name=served",
    ]  # fmt: skip
    return override(Recipe(), settings)


def trained(model: Path, folder: Path) -> tuple[Path, Recipe]:
    """Give a model the processor files that a training writes; also the recipe of that."""
    recipe = recipe_of(model, folder / "frames")
    for name, content in with_frames(read_processor_files(model), recipe.video).items():
        (model / name).write_bytes(content)
    (folder / "videos").mkdir()
    return model, recipe


def write_videos(folder: Path, *, is_even: bool, side: int = 0) -> list[Clip]:
    """Files of all lengths and of 96 x 160 pixels, or of an even number of frames and any side."""
    clips = []
    for index in range(NUM_FILES):
        spec = clip_spec("easy", 11, "test", index)
        frames = draw_clip(spec)
        if is_even:
            frames = frames[: (2 + index % 6) * spec.fps, :side, :side]  # whole seconds
        else:  # 2.2 s and more, in steps that 4 frames a second do not divide
            frames = np.pad(
                frames[: 2 * spec.fps + 2 + index], ((0, 0), (16, 16), (48, 48), (0, 0))
            )
        path = folder / f"{index:02d}.mp4"
        encode_mp4(path, frames, spec.fps)
        clips.append(clip_of_video(path))
    return clips


def evaluated(clips: Sequence[Clip], model: Path, recipe: Recipe) -> list[str]:
    engine = HfEngine(model, recipe.rollout, recipe.video, device="cpu", seed=0)
    found = predict(clips, engine, QwenVLInputs(model), recipe)
    return [prediction.text for prediction in found]


def prompt_ids(clips: Sequence[Clip], model: Path, recipe: Recipe) -> list[list[int]]:
    inputs = QwenVLInputs(model)
    plans = [inputs.plan(clip, recipe.video) for clip in clips]
    question = recipe.data.question
    return [inputs.encode(question, plan, read_frames(plan)).input_ids.tolist() for plan in plans]


@contextmanager
def serving(recipe: Recipe, model: Path) -> Iterator[str]:
    port = free_port()
    command, environment = server_command(recipe, model, host="127.0.0.1", port=port, name="served")
    with started(command, environment):
        yield f"http://127.0.0.1:{port}/v1"


def ask(url: str, clip: Clip, recipe: Recipe, inputs: QwenVLInputs) -> tuple[list[int], str]:
    """Prompt ids and the answer; a tag of the vision tower is left out as engines leave it out."""
    data = base64.b64encode(Path(clip.video).read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}},
        {"type": "text", "text": recipe.data.question},
    ]
    body: dict[str, Any] = {
        "model": "served",
        "messages": [{"role": "user", "content": content}],
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stop_token_ids": list(inputs.end_ids),
        "logit_bias": {str(token): -100 for token in inputs.visual_token_ids},
    }
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["prompt_token_ids"], inputs.decode_answer(found["choices"][0]["token_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_checkpoint_answers_as_it_is_evaluated(
    family: str, checkpoint: Callable[[str, int, bool], Path], tmp_path: Path
) -> None:
    model, recipe = trained(checkpoint(family, 3, False), tmp_path)
    clips = write_videos(tmp_path / "videos", is_even=False)
    inputs = QwenVLInputs(model)
    with serving(recipe, model) as url:
        served = [ask(url, clip, recipe, inputs) for clip in clips]
        refused = httpx.post(
            f"{url}/chat/completions",
            json={
                "model": "served",
                "messages": [{"role": "user", "content": [
                    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
                ]}],
            },
            timeout=120,
            trust_env=False,
        )  # fmt: skip
    assert refused.status_code == 400, refused.text
    assert [ids for ids, _ in served] == prompt_ids(clips, model, recipe)
    answers = evaluated(clips, model, recipe)
    assert len(set(answers)) > NUM_FILES // 5  # frames are looked at
    assert sum(a == b for (_, a), b in zip(served, answers, strict=True)) == NUM_FILES


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_answers_as_it_is_evaluated(
    family: str, checkpoint: Callable[[str, int, bool], Path], tmp_path: Path
) -> None:
    model, recipe = trained(checkpoint(family, 3, False), tmp_path)
    inputs = QwenVLInputs(model)
    clips = write_videos(
        tmp_path / "videos", is_even=True, side=64 // inputs.factor * inputs.factor
    )
    plain = load_model(model, dtype="float32").eval()
    found = [_by_transformers(clip, inputs, plain, recipe) for clip in clips]
    assert [ids for ids, _ in found] == prompt_ids(clips, model, recipe)
    answers = evaluated(clips, model, recipe)
    num_equal = sum(a == b for (_, a), b in zip(found, answers, strict=True))
    assert len(set(answers)) > NUM_FILES // 5
    if family.startswith("qwen3_vl"):  # to the others transformers gives positions of its own
        assert num_equal == NUM_FILES


def _by_transformers(
    clip: Clip, inputs: QwenVLInputs, plain: Any, recipe: Recipe
) -> tuple[list[int], str]:
    """Prompt ids and the answer with the processor's own rate, limits and pixels."""
    processor = inputs.processor
    video = processor.video_processor

    def sample(metadata: Any, **_: Any) -> Any:
        return video.sample_frames(metadata=metadata, fps=video.fps)

    # torchcodec, its default, is not in the environment; PyAV gives the same frames.
    frames, metadata = load_video(clip.video, backend="pyav", sample_indices_fn=sample)
    prompt = processor(
        text=[inputs.prompt_text(recipe.data.question)],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    num_tokens = prompt["input_ids"].shape[1]
    with torch.no_grad():
        tokens = plain.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=recipe.rollout.max_response_tokens,
            eos_token_id=list(inputs.end_ids),
            suppress_tokens=list(inputs.visual_token_ids),
        )[0, num_tokens:].tolist()
    return prompt["input_ids"][0].tolist(), inputs.decode_answer(tokens)
