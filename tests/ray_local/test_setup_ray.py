"""The torchvision hook reaches Ray's workers."""

from typing import Any


def test_ray_worker_imports_torchvision(ray_session: Any) -> None:
    def video_processor_name() -> str:
        import torchvision  # noqa: F401
        from transformers import Qwen3VLVideoProcessor

        return str(Qwen3VLVideoProcessor.__name__)

    task = ray_session.remote(num_cpus=1)(video_processor_name)
    assert ray_session.get(task.remote(), timeout=180) == "Qwen3VLVideoProcessor"
