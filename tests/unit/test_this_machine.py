"""GPUs that a machine lacks are refused before anything starts; CPUs are logical."""

import time
from pathlib import Path

import pytest

from actrep_ray.cli.main import main
from actrep_ray.cluster import this_machine
from actrep_ray.cluster.placement import PlacementError
from actrep_ray.cluster.session import num_cpus
from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic.dataset import write_dataset


def recipe_of(*settings: str) -> Recipe:
    return load_recipe(None, list(settings))


@pytest.fixture(autouse=True)
def _starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setattr(this_machine, "num_gpus", lambda: num)


def test_what_names_no_gpu_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    with pytest.raises(PlacementError) as refused:
        check_this_machine(recipe_of("device=cuda", "learner.num_workers=2"))
    assert str(refused.value) == (
        "device=cuda: 3 GPUs are asked for (learner.num_workers=2, rollout.num_workers=1, "
        "rollout.tensor_parallel_size=1), this machine has 0 that torch can use; set device=auto "
        "or cpu, or `actrep doctor` for why"
    )


@pytest.mark.parametrize(
    ("num", "settings", "missing"),
    [
        (1, ("device=cuda",), "1 more GPU"),
        (1, ("device=auto",), "1 more GPU"),
        (2, ("device=cuda",), None),
        (1, ("device=cuda", "placement.mode=colocated"), None),
        (1, ("device=cuda", "stage=sft"), None),
        (2, ("device=auto", "rollout.tensor_parallel_size=4"), "3 more GPU"),
        (0, ("device=auto", "learner.num_workers=4"), None),
        (0, ("device=cpu", "rollout.num_workers=99"), None),
    ],
)
def test_gpus_asked_for_are_compared_with_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch, num: int, settings: tuple[str, ...], missing: str | None
) -> None:
    with_gpus(monkeypatch, num)
    if missing is None:
        check_this_machine(recipe_of(*settings))
        return
    with pytest.raises(PlacementError, match=f"this machine: {num} GPU.*missing: {missing}"):
        check_this_machine(recipe_of(*settings))


def test_a_cluster_that_is_joined_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_this_machine(recipe_of("device=cuda"))


def test_cpus_that_workers_reserve_are_no_more_than_a_number() -> None:
    """A local Ray is told how many are wanted, whatever the machine has."""
    assert num_cpus(recipe_of("rollout.num_workers=500", "rollout.num_cpus=4")) > 2000


@pytest.mark.parametrize("command", ["sft", "train", "evaluate", "count"])
def test_every_command_refuses_in_one_line_and_a_second(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_gpus(monkeypatch, 0)
    sizes = {"train": 2, "validation": 1, "test": 1}
    data = write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    model = write_tiny_model(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    stage = "sft" if command == "sft" else "grpo"
    lines = [f"stage: {stage}", "device: cuda", f"runs_dir: {tmp_path / 'runs'}"]
    lines += [f"model: {{path: {model}}}", f"data: {{path: {data}}}"]
    recipe.write_text("\n".join(lines))
    video = next((tmp_path / "data").rglob("*.mp4"))
    given = ["--checkpoint", str(model), "--recipe", str(recipe)]
    arguments = {
        "sft": [str(recipe)],
        "train": [str(recipe)],
        "evaluate": ["--data", str(data), "--out", str(tmp_path / "out"), *given],
        "count": [str(video), *given],
    }[command]
    main([command, *arguments])  # what it imports is not what is timed
    capsys.readouterr()
    began = time.monotonic()
    code = main([command, *arguments])
    seconds = time.monotonic() - began
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith("actrep: error: device=cuda: ")
    assert told.count("\n") == 1
    assert seconds < 1
    assert not (tmp_path / "runs").exists()
