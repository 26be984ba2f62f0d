"""One optimiser step: gradients of a mini-batch's micro-batches, and what follows from them.

A mini-batch whose loss has no gradient on any rank (every token is masked, rejected or clipped, or
has an advantage of 0) takes no step: AdamW would move the weights by old momentum and decay.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.loader import MicroBatch, MicroBatchLoader
from actrep_ray.learner.batch.packing import AnswerKey
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.objective import LossFn
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.learner.strategies.ema import Ema
from actrep_ray.learner.strategies.optimizer import learning_rates, lr_factor
from actrep_ray.models import lora
from actrep_ray.records import LearnerRow
from data_prep import files


class LearnerError(RuntimeError):
    """Training cannot go on; the message says why and which rows were at hand."""


class OptimizerSteps:
    """Takes optimiser steps, one a mini-batch, and counts them.

    Args:
        recipe: Learning rates and their schedule, dropout of adapters, the run's folder.
        ranks: All of them make the same calls.
        policy: What is trained.
        strategy: What splits and steps it.
        ema: Its moving average, if there is one.
        loader: Makes micro-batches.

    Attributes:
        num_taken: Optimiser steps so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        policy: Policy,
        strategy: Strategy,
        ema: Ema | None,
        loader: MicroBatchLoader,
    ) -> None:
        self.num_taken = 0
        self._recipe = recipe
        self._ranks = ranks
        self._model = policy.model
        self._strategy = strategy
        self._ema = ema
        self._loader = loader

    def take(
        self,
        rows: Sequence[LearnerRow],
        chosen: Sequence[int],
        loss_fn: LossFn,
        counts: BatchCounts,
        *,
        temperature: float,
        num_left: int,
        with_entropy_grad: bool = False,
    ) -> dict[str, float]:
        """Accumulate gradients, check them, clip, step; no step if there is no gradient.

        The schedule advances with the steps that are taken, and ends with the last that is to come.

        Args:
            rows: Of the whole batch.
            chosen: Numbers of the rows of this mini-batch.
            loss_fn: Gives a micro-batch's contribution to the mini-batch's loss.
            counts: Of the mini-batch.
            temperature: Divides the logits.
            num_left: Optimiser steps of the run that are to come, this one included.
            with_entropy_grad: Whether the entropy is part of the loss.

        Returns:
            The sums of `loss_fn` divided by the tokens of all ranks that count, `grad_norm`, `lr`.

        Raises:
            LearnerError: if a loss or the gradient is not finite; nothing was changed then.
        """
        with self._dropout():
            found = accumulate_gradients(
                self._strategy,
                self._loader.load(rows, chosen),
                loss_fn,
                self._ranks,
                temperature=temperature,
                with_entropy_grad=with_entropy_grad,
            )
        cfg, step, total = self._recipe.learner, self.num_taken, self.num_taken + num_left
        norm = self._strategy.step(lr_factor(step, cfg, total))
        if found.is_finite and not found.has_gradient:
            norm = 0.0
        elif not np.isfinite(norm):
            bad = [f"{rows[i].row_id}/{a}" for i, a in found.not_finite]
            names = [f"{rows[i].row_id}/{a}" for i in chosen for a in range(len(rows[i].responses))]
            _stop_not_finite(self._ranks, bad, names, step + 1, self._recipe.run_dir)
        else:
            self.num_taken += 1
            if self._ema is not None:
                self._ema.update()
        sums = self._ranks.sum(found.sums)
        means = {key: value / counts.num_tokens for key, value in sums.items()}
        return {**means, "grad_norm": norm, **learning_rates(step, cfg, total)}

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Dropout of adapters, drawn from the seed and the optimiser step: a resumed run agrees."""
        cfg = self._recipe.model.lora
        if not (cfg.rank and cfg.dropout):
            yield
            return
        lora.set_dropout(self._model, is_on=True)
        torch.manual_seed(hash((self._recipe.seed, self.num_taken, self._ranks.rank)))
        yield
        lora.set_dropout(self._model, is_on=False)


@dataclass
class LossSums:
    """What one rank's micro-batches came to.

    Attributes:
        sums: Sums over tokens, by name.
        not_finite: Answers whose loss is not finite.
        is_finite: Whether the losses of all ranks are; one that masks all that it sees has no
            gradient, and is NaN all the same where the weights are.
        has_gradient: Whether the loss has a gradient other than 0 on any rank.
    """

    sums: dict[str, float] = field(default_factory=dict)
    not_finite: list[AnswerKey] = field(default_factory=list)
    is_finite: bool = True
    has_gradient: bool = False


def accumulate_gradients(
    strategy: Strategy,
    micro_batches: Iterable[MicroBatch],
    loss_fn: LossFn,
    ranks: Ranks,
    *,
    temperature: float,
    with_entropy_grad: bool = False,
) -> LossSums:
    """Forward and backward; the gradients end up in the strategy. Every rank must take part.

    Where a loss is not finite, or none has a gradient, the gradient is NaN on every rank, so that
    no strategy takes the step.

    Args:
        strategy: What is trained.
        micro_batches: Of this rank, as many as every rank has.
        loss_fn: Gives a micro-batch's contribution to the mini-batch's loss.
        ranks: Whose gradients are averaged.
        temperature: Divides the logits.
        with_entropy_grad: Whether the entropy is part of the loss.
    """
    found = LossSums()
    for micro in micro_batches:
        batch = micro.batch
        outputs = strategy.forward(
            batch, temperature=temperature, with_entropy_grad=with_entropy_grad
        )
        # The loss is given leaves: its gradient by them is known before the model's own backward.
        log_probs, entropy = (o.detach().requires_grad_(o.requires_grad) for o in outputs)
        loss, parts = loss_fn(batch, log_probs, entropy)
        if not torch.isfinite(loss):
            is_bad = (~log_probs.detach().isfinite()).any(dim=1).tolist()
            bad = [key for key, b in zip(batch.answers, is_bad, strict=True) if b]
            found.not_finite += bad or batch.answers
        (loss * micro.weight).backward()
        pairs = [(o, x.grad) for o, x in zip(outputs, (log_probs, entropy), strict=True)]
        slopes = [(o, slope) for o, slope in pairs if slope is not None]
        found.has_gradient |= any(bool(slope.any()) for _, slope in slopes)
        through = torch.stack([(o * slope).sum() for o, slope in slopes]).sum()
        if micro.is_last:
            own = {"bad": float(len(found.not_finite)), "gradient": float(found.has_gradient)}
            of_all = ranks.sum(own)
            found.has_gradient, found.is_finite = of_all["gradient"] > 0, of_all["bad"] == 0
            if not (found.is_finite and found.has_gradient):
                through = through * torch.nan
        strategy.backward(through, is_last=micro.is_last)
        for key, value in parts.items():
            found.sums[key] = found.sums.get(key, 0.0) + value * micro.weight
    return found


def _stop_not_finite(
    ranks: Ranks, own_bad: Sequence[str], rollouts: Sequence[str], step: int, run_dir: Path
) -> NoReturn:
    """End training; the ids of the mini-batch's rollouts are left in the run's folder.

    Args:
        ranks: All of them call this.
        own_bad: Rollouts of this rank whose loss is not finite.
        rollouts: Those of the mini-batch, over all ranks.
        step: Number of the optimiser step, from 1.
        run_dir: The run's folder.
    """
    found = sorted({name for part in ranks.gather(own_bad) for name in part})
    what, bad = ("loss", found) if found else ("gradient norm", list(rollouts))
    path = (run_dir / f"not-finite-{step:06d}.json").absolute()
    if ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"optimizer_step": step, "what": what, "bad": bad, "mini_batch": list(rollouts)}
        files.write_json(path, content)
    named = dict.fromkeys(rollout.rpartition("/")[0] for rollout in bad)
    raise LearnerError(
        f"optimiser step {step}: the {what} is not finite; nothing was changed. "
        f"Rows: {', '.join(named)}. Rollouts: {', '.join(bad[:8])}"
        f"{f' and {len(bad) - 8} more' if len(bad) > 8 else ''}; all are in {path}. "
        "Lower learner.lr or look at these clips"
    )
