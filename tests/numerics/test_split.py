"""The gradient does not depend on how the work is split.

By ranks, micro-batches, packing, order, and by FSDP2, ZeRO-2, ZeRO-3 or nobody at all.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.rows import shard_rows
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from data_prep.video import read_frames
from tests.numerics.processes import run_ranks
from tests.numerics.saved_tensors import load_tensors

RANK = Path(__file__).with_name("rank.py")
SETTINGS = (
    "stage=grpo",
    "learner.lr=1e-3",
    "learner.ema_decay=0.9",
    "train.num_updates_per_batch=2",
    "train.group_size=3",
    "train.prompts_per_step=6",
    "train.mini_batch_size=9",
    "algorithm.kl_coef=0.1",
    "algorithm.entropy_coef=0.05",
)
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
LORA = (
    "model.lora.rank=4",
    "model.lora.alpha=16",
    "model.lora.components=[vision_tower,language_model]",
    "model.lora.target_modules=[qkv,q_proj,down_proj]",
)
# By number of ranks; one process start for all of them.
STARTED = {
    1: ("fsdp2", "zero3", "lora-fsdp2"),
    2: ("fsdp2", "zero2", "zero3", "lora-zero3"),
}
EVERY_ONE = [(ranks, name) for ranks, names in STARTED.items() for name in names]
SOME = ("sft", "small", "shuffled", "token-mean")
NUM_ROWS = 5  # odd, so that two ranks get different numbers of rows and of micro-batches

Found = dict[str, torch.Tensor]


def _cases(make_recipe: Callable[..., Recipe]) -> dict[str, tuple[Recipe, str, list[int]]]:
    order = list(range(NUM_ROWS))
    cases = {
        "sft": (make_recipe(*SETTINGS), "sft", order),
        "small": (make_recipe(*SETTINGS, "learner.micro_batch_tokens=90"), "sft", order),
        "medium": (make_recipe(*SETTINGS, "learner.micro_batch_tokens=200"), "sft", order),
        "unpacked": (make_recipe(*SETTINGS, "learner.packing=none"), "sft", order),
        "shuffled": (make_recipe(*SETTINGS), "sft", [3, 1, 4, 0, 2]),
    }
    for name in AGGREGATIONS:
        settings = (*SETTINGS, f"algorithm.aggregation={name}")
        cases[name] = (make_recipe(*settings), "grpo", order)
        small = make_recipe(*settings, "learner.micro_batch_tokens=90")
        cases[f"{name}-small"] = (small, "grpo", order)
    return cases


def _strategies(make_recipe: Callable[..., Recipe], folder: Path, model: Path) -> dict[str, Recipe]:
    # Without this, ZeRO-3 keeps weights as small as these whole, and nothing would be split.
    zero3 = folder / "zero3.json"
    zero3.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage3_param_persistence_threshold": 0},
                "train_batch_size": "auto",
                "gradient_clipping": 1.0,
            }
        )
    )
    base = (*SETTINGS, f"model.path={model}", f"runs_dir={folder}")
    zero = (*base, "learner.strategy=deepspeed")
    return {
        "fsdp2": make_recipe(*base),
        "zero2": make_recipe(*zero, "learner.zero_stage=2"),
        "zero3": make_recipe(*zero, f"learner.deepspeed_config={zero3}"),
        "lora-fsdp2": make_recipe(*base, *LORA),
        "lora-zero3": make_recipe(
            *zero,
            *LORA,
            f"learner.deepspeed_config={zero3}",
            "learner.gradient_checkpointing=true",  # re-entrant there; adapters in both components
        ),
    }


@pytest.fixture(scope="module")
def job(
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    make_rows: Callable[..., list[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    model, folder = tiny_model("qwen3_vl", tied=False), tmp_path_factory.mktemp("split")
    return {
        "strategies": _strategies(make_recipe, folder, model),
        "started": STARTED,
        "folder": str(folder),
        "model": str(model),
        "rows": make_rows(QwenVLInputs(model), NUM_ROWS, 3),
        "cases": _cases(make_recipe),
        "picking": {
            loss: make_recipe(
                *SETTINGS,
                f"algorithm.loss={loss}",
                "algorithm.cov_fraction=0.1",
                "algorithm.clip_cov_range=[-1, 9]",
                "learner.micro_batch_tokens=90",
            )
            for loss in ("clip_cov", "kl_cov")
        },
    }


@pytest.fixture(scope="module")
def everything(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Found]:
    """What one rank and what two ranks found, each rank a process."""
    found = {}
    for world_size in (1, 2):
        path = tmp_path_factory.mktemp("job") / "job.pickle"
        run_ranks(RANK, job, path, world_size)
        found[world_size] = load_file(path.with_suffix(".out"))
    return found


@pytest.fixture(scope="module")
def results(everything: dict[int, Found]) -> dict[int, Found]:
    """What FSDP2 found."""
    return {ranks: _case(found, "fsdp2") for ranks, found in everything.items()}


def _case(found: Found, name: str) -> Found:
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _relative(found: Found, expected: Found) -> float:
    assert found.keys() == expected.keys()
    whole = torch.cat([g.flatten() for g in expected.values()]).double()
    other = torch.cat([found[name].flatten() for name in expected]).double()
    assert whole.norm() > 1e-3
    return float((whole - other).norm() / whole.norm())


@pytest.mark.parametrize("case", ["sft", *AGGREGATIONS])
def test_one_and_two_ranks(case: str, results: dict[int, Found]) -> None:
    assert _relative(_case(results[2], case), _case(results[1], case)) < 1e-5


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", ["small", "medium", "unpacked", "shuffled"])
def test_micro_batches_packing_and_order(
    case: str, world_size: int, results: dict[int, Found]
) -> None:
    found = results[world_size]
    assert _relative(_case(found, case), _case(found, "sft")) < 1e-5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_of_every_aggregation(aggregation: str, results: dict[int, Found]) -> None:
    for found in results.values():
        small, whole = _case(found, f"{aggregation}-small"), _case(found, aggregation)
        assert _relative(small, whole) < 1e-5


def test_aggregations_differ(results: dict[int, Found]) -> None:
    token, sequence = (_case(results[1], AGGREGATIONS[i]) for i in (0, 2))
    assert _relative(sequence, token) > 1e-2


def test_metrics_and_weights_after_two_updates(results: dict[int, Found]) -> None:
    one, two = results[1], results[2]
    for step in (0, 1):
        for key, value in _case(one, f"metrics-{step}").items():
            other = two[f"metrics-{step}/{key}"]
            torch.testing.assert_close(other, value, atol=1e-4, rtol=1e-3, msg=key)
    # AdamW turns the sign of a tiny gradient into a step, so weights agree less than gradients.
    assert _relative(_case(two, "weights"), _case(one, "weights")) < 1e-3


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_ranks_pick_the_same_tokens(loss: str, results: dict[int, Found]) -> None:
    one, two = (_case(results[ranks], f"picking-{loss}") for ranks in (1, 2))
    for key in ("loss", "grad_norm", "clip_fraction", "approx_kl"):
        torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3, msg=key)
    assert loss == "kl_cov" or one["clip_fraction"] > 0


def test_plain_pytorch(job: dict[str, Any], results: dict[int, Found]) -> None:
    """Mean cross-entropy of all answer tokens with the stock model, answer by answer."""
    inputs = QwenVLInputs(job["model"])
    model: Any = load_model(job["model"], dtype="float32")
    never = torch.zeros(model.lm_head.out_features, dtype=torch.bool)
    never[list(inputs.visual_token_ids)] = True
    num_tokens = sum(len(r) for row in job["rows"] for r in row.responses)
    for row in job["rows"]:
        prompt = inputs.encode(row.question, row.plan, read_frames(row.plan))
        for response in row.responses:
            targets = torch.from_numpy(response).long()
            after = (prompt.next_position + torch.arange(len(targets))).expand(3, -1)
            logits = model(
                input_ids=torch.cat([prompt.input_ids, targets])[None],
                position_ids=torch.cat([prompt.position_ids, after], dim=1)[:, None],
                pixel_values_videos=prompt.pixel_values,
                video_grid_thw=prompt.grid_thw,
            ).logits[0, len(prompt.input_ids) - 1 : -1]
            logits = logits.masked_fill(never, -torch.inf)
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            (loss / num_tokens).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert _relative(_case(results[2], "sft"), expected) < 1e-5


@pytest.mark.parametrize(("world_size", "strategy"), [(1, "zero3"), (2, "zero2"), (2, "zero3")])
def test_zero_has_the_gradients_of_fsdp2(
    strategy: str, world_size: int, everything: dict[int, Found], results: dict[int, Found]
) -> None:
    found = _case(everything[world_size], strategy)
    for case in SOME:
        expected = _case(results[1], case if case == "token-mean" else "sft")
        assert _relative(_case(found, case), expected) < 1e-5, case
    for name, value in results[world_size].items():
        if name.startswith("metrics-"):
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert _relative(_case(found, "weights"), _case(results[1], "weights")) < 1e-3


def test_lora_is_the_same_under_zero(everything: dict[int, Found]) -> None:
    expected, zero = _case(everything[1], "lora-fsdp2"), _case(everything[2], "lora-zero3")
    assert all(".lora_" in name for name in _case(expected, "sft"))
    for case in SOME:
        assert _relative(_case(zero, case), _case(expected, case)) < 1e-5, case
    assert _relative(_case(zero, "weights"), _case(expected, "weights")) < 1e-3
    assert zero["metrics-0/ref_kl"] != 0  # the second step of the first update


@pytest.mark.parametrize(("world_size", "strategy"), EVERY_ONE)
def test_going_on_is_exact(strategy: str, world_size: int, everything: dict[int, Found]) -> None:
    found = _case(everything[world_size], strategy)
    torch.testing.assert_close(_case(found, "resumed-1"), _case(found, "metrics-1"), rtol=0, atol=0)


@pytest.mark.parametrize(("world_size", "strategy"), EVERY_ONE)
def test_moving_average(strategy: str, world_size: int, everything: dict[int, Found]) -> None:
    """Of two steps it is the formula, it goes on to the bit, and a folder of it can be loaded."""
    found = _case(everything[world_size], strategy)
    assert float(found["ema-error"]) < 1e-6
    assert float(found["ema-distance"]) > 1e-4  # from the weights
    torch.testing.assert_close(_case(found, "resumed-ema"), _case(found, "ema"), rtol=0, atol=0)
    whole = _case(_case(everything[1], "fsdp2"), "weights")  # with LoRA, adapters alone are sent
    assert _case(found, "ema").keys() == whole.keys()
    expected = _case(everything[1], "lora-fsdp2" if "lora" in strategy else "fsdp2")
    assert _relative(_case(found, "ema"), _case(expected, "ema")) < 1e-3


@pytest.mark.parametrize(("world_size", "strategy"), EVERY_ONE)
def test_a_bad_loss_changes_nothing(
    strategy: str, world_size: int, everything: dict[int, Found]
) -> None:
    assert int(everything[world_size][f"{strategy}/num_changed"]) == 0


@pytest.mark.parametrize(("world_size", "strategy"), EVERY_ONE)
def test_a_mini_batch_without_a_gradient_moves_nothing(
    strategy: str, world_size: int, everything: dict[int, Found]
) -> None:
    """Neither weights nor averages, on any rank; one with a gradient on one rank moves all."""
    found = _case(everything[world_size], strategy)
    assert int(found["moved-by-nothing"]) == 0
    assert int(found["moved-by-one-rank"]) > 10


@pytest.mark.parametrize(("world_size", "strategy"), EVERY_ONE)
def test_a_step_that_one_rank_gives_up_is_given_up_by_all_and_moves_nothing(
    strategy: str, world_size: int, everything: dict[int, Found]
) -> None:
    found = _case(everything[world_size], strategy)
    assert int(found["moved-by-giving-up-after-0"]) == 0
    assert int(found["moved-by-giving-up-after-1"]) == 0
    assert int(found["saved-otherwise"]) == 0


def test_a_state_does_not_depend_on_strategy_or_ranks(
    job: dict[str, Any], everything: dict[int, Found]
) -> None:
    """So a run may go on under another strategy; `everything` has written them."""
    assert everything
    states = {
        (strategy, ranks): load_tensors(
            Path(job["folder"]) / f"{strategy}-{ranks}" / "state", "learner"
        )
        for ranks, strategy in EVERY_ONE
        if not strategy.startswith("lora")
    }
    expected = states["fsdp2", 1]
    for found in states.values():
        assert _relative(found, expected) < 1e-3


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("lora", ["", "lora-"])
def test_what_two_ranks_saved_goes_on_on_one_to_the_bit(
    strategy: str,
    lora: str,
    job: dict[str, Any],
    everything: dict[int, Found],
    make_worker: Callable[..., LearnerWorker],
    tmp_path: Path,
) -> None:
    """Each rank wrote a share of about half; another number of ranks saves the same again."""
    written = f"{lora}{strategy}"
    if written not in STARTED[2]:
        pytest.skip(f"two ranks do not run {written}")
    assert everything
    folder = Path(job["folder"]) / f"{written}-2"
    for part, stem in (("model", "model"), ("model/ema", "model"), ("state", "learner")):
        sizes = [path.stat().st_size for path in (folder / part).glob(f"{stem}-*.safetensors")]
        assert len(sizes) == 2, part
        assert not (folder / part / f"{stem}.safetensors").exists()
    recipe = job["strategies"][f"{lora}fsdp2"]
    worker = make_worker(recipe, folder / "model", base_path=Path(job["model"]))
    worker.load_state(folder / "state")
    worker.save_state(tmp_path / "state")
    for stem in ("learner", "ema"):
        expected = load_tensors(folder / "state", stem)
        found = load_tensors(tmp_path / "state", stem)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    counters = [json.loads((f / "state/learner.json").read_bytes()) for f in (folder, tmp_path)]
    assert counters[0] == counters[1]


def test_rows_are_sharded_evenly(job: dict[str, Any]) -> None:
    rows = job["rows"] * 4
    shards = shard_rows(rows, list(range(len(rows))), 3)
    assert sorted(i for shard in shards for i in shard) == list(range(20))
    assert sorted(len(shard) for shard in shards) == [6, 7, 7]
    assert shards == shard_rows(rows, list(range(len(rows))), 3)
