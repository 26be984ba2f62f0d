"""Sizes of models, memory plans, placement: published totals and hand-computed numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.cluster.placement import (
    Node,
    PlacementError,
    describe,
    parse_gpus,
    place,
    pools_of,
    share_of_bundle,
)
from actrep_ray.config import ConfigError, Recipe, load_recipe, override
from actrep_ray.models.architecture import read_architecture
from actrep_ray.models.lora import add_adapters
from actrep_ray.models.published import shipped_names
from actrep_ray.models.qwen_vl import load_model
from actrep_ray.models.tiny import FAMILIES, write_tiny_model
from actrep_ray.planning.activations import micro_batch
from actrep_ray.planning.description import check_recipe, model_source, stated_hardware
from actrep_ray.planning.engine_memory import plan_rollout
from actrep_ray.planning.learner_memory import plan_learner, resting_bytes
from actrep_ray.planning.memory import plan_memory
from actrep_ray.planning.memory_plan import GIB
from actrep_ray.planning.parameters import (
    checkpoint_bytes,
    push_bytes,
    trainable_parameters,
)
from actrep_ray.planning.prompts import PromptSize, clip_size, largest_prompt
from data_prep.schema import Clip
from data_prep.shown import ShownImage

# Billions, from the model cards' safetensors headers.
PUBLISHED = {
    "Qwen2-VL-2B-Instruct": 2.209,
    "Qwen2-VL-7B-Instruct": 8.291,
    "Qwen2.5-VL-3B-Instruct": 3.755,
    "Qwen2.5-VL-7B-Instruct": 8.292,
    "Qwen2.5-VL-32B-Instruct": 33.45,
    "Qwen2.5-VL-72B-Instruct": 73.41,
    "Qwen3-VL-2B-Instruct": 2.128,
    "Qwen3-VL-4B-Instruct": 4.438,
    "Qwen3-VL-8B-Instruct": 8.767,
    "Qwen3-VL-32B-Instruct": 33.36,
    "Qwen3-VL-30B-A3B-Instruct": 31.07,
}
MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def recipe(*settings: str) -> Recipe:
    return load_recipe(None, [f"model.path={MODEL}", *settings])


def test_every_shipped_config_is_of_a_published_model() -> None:
    assert set(shipped_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    total = read_architecture(f"Qwen/{name}").total_parameters / 1e9
    assert total == pytest.approx(PUBLISHED[name], rel=0.001)


def test_sizes_of_one_model() -> None:
    model = read_architecture(f"models/{MODEL.split('/')[1]}")
    assert model.kv_bytes_per_token() == 2 * 28 * 4 * 128 * 2
    assert model.frame_factor == 28
    assert model.num_visual_tokens(num_frames=9, height=224, width=112) == 5 * 8 * 4
    moe = read_architecture("Qwen3-VL-30B-A3B-Instruct")
    assert (moe.num_experts, moe.intermediate) == (128, 8 * 768)
    assert moe.active_parameters / 1e9 == pytest.approx(3.0, abs=0.1)


def test_a_name_that_is_no_model_is_told() -> None:
    with pytest.raises(ConfigError, match=r"model.path='models/GPT'.*Qwen2-VL-2B-Instruct"):
        read_architecture("models/GPT")


def test_weights_gradients_and_optimiser_of_a_rank() -> None:
    model = read_architecture(MODEL)
    plan = plan_learner(recipe("learner.num_workers=8"), model, PromptSize(4096, 42))
    sizes, total = dict(plan.items), model.total_parameters
    assert sizes["weights"] == pytest.approx(4 * total / 8)
    assert sizes["gradients"] == pytest.approx(4 * total / 8)
    assert sizes["optimiser"] == pytest.approx(8 * total / 8)
    averaged = recipe("learner.num_workers=8", "learner.ema_decay=0.999")
    sizes = dict(plan_learner(averaged, model, PromptSize(4096, 42)).items)
    assert sizes["moving average"] == pytest.approx(4 * total / 8)


def test_zero_2_holds_all_weights_and_offload_none_of_the_optimiser() -> None:
    model, prompt = read_architecture(MODEL), PromptSize(4096, 42)
    zero = ("learner.num_workers=8", "learner.strategy=deepspeed")
    two = dict(plan_learner(recipe(*zero, "learner.zero_stage=2"), model, prompt).items)
    assert two["weights"] == pytest.approx((2 + 4 / 8) * model.total_parameters)
    off = dict(plan_learner(recipe(*zero, "learner.offload=all"), model, prompt).items)
    assert off["weights"] == off["optimiser"] == 0


def test_adapters_train_rank_times_the_widths() -> None:
    model = read_architecture(MODEL)
    trained, frozen = trainable_parameters(recipe("model.lora.rank=16"), model)
    h, kv, mlp = 3584, 512, 18944
    widths = 2 * (h + h) + 2 * (h + kv) + 3 * (h + mlp)
    assert trained == 28 * 16 * widths
    assert frozen == model.total_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_counted_wherever_they_are(family: str, tmp_path: Path) -> None:
    """As many parameters as the learner's own model trains, whichever components they are in."""
    folder = write_tiny_model(tmp_path / family, family=family)
    names = "q_proj,down_proj,qkv,proj,linear_fc1,fc1"
    for components in ("vision_tower", "merger,language_model", "vision_tower,language_model"):
        asked = recipe(
            "model.lora.rank=4",
            f"model.lora.target_modules=[{names}]",
            f"model.lora.components=[{components}]",
        )
        model = load_model(folder, dtype="float32")
        try:
            add_adapters(model, asked.model.lora)
        except ConfigError:  # no such layer in the component
            expected = 0
        else:
            expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trainable_parameters(asked, read_architecture(str(folder)))[0] == expected
        assert expected or "vision" not in components


