"""Whole tensors dealt out to ranks, and read again from the files that they wrote."""

import json
from pathlib import Path

import pytest
import torch

from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.shares import SMALL_BYTES, Shares
from actrep_ray.models.tensor_files import TensorFiles, are_there
from data_prep.files import DataError
from tests.numerics.saved_tensors import load_tensors

SIZES = {"a": 100, "b": 60, "c": 30, "d": 20, "e": 90}  # numbers in each


class Recorded(Ranks):
    """Ranks of which each has told already what it gathers: the bytes of its tensors."""

    def __init__(self, rank: int, told: list[dict[str, int]]) -> None:
        super().__init__(rank, len(told), torch.device("cpu"))
        self.told = told

    def gather(self, value: object) -> list[object]:
        assert value == self.told[self.rank]
        return [*self.told]


def test_each_tensor_goes_to_the_rank_that_was_given_least(tmp_path: Path) -> None:
    """By hand: a to 0; b, c, d to 1, who has 0, 60, 90 before each; e to 0."""
    told = [{"a": 400, "e": 360}, {"b": 240, "c": 120, "d": 80}]
    whole = {name: torch.arange(size, dtype=torch.float64) for name, size in SIZES.items()}
    for rank in (1, 0):
        shares = Shares(Recorded(rank, told), SMALL_BYTES + 1)
        kept = dict(shares.kept(whole.items(), torch.float32))
        assert {name: tensor.nbytes for name, tensor in kept.items()} == told[rank]
        shares.snapshot("learner", kept).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "learner-00001-of-00002.safetensors",
        "learner-00002-of-00002.safetensors",
        "learner.safetensors.index.json",
    }
    assert are_there(tmp_path, "learner")
    assert not are_there(tmp_path, "model")
    found = load_tensors(tmp_path, "learner")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name].float()) for name in whole)
    index = json.loads((tmp_path / "learner.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(SIZES.values())


@pytest.mark.parametrize("model_bytes", [SMALL_BYTES, SMALL_BYTES + 1])
def test_a_state_without_tensors_is_there_all_the_same(tmp_path: Path, model_bytes: int) -> None:
    for rank in (1, 0):
        Shares(Recorded(rank, [{}, {}]), model_bytes).snapshot("learner", {}).write(tmp_path)
    assert are_there(tmp_path, "learner")
    assert not TensorFiles(tmp_path, "learner").names


def test_what_rank_0_keeps_in_any_case_counts() -> None:
    shares = Shares(Ranks(0, 2, torch.device("cpu")), SMALL_BYTES + 1)
    shares.first_takes(100)
    assert [shares.is_mine(size) for size in (60, 30, 40, 10)] == [False, False, False, True]


def test_rank_0_keeps_everything_of_a_small_model() -> None:
    for rank in range(2):
        shares = Shares(Ranks(rank, 2, torch.device("cpu")), SMALL_BYTES)
        assert [shares.is_mine(size) for size in (60, 30, 40)] == [rank == 0] * 3


def test_a_share_is_a_copy_and_of_its_own_size() -> None:
    storage = torch.zeros(1000)
    shares = Shares(Ranks(0, 1, torch.device("cpu")), 0)
    ((_, kept),) = shares.kept([("a", storage[:10])], torch.float32)
    storage.fill_(1)
    assert kept.tolist() == [0.0] * 10
    assert kept.untyped_storage().nbytes() == 40


def test_files_that_lack_something_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"learner\.safetensors: no such file, expected saved"):
        TensorFiles(tmp_path, "learner")
    told: list[dict[str, int]] = [{"a": 8}, {"b": 8}]
    for rank, name in enumerate("ab"):
        shares = Shares(Recorded(rank, told), SMALL_BYTES + 1)
        shares.snapshot("learner", {name: torch.ones(2)}).write(tmp_path)
    assert TensorFiles(tmp_path, "learner").first_row("b").item() == 1.0
    second = tmp_path / "learner-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"learner-00002-of-00002\.safetensors: "):
        TensorFiles(tmp_path, "learner")
    second.unlink()
    with pytest.raises(DataError, match=r"learner-00002-of-00002\.safetensors: no such file"):
        TensorFiles(tmp_path, "learner")
    second.write_bytes((tmp_path / "learner-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"'b' is not in it, though learner\.safetensors\.index"):
        TensorFiles(tmp_path, "learner")
    index = tmp_path / "learner.safetensors.index.json"
    for names in ('{"a": "../learner.safetensors"}', '{"a": 3}', "[]"):
        index.write_text(f'{{"weight_map": {names}}}')
        with pytest.raises(DataError, match="weight_map, expected names of files beside it"):
            TensorFiles(tmp_path, "learner")
