"""Two peers of peers.py: TRL's GRPOTrainer, stock (frames as images) and with video.

What is cheap to give them they are given: frames decoded in memory beforehand, no gradient
checkpointing, no reference model, no checkpoints, a micro-batch that suits a CPU's caches.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peer_work import Notes, Work
from PIL import Image
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from actrep_ray.models.qwen_vl import video_metadata
from data_prep.schema import Clip
from data_prep.video import read_frames


def run_trl(work: Work, folder: Path, *, with_video: bool, micro_batch: int) -> dict[str, Any]:
    """All steps; returns what was noted.

    Args:
        work: Clips, settings.
        folder: Where the trainer may write.
        with_video: Whether clips are videos, by a subclass; else each frame is an image.
        micro_batch: Answers of one forward pass of the learner.
    """
    notes, material = Notes(), Material(work)
    processor = work.inputs.processor
    processor.tokenizer.padding_side = "left"
    num_pixels = work.inputs.factor**2  # frames are of the right size: resizing leaves them so
    processor.image_processor.size = {"shortest_edge": num_pixels, "longest_edge": 2**30}
    rows = Dataset.from_dict({"clip": [clip.id for step in work.steps for clip in step]})
    trainer = (VideoTrainer if with_video else TimedTrainer)(
        model=work.recipe.model.path,
        reward_funcs=material.reward,
        args=trainer_settings(work, folder, micro_batch),
        train_dataset=rows.with_transform(material.videos if with_video else material.images),
        processing_class=processor,
        callbacks=[Clock(notes)],
    )
    trainer.notes, trainer.material = notes, material
    material.notes = notes
    trainer.train()
    return notes.summary()


def trainer_settings(work: Work, folder: Path, micro_batch: int) -> GRPOConfig:
    size = len(work.steps[0]) * work.group_size
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_generations=work.group_size,
        max_completion_length=work.max_tokens,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=size // micro_batch,
        max_steps=len(work.steps),
        shuffle_dataset=False,
        learning_rate=work.recipe.learner.lr,
        lr_scheduler_type="constant",
        max_grad_norm=work.recipe.learner.max_grad_norm,
        beta=0.0,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": list(work.inputs.visual_token_ids)},
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work.recipe.seed,
    )


class Material:
    """Frames of all clips in memory, and what is made of them: prompts and rewards."""

    notes: Notes

    def __init__(self, work: Work) -> None:
        self.work, self._score = work, work.scorer()
        self.clips = {clip.id: clip for step in work.steps for clip in step}
        self.frames = {name: read_frames(work.plan(clip)) for name, clip in self.clips.items()}

    def images(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Rows of the stock trainer: a message with an image for each frame."""
        frames = [[Image.fromarray(f) for f in self.frames[name]] for name in batch["clip"]]
        return {
            "clip": batch["clip"],
            "prompt": [
                self._message(self.clips[name], [{"type": "image"}] * len(images))
                for name, images in zip(batch["clip"], frames, strict=True)
            ],
            "images": frames,
        }

    def videos(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Rows of the subclass: a message that names its clip."""
        return {
            "clip": batch["clip"],
            "prompt": [
                self._message(self.clips[name], [{"type": "video", "video": name}])
                for name in batch["clip"]
            ],
        }

    def reward(
        self, clip: list[str], completions: list[Any], completion_ids: list[Any], **_: Any
    ) -> list[float]:
        """In TRL's signature: one reward for each answer."""
        texts = [answer[0]["content"] for answer in completions]
        rewards = [self._score(name, text) for name, text in zip(clip, texts, strict=True)]
        self.notes.lengths.append([len(ids) for ids in completion_ids])
        self.notes.rewards.append(float(np.mean(rewards)))
        return rewards

    def _message(self, clip: Clip, visual: list[dict[str, str]]) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self.work.question(clip)}
        return [{"role": "user", "content": [*visual, text]}]


class Clock(TrainerCallback):
    """Notes the seconds between the ends of steps, whatever they were spent on."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._notes.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._notes.end_step()


class TimedTrainer(GRPOTrainer):
    """The stock trainer; notes where the time of a step goes."""

    notes: Notes
    material: Material

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        self.notes.prompt_tokens.append(float(np.mean([len(ids) for ids in prompt_ids])))
        began = time.perf_counter()
        found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.notes.add("generate", time.perf_counter() - began)
        return found

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        began = time.perf_counter()
        found = super()._prepare_inputs(generation_batch)
        self.notes.add("prepare, generate and score", time.perf_counter() - began)
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = super().training_step(*args, **kwargs)
        self.notes.add("all of these and learn", time.perf_counter() - began)
        return found


class VideoTrainer(TimedTrainer):
    """What it takes to hand videos to `generate` and to the forward pass: one of each prompt."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, Any]:
        work, material = self.material.work, self.material
        contents = [message["content"] for [message] in prompts]
        names = [visual["video"] for visual, _ in contents]
        fields = self.processing_class(
            text=[work.inputs.prompt_text(question["text"]) for _, question in contents],
            videos=[material.frames[name] for name in names],
            video_metadata=[video_metadata(work.plan(material.clips[name])) for name in names],
            do_sample_frames=False,
            do_resize=False,
        )
        self.videos = {
            name: torch.as_tensor(np.asarray(fields[name]))
            for name in ("pixel_values_videos", "video_grid_thw")
        }
        types = {"mm_token_type_ids": fields["mm_token_type_ids"]}
        return fields["input_ids"], None, self.videos | types

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        found = super()._generate_and_score_completions(inputs)
        ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
        grid = self.videos["video_grid_thw"]
        pixels = self.videos["pixel_values_videos"].split(grid.prod(-1).tolist())
        return {
            **found,
            "mm_token_type_ids": 2 * (ids == self.material.work.inputs.video_pad_id).int(),
            "video_grid_thw": grid,
            "pixel_values_videos": list(pixels),  # a list is shuffled and split by answers
        }

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.videos = {
            "video_grid_thw": inputs["video_grid_thw"],
            "pixel_values_videos": torch.cat(list(inputs["pixel_values_videos"])),
        }
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        def shown(**inputs: Any) -> Any:
            return model(**inputs, **self.videos)

        return super()._get_per_token_logps_and_entropies(shown, *args, **kwargs)
