"""The frames of a recipe in the processor files of a checkpoint, its card, and its server."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cli.serve import server_command
from actrep_ray.config import Recipe, VideoConfig, load_recipe, override
from actrep_ray.learner.folders import read_processor_files
from actrep_ray.models.card import card, request_command
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.serving import ServedModel, budget_in_vllm, server_arguments
from actrep_ray.models.shown_frames import with_frames
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.tasks.loading import example_question
from data_prep.images import LabelledImage
from data_prep.rows import write_rows
from data_prep.schema import Clip, write_clips
from data_prep.video.plan import fit_size

VIDEO = VideoConfig(fps=5.0, min_frames=6, max_frames=40, min_pixels=1024, max_pixels=2048)
SHOWN = {"fps": 5.0, "min_frames": 6, "max_frames": 40}
SIZE = {"shortest_edge": 1024, "longest_edge": 2048}


def as_published(model: Path) -> None:
    """Split the processor's file as published checkpoints have it, with the old names of sizes."""
    path = model / "processor_config.json"
    nested = json.loads(path.read_text())
    of_images = nested.pop("image_processor") | {"min_pixels": 3136, "max_pixels": 12845056}
    (model / "preprocessor_config.json").write_text(json.dumps(of_images))
    if QwenVLInputs(model).family.startswith("qwen3"):
        of_videos = json.dumps(nested.pop("video_processor"))
        (model / "video_preprocessor_config.json").write_text(of_videos)
    path.unlink()


