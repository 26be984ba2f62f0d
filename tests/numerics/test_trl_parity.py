"""The losses that TRL offers too, against TRL's own code: loss and gradient to 1e-6.

`GRPOTrainer._compute_loss` is called as it is; only the model's forward pass is replaced, by the
frozen log-probabilities of `test_losses_reference.py`. (TRL's CISPO gives the bound itself where
ours gives its distance from 1: 5.0 is a `clip_high` of 4.)
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actrep_ray.config import AlgorithmConfig
from tests.numerics.test_losses_reference import (
    ADVANTAGES,
    LENGTHS,
    MAX_ANSWER_TOKENS,
    frozen_batch,
    our_loss,
)

trl = pytest.importorskip("trl", reason="TRL comes with the extra `dev`")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"preset": "grpo"}, {"loss_type": "grpo", "beta": 0.04}),
    "dr_grpo": ({"preset": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    "dapo": ({"preset": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        {"preset": "gspo"},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "cispo": ({"preset": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "sapo": ({"loss": "sapo", "aggregation": "seq-mean-token-mean"}, {"loss_type": "sapo"}),
}


def _trl_loss(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor, **options: Any) -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Trainer(GRPOTrainer):
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

        def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> Any:
            return log_probs, torch.zeros_like(log_probs), None

    values = {
        "loss_type": "grpo",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        **options,
    }
    trainer = Trainer(
        **values,
        model=SimpleNamespace(training=True),
        args=trl.GRPOConfig(
            use_cpu=True,
            bf16=False,
            report_to=[],
            steps_per_generation=1,
            use_bias_correction_kl=False,  # on by default: a weight of the KL beyond the paper
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        max_completion_length=MAX_ANSWER_TOKENS,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).double()
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS)), dtype=torch.float64),
    }
    return trainer._compute_loss(trainer.model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(name: str) -> None:
    ours, theirs = CASES[name]
    log_probs, old, ref = frozen_batch(name)
    found = our_loss(AlgorithmConfig(**ours), log_probs, old, ref)
    [gradient] = torch.autograd.grad(found, log_probs)
    expected = _trl_loss(log_probs, old, ref, **theirs)
    [expected_gradient] = torch.autograd.grad(expected, log_probs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)