def test_a_push_brings_the_adapters_or_all_weights() -> None:
    model = read_architecture("Qwen2.5-VL-72B-Instruct")
    h, kv, mlp = 8192, 1024, 29568
    widths = 2 * (h + h) + 2 * (h + kv) + 3 * (h + mlp)
    asked = recipe("model.lora.rank=48", "rollout.tensor_parallel_size=4")
    assert push_bytes(asked, model) == 2 * 80 * 48 * widths  # 1.3 GB of bfloat16
    plan = plan_rollout(asked, model, PromptSize(4096, 42), gpu_gib=76.0)
    sizes = dict(plan.items)
    assert sizes["adapters"] == 2 * 80 * 64 * widths  # the next rank that vLLM has room for
    assert "a push brings 1.18 GiB to each engine: adapters" in plan.notes
    merged = override(asked, ["model.lora.send=merged"])
    assert push_bytes(merged, model) == 2 * model.total_parameters
    whole = plan_rollout(merged, model, PromptSize(4096, 42), gpu_gib=76.0)
    assert "adapters" not in dict(whole.items)
    assert whole.num_bytes == plan.num_bytes - sizes["adapters"]
    assert "a push brings 136.74 GiB to each engine: all weights" in whole.notes


def test_a_checkpoint_has_the_model_and_what_training_goes_on_from() -> None:
    model = read_architecture(MODEL)
    total = model.total_parameters
    assert checkpoint_bytes(recipe(), model) == (2 * total, 12 * total)  # 2 moments and float32
    exact = recipe("model.dtype=float32", "learner.ema_decay=0.999")
    assert checkpoint_bytes(exact, model) == (2 * 4 * total, (8 + 4) * total)
    adapted = recipe("model.lora.rank=16")
    trained, _ = trainable_parameters(adapted, model)
    assert checkpoint_bytes(adapted, model) == (2 * total, (8 + 4 + 4) * trained)
    plan = plan_learner(recipe("learner.num_workers=4"), model, PromptSize(4096, 42))
    assert plan.notes[0] == (
        "a checkpoint is 108.12 GiB (model 15.45, training state 92.67); each rank copies 27.03 "
        "GiB to host memory"
    )


@pytest.mark.parametrize(("fps", "is_told"), [(4.0, False), (5.0, True)])
def test_check_tells_of_positions_that_temporal_patches_share(
    fps: float, is_told: bool, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"# hardware: 8x80GB\nname: r\nmodel: {{path: {MODEL}}}\n")
    for name, told in ((MODEL, is_told), ("Qwen3-VL-8B-Instruct", False)):
        asked = load_recipe(path, [f"model.path={name}", f"video.fps={fps}"])
        lines = check_recipe(asked, path).lines
        assert any("video.fps=5: Qwen2.5-VL has positions" in line for line in lines) == told


