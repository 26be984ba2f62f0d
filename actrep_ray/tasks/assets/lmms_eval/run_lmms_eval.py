"""lmms-eval with the model `actrep`: a checkpoint behind `actrep serve`, shown its own frames.

    python run_lmms_eval.py --model actrep --model_args base_url=http://127.0.0.1:8000/v1,model=NAME
        --include_path FOLDER --tasks TASK --batch_size 1

Runs in lmms-eval's own environment and needs nothing else. All other arguments are lmms-eval's.
More of `--model_args`: num_concurrent, timeout_s, and extra_body, JSON put over each request.
"""

import base64
import json
import mimetypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from lmms_eval.__main__ import cli_evaluate
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest


class ServedCheckpoint(lmms):  # type: ignore[misc]  # of a package without types
    """Sends each video as a file; an answer that does not come ends the evaluation."""

    def __init__(
        self, base_url: str, model: str, num_concurrent: int = 8, timeout_s: float = 600.0,
        extra_body: str = "{}", **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.url, self.model = f"{base_url.rstrip('/')}/chat/completions", model
        self.extra: dict[str, Any] = json.loads(extra_body)
        self.num_concurrent, self.timeout_s = int(num_concurrent), float(timeout_s)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in order."""
        with ThreadPoolExecutor(self.num_concurrent) as threads:
            return list(threads.map(self._answer, requests))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not known behind a server."""
        raise NotImplementedError("a served checkpoint answers; it has no likelihoods to tell")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Each of our questions is one message."""
        raise NotImplementedError("a served checkpoint is asked one question at a time")

    def _answer(self, request: Instance) -> str:
        question, settings, visuals_of, doc_id, task, split = request.args
        [video] = visuals_of(self.task_dict[task][split][doc_id])
        kind = mimetypes.guess_type(video)[0] or "video/mp4"
        data = base64.b64encode(Path(video).read_bytes()).decode()
        body = {
            "model": self.model,
            "temperature": 0.0,
            "max_tokens": settings["max_new_tokens"],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{data}"}},
                        {"type": "text", "text": question},
                    ],
                }
            ],
            **self.extra,
        }
        response = httpx.post(self.url, json=body, timeout=self.timeout_s)
        if response.status_code != 200:
            raise RuntimeError(f"{video}: {self.url} answered {response.status_code}")
        return str(response.json()["choices"][0]["message"]["content"] or "")


if __name__ == "__main__":
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest("actrep", simple_class_path="run_lmms_eval.ServedCheckpoint")
    )
    cli_evaluate()