@pytest.mark.parametrize(
    ("family", "is_published"),
    [("qwen2_vl", True), ("qwen2_5_vl", False), ("qwen3_vl", True), ("qwen3_vl_moe", False)],
)
def test_transformers_reads_the_recipes_frames(
    family: str, is_published: bool, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model", family=family)
    if is_published:
        as_published(model)
    before = QwenVLInputs(model).processor.video_processor.to_dict()
    for name, content in with_frames(read_processor_files(model), VIDEO).items():
        (model / name).write_bytes(content)
    inputs = QwenVLInputs(model)
    video = inputs.processor.video_processor
    assert {name: getattr(video, name) for name in SHOWN} == SHOWN
    assert {name: video.size[name] for name in SIZE} == SIZE
    assert {name: inputs.processor.image_processor.size[name] for name in SIZE} == SIZE
    kept = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "do_sample_frames")
    assert [video.to_dict()[name] for name in kept] == [before[name] for name in kept]

    # 31 frames of 10 a second: 15.5 of 5 a second, 14 by its even
    # number; each brought within 2,048 pixels as a frame of a plan is.
    frames = np.zeros((31, 96, 64, 3), np.uint8)
    shown = video(
        [frames],
        video_metadata=[{"fps": 10.0, "total_num_frames": 31, "duration": 3.1}],
        do_sample_frames=True,
        return_tensors="pt",
    )
    height, width = fit_size(96, 64, factor=inputs.factor, min_pixels=1024, max_pixels=2048)
    grid = [7, height // inputs.patch_size, width // inputs.patch_size]
    assert shown["video_grid_thw"].tolist() == [grid]


def test_files_without_a_processor_stay() -> None:
    assert with_frames({"vocab.json": b"{}"}, VIDEO) == {"vocab.json": b"{}"}


def test_the_card_says_frames_and_commands() -> None:
    recipe = override(
        Recipe(), ["name=mine", "video.fps=2.5", "data.question=\"How many '{action}'? 100%\""]
    )
    text = card(recipe, "qwen3_vl", 32, example_question(recipe))
    assert "| frames a second | 2.5," in text
    assert "actrep serve FOLDER" in text
    assert (
        """--media-io-kwargs '{"video": {"fps": 2.5, "min_frames": 4, "max_frames": 256}}'"""
        in text
    )
    assert "other positions" not in text
    assert "other positions" in card(recipe, "qwen2_5_vl", 28, "How often?")


def test_the_card_asks_in_the_words_that_the_model_reads(tmp_path: Path) -> None:
    clip = Clip(
        id="a", dataset="mine", split="train", video="a.mp4", start_s=0.0, end_s=8.0,
        video_fps=10.0, num_frames=80, width=64, height=64, action="push_up", count=4,
    )  # fmt: skip
    write_clips(tmp_path / "clips.jsonl", [replace(clip, id="b", split="test"), clip])
    counting = override(
        Recipe(),
        [
            f"data.path={json.dumps(str(tmp_path / 'clips.jsonl'))}",
            "data.question='Count {action}. {form}'",
        ],
    )  # fmt: skip
    text = card(counting, "qwen3_vl", 32, example_question(counting))
    asked = "Count {action}. List each repetition."
    assert "this question, the clip's action in the place of `{action}`" in text
    assert f"\n> {asked}\n" in text
    assert json.dumps(asked) in text
    assert "{form}" not in text

    named = [
        LabelledImage(id=label, dataset="mine", split="train", image="a.png", width=64, height=64,
                      label=label)
        for label in ("wave", "jump_rope", "bow")
    ]  # fmt: skip
    write_rows(tmp_path / "images.jsonl", named)
    images = [f"data.path={json.dumps(str(tmp_path / 'images.jsonl'))}", "task=recognition"]
    closed = load_recipe(None, images)
    text = card(closed, "qwen3_vl", 32, example_question(closed))
    assert "to this question:" in text
    assert "> Which activity is shown? Choose from: bow, jump rope, wave. Reason in <think>" in text
    some = override(closed, ["data.candidates=truncated", "data.num_candidates=2"])
    text = card(some, "qwen3_vl", 32, example_question(some))
    assert "about the first clip; each offers classes of its own" in text
    assert "{candidates}" not in text


def test_the_request_of_the_card_is_what_the_server_is_sent(tmp_path: Path) -> None:
    """The shell's quoting and printf's leave the question as it is."""
    question = 'How many "{action}"s, 100%? It\'s \\ é'
    (tmp_path / "VIDEO.mp4").write_bytes(b"abc")
    command = request_command("mine", question).partition(" |\n")[0]
    sent = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    body: dict[str, Any] = json.loads(sent.stdout)
    video, text = body["messages"][0]["content"]
    assert text["text"] == question
    assert video["video_url"]["url"] == "data:video/mp4;base64,YWJj"


def test_the_server_of_a_checkpoint(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", family="qwen2_5_vl")
    recipe = override(Recipe(), ["device=cpu", "video.fps=5", "rollout.max_response_tokens=64"])
    command, environment = server_command(recipe, model, host="127.0.0.1", port=9000, name="mine")
    told = dict(zip(command[3::2], command[4::2], strict=False))
    assert command[1:3] == ["-m", "actrep_ray.rollout.server"]
    assert (told["--host"], told["--port"]) == ("127.0.0.1", "9000")
    loading = json.loads(told["--media-io-kwargs"])["video"]
    assert (loading["video_backend"], loading["fps"], loading["factor"]) == ("actrep", 5.0, 28)
    processing = json.loads(told["--mm-processor-kwargs"])
    assert processing["video_metadata"][0]["fps"] == 5.0
    assert processing["do_resize"] is False
    assert json.loads(told["--override-generation-config"])["max_new_tokens"] == 64
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert told["--max-num-batched-tokens"] == "8192"
    assert not {"--kv-cache-dtype", "--attention-backend"} & told.keys()
    recipe = override(
        Recipe(),
        ["device=cuda", "rollout.vllm.max_num_batched_tokens=9000", "train.max_log_prob_gap=1",
         "rollout.vllm.attention_backend=TRITON_ATTN", "rollout.vllm.kv_cache_dtype=fp8",
         "algorithm.rollout_correction=token_truncate"],
    )  # fmt: skip
    found = server_arguments(ServedModel(model, "qwen2_5_vl", recipe, "mine", 28), is_ours=True)
    told = dict(zip(found[::2], found[1::2], strict=True))
    assert told["--max-num-batched-tokens"] == "9000"
    assert told["--attention-backend"] == "TRITON_ATTN"
    assert told["--kv-cache-dtype"] == "fp8"


def test_vllm_expects_frames_of_the_saved_budget(tmp_path: Path) -> None:
    """It divides a Qwen3-VL's budget by the frames of a temporal patch; a cell has to be left."""
    model = write_tiny_model(tmp_path / "model", family="qwen3_vl")
    published = QwenVLInputs(model).processor.video_processor
    assert budget_in_vllm("qwen3_vl", published) is None
    video = VideoConfig(max_pixels=1024, min_pixels=256)
    files = {path.name: path.read_bytes() for path in model.glob("*processor*.json")}
    for name, content in with_frames(files, video).items():
        (model / name).write_bytes(content)
    saved = QwenVLInputs(model).processor.video_processor
    expected = {"shortest_edge": 256, "longest_edge": 2048}
    assert budget_in_vllm("qwen3_vl", saved) == expected
    assert budget_in_vllm("qwen2_5_vl", saved) is None
    recipe = override(Recipe(), ["device=cpu", "video.max_pixels=1024", "video.min_pixels=256"])
    command, _ = server_command(recipe, model, host="127.0.0.1", port=9000, name="mine")
    told = dict(zip(command[3::2], command[4::2], strict=False))
    assert json.loads(told["--mm-processor-kwargs"])["size"] == expected