def test_checkpointing_and_freezing_lower_the_plan() -> None:
    model, prompt = read_architecture(MODEL), PromptSize(4096, 42)
    sizes = [
        plan_learner(recipe("learner.num_workers=4", *more), model, prompt).num_bytes
        for more in (
            (),
            ("learner.gradient_checkpointing=true",),
            ("learner.gradient_checkpointing=true", "model.freeze=[vision_tower]"),
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize(
    ("settings", "answer", "expected"),
    [
        # prompts of 100, 8 answers of 51: 100 + 8 * 50 = 500 tokens a row, 4 rows of a rank's 32
        ((), 51, (4, 2000, 320, 32, 1632)),
        (("learner.packing=none",), 51, (14, 14 * 150, 14 * 80, 14, 14 * 51)),
        # 100 + 8 * 300 exceeds 2200, so a row is cut to 7 answers
        ((), 301, (1, 2200, 80, 7, 2107)),
    ],
)
def test_the_largest_micro_batch(
    settings: tuple[str, ...], answer: int, expected: tuple[int, ...]
) -> None:
    found = micro_batch(
        recipe("learner.micro_batch_tokens=2200", *settings), PromptSize(80, 20), answer
    )
    assert tuple(vars(found).values()) == expected


def test_what_an_engine_leaves_for_the_kv_cache() -> None:
    model = read_architecture(MODEL)
    asked = recipe("rollout.tensor_parallel_size=2", "rollout.max_model_len=8192")
    plan = plan_rollout(asked, model, PromptSize(4096, 42), gpu_gib=76.0)
    sizes = dict(plan.items)
    assert sizes["weights"] == model.total_parameters  # 2 bytes over 2 GPUs
    assert sizes["KV cache of one sequence"] == 8192 * model.kv_bytes_per_token() / 2
    assert plan.limit == pytest.approx(0.85 * 76.0 * GIB)
    assert "sequences of 8192 tokens" in plan.notes[1]


def test_what_does_not_fit_is_told_with_three_settings_that_help() -> None:
    model = read_architecture(MODEL)
    asked = recipe("learner.num_workers=4", "rollout.num_workers=4", "train.prompts_per_step=64")
    plan = plan_memory(asked, model, largest_prompt(asked, model), parse_gpus("8x80GB"))
    assert not plan.fits
    assert "learner: needs" in plan.problems[0]
    assert "most is activations" in plan.problems[0]
    assert len(plan.remedies) == 3
    assert plan.remedies[0].endswith("learner.gradient_checkpointing=true: fits")


def test_a_prompt_longer_than_the_engine_takes_is_told() -> None:
    model = read_architecture(MODEL)
    asked = recipe(
        "rollout.max_model_len=2048",
        "learner.gradient_checkpointing=true",
        "learner.num_workers=4",
    )
    prompt = PromptSize(4096, 42, is_of_data=True)
    plan = plan_memory(asked, model, prompt, parse_gpus("8x141GB"))
    assert "exceed rollout.max_model_len=2048: raise it to 5162" in plan.problems[0]
    only_allowed = plan_memory(asked, model, PromptSize(4096, 42), parse_gpus("8x141GB"))
    assert only_allowed.fits
    assert "rollout.max_model_len=2048" in only_allowed.warnings[0]


@pytest.mark.parametrize(
    ("name", "shards", "problem"),
    [
        # 16 heads of both kinds and 11008 columns divide by 8, 3420 only by 4
        ("Qwen2.5-VL-3B-Instruct", 8, "3420 columns of the MLP in the vision tower"),
        ("Qwen2.5-VL-3B-Instruct", 4, ""),
        ("Qwen2.5-VL-7B-Instruct", 8, "28 attention heads"),
        ("Qwen2.5-VL-72B-Instruct", 8, ""),  # 3456 = 8 * 432
        ("Qwen3-VL-30B-A3B-Instruct", 8, ""),  # 768 columns of an expert; 4 key heads, repeated
        ("Qwen3-VL-8B-Instruct", 16, ""),  # 4304 = 16 * 269
    ],
)
def test_what_vllm_cannot_split_is_refused(name: str, shards: int, problem: str) -> None:
    model = read_architecture(name)
    asked = recipe(f"rollout.tensor_parallel_size={shards}", "rollout.num_workers=1")
    plan = plan_memory(asked, model, PromptSize(1024, 42))
    found = [line for line in plan.problems if "tensor_parallel_size" in line]
    if not problem:
        assert not found
        return
    assert found == [
        f"rollout.tensor_parallel_size={shards} does not divide the {problem} of {name}: take 4"
    ]


def test_a_batch_of_an_engine_holds_the_longest_prompt() -> None:
    """vLLM's cache of what the vision tower made has as many places as a batch has tokens."""
    model, prompt = read_architecture("Qwen3-VL-8B-Instruct"), PromptSize(18816, 4400)
    short = recipe("rollout.max_model_len=8192", "rollout.enforce_eager=true")
    long = override(short, ["rollout.max_model_len=32768"])
    sizes = [dict(plan_rollout(one, model, prompt, gpu_gib=134.0).items) for one in (short, long)]
    held = 2 * 4096 * (1 + 3)  # bytes a token: bfloat16, the decoder's width, 3 DeepStack levels
    assert [one["encoder cache"] for one in sizes] == [16384 * held, 32768 * held]
    needs = 2 * (6 * 4096 + 3 * 12288)
    logits = 2 * 4 * short.rollout.max_num_seqs * 151936
    vision = 4 * 18816 * 2 * (10 * 1152 + 3 * 4304)
    assert sizes[1]["profiled forward pass"] == max(32768 * needs, vision) + logits


def test_hardware_in_words() -> None:
    nodes = parse_gpus("2x8x80GB,4x48GB")
    assert [node.num_gpus for node in nodes] == [8, 8, 4]
    assert nodes[2].gpu_gib == pytest.approx(45.6)
    with pytest.raises(ConfigError, match=r"--gpus 'eight': expected"):
        parse_gpus("eight")


def test_ranks_are_packed_and_an_engine_stays_on_one_node() -> None:
    asked = recipe(
        "learner.num_workers=4", "rollout.num_workers=2", "rollout.tensor_parallel_size=4"
    )
    nodes = [Node("a", 8), Node("b", 4)]
    placed = place(pools_of(asked), nodes)
    assert placed == {"rollout": [0, 0], "learner": [1] * 4, "reward": [0]}
    assert describe(placed, nodes)[1] == "learner: 4 on b"
    with pytest.raises(PlacementError, match=r"2 rollout workers of 1 CPU and 4 GPU"):
        place(pools_of(asked), [Node(name, 3) for name in "abcd"])  # 12 GPUs, no four on a node


def test_labels_send_roles_to_their_nodes() -> None:
    asked = recipe("placement.rollout_labels={gpu: small}", "placement.learner_labels={gpu: large}")
    nodes = [Node("a", 1, labels={"gpu": "small"}), Node("b", 1, labels={"gpu": "large"})]
    placed = place(pools_of(asked), nodes)
    assert (placed["rollout"], placed["learner"]) == ([0], [1])
    with pytest.raises(PlacementError, match=r"no node has the label gpu=large"):
        place(pools_of(asked), nodes[:1])


def test_a_refusal_says_what_is_missing() -> None:
    asked = recipe("learner.num_workers=8", "rollout.num_workers=4")
    with pytest.raises(PlacementError, match=r"missing: 4 more GPU. Lower rollout"):
        place(pools_of(asked), [Node("a", 8)])


def test_tokens_of_a_clip_come_from_its_metadata() -> None:
    """10 s at 4 fps: 40 frames, 20 pairs; 640x360 shrinks to 8x5 cells of 28 pixels."""
    clip = Clip(
        id="a", dataset="d", split="train", video="/nowhere.mp4", start_s=0.0, end_s=10.0,
        video_fps=30.0, num_frames=300, width=640, height=360, action="squat", count=3,
    )  # fmt: skip
    size = clip_size(clip, recipe("video.max_pixels=50176"), read_architecture(MODEL))
    assert size.num_visual == 20 * 10 * 6
    # Of 112x56: 4x2 cells. An image of its own is one of them alone.
    still = ShownImage("/nowhere.png", 112, 56)
    shown = replace(clip, images=(still, still))
    both = clip_size(shown, recipe("video.max_pixels=50176"), read_architecture(MODEL))
    assert (both.num_visual, both.num_text) == (20 * 10 * 6 + 2 * 4 * 2, size.num_text)


def test_the_hardware_of_a_recipe_s_first_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# hardware: 4x48GB, or more\nstage: sft\n")
    assert stated_hardware(path) == "4x48GB"
    path.write_text("# SFT\n")
    assert stated_hardware(path) == ""


def test_a_run_that_does_not_exist_yet_stands_for_the_model_it_starts_from(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"stage: sft\nname: a\nmodel: {{path: {MODEL}}}\n")
    path = tmp_path / "b.yaml"
    path.write_text("# hardware: 8x80GB\nname: b\nmodel: {path: runs/a}\n")
    assert model_source(load_recipe(path), path) == MODEL
    found = check_recipe(load_recipe(path, ["learner.gradient_checkpointing=true"]), path)
    assert any("runs/a is trained from it" in line for line in found.lines)


COLOCATED = ("placement.mode=colocated", "learner.gradient_checkpointing=true")


def test_an_engine_and_a_rank_share_one_gpu() -> None:
    nodes = [Node("a", 1, num_cpus=2)]
    with pytest.raises(PlacementError, match="missing: 1 more GPU"):
        place(pools_of(recipe()), nodes)
    pools = pools_of(recipe(*COLOCATED, "learner.num_cpus=1", "rollout.num_cpus=1.5"))
    assert place(pools, nodes) == {"learner": [0], "rollout": [0], "reward": [0]}
    assert pools[0].bundle == {"CPU": 1.5, "GPU": 1}
    assert share_of_bundle(recipe(*COLOCATED)) == {"num_cpus": 0.5, "num_gpus": 0.5}
    alone = pools_of(recipe(*COLOCATED), ("rollout",))  # evaluation: nobody to share with
    assert [pool.role for pool in alone] == ["rollout"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.max_staleness=1", "engines sleep while learners work.*unset train.max_staleness=1"),
        ("rollout.num_workers=2", r"expected rollout.num_workers=1 \(learner.num_workers\)"),
        ("rollout.tensor_parallel_size=2", "one engine of one GPU"),
        ("placement.rollout_labels={gpu: small}", "use placement.learner_labels alone"),
    ],
)
def test_what_cannot_take_turns_is_refused(setting: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        recipe(*COLOCATED, setting)


def test_taking_turns_needs_the_larger_of_both_and_what_stays() -> None:
    model = read_architecture("Qwen2-VL-2B-Instruct")
    asked = recipe(*COLOCATED, "model.path=Qwen2-VL-2B-Instruct", "learner.offload=all")
    prompt = PromptSize(4096, 42)
    assert resting_bytes(asked, model) == 1.5 * GIB  # everything is in CPU memory between steps
    alone = [plan_learner(asked, model, prompt), plan_rollout(asked, model, prompt)]
    larger, both = max(r.num_bytes for r in alone), sum(r.num_bytes for r in alone)
    gpu_gib = (0.3 * larger + 0.7 * both) / GIB  # one after the other fits, both do not
    plan = plan_memory(asked, model, prompt, [Node("a", 1, gpu_gib=gpu_gib)])
    assert plan.fits, plan.problems
    assert plan.roles[0].limit == pytest.approx((gpu_gib - 0.9 - 1.2) * GIB)  # context and graphs
    kept = resting_bytes(recipe(*COLOCATED, "model.path=Qwen2-VL-2B-Instruct"), model)
    assert kept == pytest.approx(12 * model.total_parameters + 1.5 * GIB)


def test_an_engine_that_could_not_wake_up_is_told() -> None:
    """12 bytes of 2.2G parameters and CUDA's 1.5 GiB stay; 0.85 x 76 GiB does not fit beside."""
    model = read_architecture("Qwen2-VL-2B-Instruct")
    asked = recipe(*COLOCATED, "model.path=Qwen2-VL-2B-Instruct")
    plan = plan_memory(asked, model, PromptSize(4096, 42), parse_gpus("1x80GB"))
    assert "a learner rank keeps 26.2 of its 76.0 GiB" in plan.problems[0]
    assert "rollout.gpu_memory_utilization to at most 0.65" in plan.problems[0]
    assert plan_memory(
        override(asked, ["rollout.gpu_memory_utilization=0.65"]),
        model,
        PromptSize(4096, 42),
        parse_gpus("1x80GB"),
    ).fits


def test_adapters_beside_no_layer_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    lora = ["model.lora.rank=8", "model.lora.components=[language_model]"]
    wrong = recipe(*lora, "model.lora.target_modules=[query, qkv]")
    with pytest.raises(ConfigError, match=r"\['query', 'qkv'\]: no such .*has down_proj.*v_proj"):
        check_recipe(wrong, tmp_path / "r.yaml", "8x80GB")
    known = recipe(*lora, "model.lora.target_modules=[query, q_proj]")
    assert check_recipe(known, tmp_path / "r.yaml", "8x80GB").plan is not None


def test_the_plan_of_an_engine_knows_the_options_of_vllm() -> None:
    """Tokens of a batch and bytes of a key or value, as the recipe sets them."""
    model = read_architecture(MODEL)

    def sizes(*settings: str) -> dict[str, float]:
        given = ("train.max_log_prob_gap=0.1", "algorithm.rollout_correction=token_truncate")
        return dict(
            plan_rollout(recipe(*given, *settings), model, PromptSize(4096, 42), 76.0).items
        )

    usual, small = sizes(), sizes("rollout.vllm.max_num_batched_tokens=8192")
    assert small["encoder cache"] == usual["encoder cache"] / 2  # 16384 on such a GPU
    assert small["profiled forward pass"] < usual["profiled forward pass"]
    cache = "KV cache of one sequence"
    assert sizes("rollout.vllm.kv_cache_dtype=fp8")[cache] == usual[cache] / 2
