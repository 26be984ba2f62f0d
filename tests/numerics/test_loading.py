"""Only rank 0 holds a whole model while it is loaded; every weight is still that of the file."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.config import Recipe
from actrep_ray.models.tiny import write_random_model
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
def test_a_rank_that_is_told_holds_its_share_and_a_layer(
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
        peaks[reads] = ranks[1]["peak_mib"]
    # What Python itself takes meanwhile, about 90 MiB, is in both; half of the model is not.
    assert peaks["everyone"] > whole_mib, peaks
    assert peaks["rank 0"] < 0.85 * whole_mib, peaks
    assert peaks["everyone"] - peaks["rank 0"] > 0.35 * whole_mib, peaks
    print(f"whole {whole_mib:.0f} MiB, peaks {peaks}")
