"""No rank holds a whole model while it is loaded; every weight is still that of the file."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.models import loading
from actrep_ray.models.qwen_vl import load_model
from actrep_ray.models.tiny import FAMILIES, write_random_model
from tests.chat_templates import copy_model
from tests.numerics.processes import run_ranks

RANK = Path(__file__).with_name("loading_rank.py")
LAYER = 512 * (2 * 512 + 2 * 256) + 3 * 512 * 1536
CONFIG = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [16, 8, 8],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 512,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100M parameters, 400 MiB in float32, of which a layer is 12."""
    return write_random_model(tmp_path_factory.mktemp("model"), CONFIG)


def found_by_ranks(folder: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What two ranks found."""
    run_ranks(RANK, {**job, "folder": str(folder)}, folder / "job.pickle", 2)
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.timeout(900)
def test_a_rank_holds_its_share_and_a_layer(
    model: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    whole_mib = (model / "model.safetensors").stat().st_size / 2**20
    recipe = make_recipe("stage=sft", "learner.num_workers=2", "model.freeze=[vision_tower]")
    job = {"recipe": recipe, "model": str(model)}
    peaks = {}
    for reads in ("everyone", "rank 0"):
        folder = tmp_path / reads
        folder.mkdir()
        ranks = found_by_ranks(folder, {**job, "reads": reads})
        assert ranks[0]["num_weights"] > 300
        for rank in ranks:
            assert rank["wrong"] == []
            assert rank["meta"] == []
            assert rank["is_tied"]
            assert rank["num_frozen"] == ranks[0]["num_frozen"] > 10
        peaks[reads] = max(rank["peak_mib"] for rank in ranks)
    # What Python itself takes meanwhile, 90 to 140 MiB, is in both; half of the model is not.
    assert peaks["everyone"] > whole_mib, peaks
    assert peaks["rank 0"] < 0.95 * whole_mib, peaks  # all of it would be above 1.2
    assert peaks["everyone"] - peaks["rank 0"] > 0.35 * whole_mib, peaks
    print(f"whole {whole_mib:.0f} MiB, peaks {peaks}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "share"), [(2, 1.0), (3, 0.5)])
def test_deepspeed_ranks_hold_their_share_and_a_layer_too(
    stage: int, share: float, model: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Until DeepSpeed has the weights; what it allocates beside them is of a GPU where there is."""
    whole_mib = (model / "model.safetensors").stat().st_size / 2**20
    settings = ("learner.strategy=deepspeed", f"learner.zero_stage={stage}")
    recipe = make_recipe("stage=sft", "learner.num_workers=2", "model.freeze=[]", *settings)
    job = {"recipe": recipe, "model": str(model), "reads": "rank 0"}
    for rank in found_by_ranks(tmp_path, job):
        assert rank["wrong"] == []
        assert rank["meta"] == []
        assert rank["is_tied"]
        assert rank["peak_mib"] < (share + 0.35) * whole_mib  # a layer, the table, Python itself


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_read_one_by_one_are_those_that_transformers_loads(
    family: str, tied: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Bit by bit, whatever the names and layout of the files; also of several files."""
    folder = copy_model(tiny_model(family, tied=tied), tmp_path / "split")
    whole = load_file(folder / "model.safetensors")
    if tied:  # some write it although it is the embedding
        whole["lm_head.weight"] = torch.zeros(3)
    (folder / "model.safetensors").unlink()
    names: list[str] = sorted(whole)
    files: dict[str, str] = {}
    for number, some in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: whole[name] for name in some}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = loading.load(folder, dtype="float32", is_split=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    source = loading.Source(folder, model)
    expected = dict(load_model(tiny_model(family, tied=tied), dtype="float32").named_parameters())
    found = {name: source.read(parameter) for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.nn.Parameter)
    assert torch.equal(source.first_row(embedding), source.read(embedding)[0])


def test_a_checkpoint_that_lacks_a_weight_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_model(tiny_model(), tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    name = "model.language_model.norm.weight"
    other = {**whole, name: whole[name][:-1].clone()}
    save_file(other, folder / "model.safetensors")
    model = loading.load(folder, dtype="float32", is_split=True)
    source = loading.Source(folder, model)
    with pytest.raises(ConfigError, match=rf"{name}: shape \[127\] in the checkpoint, its config"):
        source.read(dict(model.named_parameters())[name])
    del other[name]
    save_file(other, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"no weight '{name}' in it, which the model has"):
        loading.Source(folder, model)
