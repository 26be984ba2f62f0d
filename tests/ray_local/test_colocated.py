"""Engines and ranks that take turns in one bundle, with the transformers engine on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.util import placement_group_table

from actrep_ray.config import load_recipe
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.pools import start_pools
from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic.dataset import write_dataset


def test_they_share_a_bundle_and_train(ray_session: Any, tmp_path: Path) -> None:
    sizes = {"train": 4, "validation": 2}
    settings = {
        "placement.mode": "colocated",
        "device": "cpu",
        "runs_dir": tmp_path / "runs",
        "model.path": write_tiny_model(tmp_path / "model"),
        "model.dtype": "float32",
        "data.path": write_dataset(
            tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1
        ),
        "video.max_pixels": 1024,
        "video.cache_dir": tmp_path / "frames",
        "rollout.engine": "hf",
        "rollout.max_model_len": 512,
        "rollout.max_response_tokens": 8,
        "reward.weights": "{'letters:letters': 1}",
        "learner.num_cpus": 2,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.num_steps": 2,
        "checkpoint.every": 0,
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in settings.items()])
    job = prepare_grpo(recipe)
    pools = start_pools(recipe, tmp_path / "model", tmp_path / "model")
    try:
        groups: Any = placement_group_table()
        created = [group for group in groups.values() if group["state"] == "CREATED"]
        # One for both, so a CPU is left of four.
        assert [group["bundles"] for group in created] == [{0: {"CPU": 2.0}}]
        assert ray_session.available_resources()["CPU"] == 4 - 2 - recipe.reward.num_cpus

        def note_turns(worker: Any) -> None:  # within the engine's process
            def noting(name: str) -> Callable[[], None]:
                method = getattr(worker.engine, name)

                def note() -> None:
                    worker.told.append(name)
                    method()

                return note

            worker.told = []
            worker.engine.sleep, worker.engine.wake = noting("sleep"), noting("wake")

        [engine] = pools.rollouts.workers
        ray_session.get(engine.__ray_call__.remote(note_turns))
        assert job.run(pools).step == 2
        told = ray_session.get(engine.__ray_call__.remote(lambda worker: worker.told))
        assert told == ["sleep", "wake"] * 2  # at each update
    finally:
        pools.shutdown()
