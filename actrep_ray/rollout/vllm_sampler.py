"""Draws of vLLM's workers by `actrep_ray.rollout.draws`, in the place of vLLM's own.

vLLM 0.28 has two of them. The engine's stream depends on all that it has drawn before. A generator
for each request fills the noise row by row, and on a CPU fails at the first prompt that is computed
in parts ("CPU Generator does not use offset"). What surrounds the draw stays vLLM's: temperature,
biases, nucleus, log-probabilities.

vLLM imports this module by name in each of its worker processes, as their extension.
"""

from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from actrep_ray.rollout.draws import EXTRA_ARG, draw, numbers
from actrep_ray.weights import vllm_transfer


class AnswerSampler(torch.nn.Module):
    """Draws for the requests of a batch, each by its key and length; a `TopKTopPSampler`.

    Args:
        model_runner: Whose batch it is; vLLM's first generation of runners.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self._runner = model_runner

    def forward(
        self,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities of logits [B, V] at their temperature."""
        assert not generators, "requests come without a seed"
        logits = apply_top_k_top_p(logits, k, p)
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        tokens = draw(probabilities, self._numbers())
        return tokens, logits.log_softmax(dim=-1, dtype=torch.float32)

    def _numbers(self) -> torch.Tensor:
        keys, positions = [], []
        for request_id in self._runner.input_batch.req_ids:
            request = self._runner.requests[request_id]
            answer_keys = request.sampling_params.extra_args[EXTRA_ARG]
            # vLLM calls the answers of a request that asks for several 0_ID, 1_ID, ...
            index = int(request_id.partition("_")[0]) if len(answer_keys) > 1 else 0
            keys.append(answer_keys[index])
            positions.append(len(request.output_token_ids))
        return numbers(keys, positions)


class WorkerExtension(vllm_transfer.WorkerExtension):
    """What vLLM's workers can do in addition, called by `collective_rpc`."""

    def actrep_draw_by_answer(self) -> None:
        """From now on draw by the keys of answers, which every request has to bring."""
        self.model_runner.sampler.topk_topp_sampler = AnswerSampler(self.model_runner)
