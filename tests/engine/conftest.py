"""Clips, small checkpoints and the reference that engines are compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actrep_ray.config import RolloutConfig, VideoConfig
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import Prompt, RolloutGroup
from data_prep.schema import Clip
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import plan_image
from data_prep.video_writer import encode_mp4
from tests.images import draw_image

# (frames per second, most frames): 2, 4 and 8 fps whole; odd numbers of frames at each rate.
SAMPLINGS = ((2.0, 256), (4.0, 256), (8.0, 256), (2.0, 9), (4.0, 17), (8.0, 5))


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoConfig:
    return VideoConfig(cache_dir=str(tmp_path_factory.mktemp("frames")), cache_gib=0.5)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    clips = []
    for index in range(2):
        spec = clip_spec("easy", 7, "train", index)
        path = folder / f"{index}.mp4"
        encode_mp4(path, draw_clip(spec), spec.fps)
        clips.append(replace(spec.clip, video=str(path)))
    return clips


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, bool], Path]:
    """Folder of a small checkpoint by family, seed and whether its output layer is tied.

    Weights are larger than a fresh model's, so that log-probabilities depend on every position
    and pixel; with fresh ones they hardly do, and anything would agree.
    """
    folder = tmp_path_factory.mktemp("models")

    def write(family: str, seed: int, is_tied: bool) -> Path:
        path = folder / f"{family}-{seed}-{is_tied}"
        if not path.exists():
            write_tiny_model(path, family=family, seed=seed, tied=is_tied)
            file = path / "model.safetensors"
            weights = {
                name: weight * 6 if weight.ndim > 1 and "embed" not in name else weight
                for name, weight in load_file(file).items()
            }
            save_file(weights, file, metadata={"format": "pt"})
        return path

    return write


@pytest.fixture(scope="session")
def rollout() -> RolloutConfig:
    return RolloutConfig(max_model_len=1024, max_num_seqs=64, kv_cache_gib=0.25)


@pytest.fixture(scope="session")
def make_prompts(clips: list[Clip], video: VideoConfig) -> Callable[[QwenVLInputs], list[Prompt]]:
    """A prompt for each sampling, clips taken in turn."""

    def make(inputs: QwenVLInputs) -> list[Prompt]:
        prompts = []
        for i, (fps, max_frames) in enumerate(SAMPLINGS):
            clip = clips[i % len(clips)]
            settings = video.model_copy(update={"fps": fps, "max_frames": max_frames})
            plan = inputs.plan(clip, settings)
            prompts.append(Prompt(f"prompt-{i}", clip.id, "How many times?", plan))
        return prompts

    return make


@pytest.fixture(scope="session")
def make_image_prompts(
    video: VideoConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[QwenVLInputs], list[Prompt]]:
    """Prompts about three images: wide, tall, and of one size with the first."""
    folder = tmp_path_factory.mktemp("images")
    sizes = ((96, 160), (160, 64), (96, 160))
    paths = [draw_image(folder / f"{i}.png", i, size) for i, size in enumerate(sizes)]

    def make(inputs: QwenVLInputs) -> list[Prompt]:
        plans = [
            plan_image(
                *shown,
                min_pixels=video.min_pixels,
                max_pixels=video.max_pixels,
                factor=inputs.factor,
            )
            for shown in zip(paths, sizes, strict=True)
        ]
        return [
            Prompt(f"image-{i}", f"image-{i}", "What is shown?", plan)
            for i, plan in enumerate(plans)
        ]

    return make


@pytest.fixture(scope="session")
def make_reference(video: VideoConfig) -> "Callable[[Path], Reference]":
    return lambda path: Reference(path, video)


@dataclass
class Reference:
    """Log-probabilities by transformers with the learner's inputs."""

    path: Path
    video: VideoConfig

    def __post_init__(self) -> None:
        self.inputs = QwenVLInputs(self.path)
        self.model = load_model(self.path, dtype="float32").eval()
        self.frames = FrameCache(self.video.cache_dir, 2**29)

    @torch.no_grad()
    def log_probs(self, group: RolloutGroup, *, temperature: float = 1.0) -> list[np.ndarray]:
        """Of every token of every answer, visual tokens left out of the softmax."""
        prompt = group.prompt
        frames = self.frames.get_all(prompt.plan)
        encoded = self.inputs.encode(prompt.question, prompt.plan, *frames)
        assert len(encoded.input_ids) == group.num_prompt_tokens
        results = []
        for rollout in group.rollouts:
            answer = torch.from_numpy(rollout.token_ids.astype(np.int64))
            positions = (encoded.next_position + torch.arange(len(answer))).expand(3, -1)
            logits = self.model(
                input_ids=torch.cat([encoded.input_ids, answer])[None],
                position_ids=torch.cat([encoded.position_ids, positions], dim=1)[:, None],
                pixel_values_videos=encoded.pixel_values,
                video_grid_thw=encoded.grid_thw,
                use_cache=False,
            ).logits[0, -len(answer) - 1 : -1]
            logits[:, list(self.inputs.visual_token_ids)] = -torch.inf
            log_probs = torch.log_softmax(logits / temperature, dim=-1)
            results.append(log_probs.gather(1, answer[:, None])[:, 0].numpy())
        return results

    def gap(self, groups: Sequence[RolloutGroup], *, temperature: float = 1.0) -> float:
        """Mean absolute difference over all tokens of all groups."""
        differences = [
            np.abs(expected - rollout.rollout_log_probs)
            for group in groups
            for expected, rollout in zip(
                self.log_probs(group, temperature=temperature), group.rollouts, strict=True
            )
        ]
        return float(np.concatenate(differences).mean())
