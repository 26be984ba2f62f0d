"""Fixtures and collection rules that every test folder shares."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How long one example takes is the machine's affair, not the code's.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where torch sees no CUDA device, and say so."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        reason = f"needs a CUDA device; torch {torch.__version__} sees none"
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Frames of recipes that name no folder go to one of this session, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTREP_CACHE", str(tmp_path_factory.mktemp("actrep-cache")))
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A local Ray with 4 logical CPUs for the whole session; yields the ``ray`` module.

    Its workers and this process import what lies in `own_rewards`, as a user's own rewards.
    """
    import ray

    folder = str(Path(__file__).with_name("own_rewards"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
        patch.syspath_prepend(folder)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
        yield ray
        ray.shutdown()
