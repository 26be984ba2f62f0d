"""The Qwen-VL inputs, the small checkpoint and the descriptions that its base is pretrained on."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from actrep_ray.models.families import read_family
from actrep_ray.models.published import find_config
from actrep_ray.models.qwen_vl import (
    QwenVLInputs,
    component_of,
    load_model,
    mrope_positions,
)
from actrep_ray.models.tiny import (
    FAMILIES,
    build_tokenizer,
    num_parameters,
    write_random_model,
    write_tiny_model,
)
from actrep_ray.models.torch_names import device_named, dtype_named
from actrep_ray.pretrain.motion import (
    NUM_TIMES,
    describe_frames,
    describe_motion,
    describe_times,
)
from data_prep.synthetic.timeline import Track
from data_prep.video import FramePlan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: write_tiny_model(root / family, family=family) for family in FAMILIES}


def make_plan(num_frames: int, fps: float, size: int) -> FramePlan:
    return FramePlan("clip.mp4", 1, tuple(range(num_frames)), fps, size, size)


def test_text_goes_on_after_the_largest_position_of_a_block() -> None:
    is_visual = np.array([0, 0, 1, 1, 1, 1, 0, 0], dtype=bool)
    positions, following = mrope_positions(is_visual, [(1, 2, 2)], 1.0)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5],
        [0, 1, 2, 2, 3, 3, 4, 5],
        [0, 1, 2, 3, 2, 3, 4, 5],
    ]
    assert following == 6


def test_time_steps_are_multiplied_before_they_are_cut_to_integers() -> None:
    is_visual = np.array([1, 1, 1, 0], dtype=bool)
    positions, following = mrope_positions(is_visual, [(3, 1, 1)], 1.5)
    assert positions[0].tolist() == [0, 1, 3, 4]  # 0, 1.5, 3.0
    assert following == 5


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["Qwen3-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct"])
def test_random_weights_read_the_patches_of_the_published_model(name: str, tmp_path: Path) -> None:
    config = find_config(name)[1]
    config["text_config"] |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 2500}
    config["vision_config"] |= {"depth": 1, "intermediate_size": 8}
    config["vision_config"] |= {"deepstack_visual_indexes": [0], "fullatt_block_indexes": [0]}
    folder = write_random_model(tmp_path / name, config, dtype=torch.bfloat16)
    inputs, model = QwenVLInputs(folder), load_model(folder, dtype="bfloat16")
    plan = make_plan(2, 4.0, 2 * inputs.factor)
    prompt = inputs.encode("q", plan, np.zeros((2, plan.height, plan.width, 3), np.uint8))
    assert model.config.video_token_id == inputs.video_pad_id
    assert (prompt.input_ids == inputs.video_pad_id).sum() == 4
    with torch.no_grad():  # the tower takes the processor's patches
        model.get_video_features(prompt.pixel_values.bfloat16(), prompt.grid_thw)


@pytest.mark.parametrize("blocks", [[(1, 1, 1)], [(1, 1, 3)], [(1, 1, 1), (1, 1, 1), (1, 1, 1)]])
def test_a_grid_that_does_not_fit_the_tokens_is_an_error(
    blocks: list[tuple[int, int, int]],
) -> None:
    with pytest.raises((AssertionError, ValueError)):
        mrope_positions(np.array([0, 1, 1, 0], dtype=bool), blocks, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_one_token_for_each_merged_patch(
    folders: dict[str, Path], family: str
) -> None:
    inputs = QwenVLInputs(folders[family])
    frames = np.zeros((7, inputs.factor, 2 * inputs.factor, 3), dtype=np.uint8)
    plan = FramePlan("clip.mp4", 1, tuple(range(7)), 4.0, inputs.factor, 2 * inputs.factor)
    prompt = inputs.encode("How many?", plan, frames)
    merge = inputs.merge_size
    assert prompt.grid_thw.tolist() == [[4, merge, 2 * merge]]  # 7 frames are filled up to 8
    assert int((prompt.input_ids == inputs.video_pad_id).sum()) == 4 * 2
    assert prompt.position_ids.shape == (3, len(prompt.input_ids))
    assert prompt.next_position == int(prompt.position_ids.max()) + 1


def test_seconds_of_a_temporal_patch_are_not_cut_in_qwen2_5_vl(folders: dict[str, Path]) -> None:
    inputs = QwenVLInputs(folders["qwen2_5_vl"])
    frames = np.zeros((6, 28, 28, 3), dtype=np.uint8)
    prompt = inputs.encode("How many?", make_plan(6, 1.5, 28), frames)
    visual = prompt.position_ids[0][prompt.input_ids == inputs.video_pad_id]
    # 2 tokens a second times 2 frames / 1.5 fps = 2.67 positions a patch
    assert (visual - visual[0]).tolist() == [0, 2, 5]


def test_timestamps_of_qwen3_vl_count_from_the_start_of_the_clip(
    folders: dict[str, Path],
) -> None:
    inputs = QwenVLInputs(folders["qwen3_vl"])
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    prompt = inputs.encode("How many?", make_plan(4, 4.0, 32), frames)
    text = inputs.tokenizer.decode(prompt.input_ids)
    assert "<0.1 seconds>" in text
    assert "<0.6 seconds>" in text


def test_times_cost_two_tokens_and_markers_one() -> None:
    tokenizer = build_tokenizer()
    for text in ("<12.6 seconds>", " 7.3", "-12.9s\n"):
        assert len(tokenizer(text)["input_ids"]) == 2, text
    for text in ("rep11:", "</answer>", " 12\n"):
        assert len(tokenizer(text)["input_ids"]) == 1, text


def test_text_that_was_never_seen_survives_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    for text in ("Zwölf Übungen, 99.75 %", "rep12345: x", "東京", "\t\n  <think>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_checkpoint_is_an_ordinary_folder(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_model(tmp_path / "model", tied=tied, seed=3)
    model = load_model(folder, dtype="float32")
    assert 1_000_000 < num_parameters(folder) < 3_000_000
    output = model.get_output_embeddings().weight
    assert (output is model.get_input_embeddings().weight) == tied
    again = load_model(write_tiny_model(tmp_path / "again", tied=tied, seed=3), dtype="float32")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_the_family_is_read_from_the_configuration_not_from_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3_vl_moe-lora8"
    write_tiny_model(folder, family="qwen2_vl")
    assert read_family(folder) == "qwen2_vl"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a model checkpoint"),
        ("{", "not JSON"),
        (json.dumps({"model_type": "llama"}), "model_type='llama'"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_family(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_parts_of_a_model() -> None:
    assert component_of("model.visual.blocks.0.attn.qkv.weight") == "vision_tower"
    assert component_of("model.visual.merger.linear_fc1.weight") == "merger"
    assert component_of("model.language_model.layers.0.mlp.up_proj.weight") == "language_model"


def test_frames_are_told_by_place_way_and_time_of_each_pair() -> None:
    track = Track(
        times_s=np.array([0.0, 0.5, 1.0, 1.5, 2.0]),
        position=np.array([0.0, 0.5, 1.0, 0.5, 0.0]),
        is_moving=np.array([False, True, True, True, True]),
    )
    # pairs at (0, .5), (1, 1.5): middles 0.25 and 1.25, positions 0.25 and 0.75
    shown = describe_frames(track, make_plan(4, 2.0, 32))
    assert shown.tolist() == [[2, 1, 0, 2], [6, 2, 1, 2]]
    # a third frame is paired with itself, at 1 s
    assert describe_frames(track, make_plan(3, 2.0, 32))[1].tolist()[2:] == [1, 0]


def test_times_are_asked_about_in_no_order_and_inside_the_clip() -> None:
    track = Track(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]), np.ones(3, bool))
    words = describe_times(track, make_plan(4, 2.0, 32), random.Random(0)).split()
    times, places = [float(word) for word in words[::2]], words[1::2]
    assert len(times) == NUM_TIMES
    assert times != sorted(times)
    assert 0.0 <= min(times) <= max(times) < 1.5  # the last of four frames is at 1.5 s
    assert places == ["abcdefgh"[min(int((1 - abs(1 - time)) * 8), 7)] for time in times]


def test_tokens_of_one_number_begin_alike(folders: dict[str, Path]) -> None:
    folder = folders["qwen3_vl"]
    tokenizer = QwenVLInputs(folder).tokenizer
    weight = load_model(folder, dtype="float32").get_input_embeddings().weight.detach()

    def alike(one: str, other: str) -> float:
        a, b = tokenizer.convert_tokens_to_ids([one, other])
        return float(torch.cosine_similarity(weight[a], weight[b], dim=0))

    assert tokenizer.tokenize("<3.2 seconds>rep1: 3.2-4.5s\n") == [
        *("<3", ".2Ġseconds>"),
        *("rep1:", "Ġ3", ".2", "-4", ".5sĊ"),
    ]
    assert alike("Ġ3", "<3") > alike("Ġ3", "-4") > alike("Ġ3", "Ġ9")
    assert alike(".2", ".2sĊ") > alike(".2", ".3Ġseconds>") > alike(".2", ".8")
    assert alike("Ġ3", "<3") > 0.6


def test_motion_is_described_in_stretches_without_any_count() -> None:
    position = [0, 0, 0, 0.3, 0.7, 1.0, 0.7, 0.3, 0, 0, 0, 0, 0]
    moving = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    track = Track(np.arange(13) / 10, np.array(position), np.array(moving, bool))
    assert describe_motion(track) == (
        "still 0.0-0.2s\nout 0.2-0.5s\nback 0.5-0.8s\nstill 0.8-1.2s\n"
    )


def test_names_of_devices_and_dtypes() -> None:
    assert dtype_named("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="dtype='nn': torch has no dtype"):
        dtype_named("nn")
    assert device_named("cuda").type == "cuda"
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
