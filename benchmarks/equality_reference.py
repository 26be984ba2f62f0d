"""A second implementation of the learner's update; it calls nothing of the first.

The stock model of transformers, one right-padded row an answer with a video of its own and logits
of every token; advantages, losses and AdamW as their papers write them, in plain loops over
answers. An answer's values are a tensor of its tokens, so that nothing is padded in here: what does
not count is not in the list.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

Tensors = list[torch.Tensor]
Gradients = dict[str, torch.Tensor]

VISUAL = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")  # never sampled


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        tokens: int [R]
        sampled: float32 [R], the engine's log-probabilities of them.
        parts: What it earned, by the names of the rewards; NaN where one does not apply.
        is_cut: Whether it ended at its token limit.
    """

    tokens: np.ndarray
    sampled: np.ndarray
    parts: Mapping[str, float]
    is_cut: bool


@dataclass(frozen=True)
class Group:
    """One question about a video, and its answers.

    Attributes:
        frames: uint8 [T, H, W, 3]
        fps: Frames a second.
        question: Asked about them.
        answers: Of the policy.
    """

    frames: np.ndarray
    fps: float
    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Method:
    """An algorithm in the terms of the papers; the defaults are plain GRPO without a KL.

    Attributes:
        advantage: Estimator.
        parts: Weights of the rewards, for "gdpo".
        loss: Policy loss.
        low: Distance of the lower bound of ratios from 1 (geo_mean: of log-ratios from 0).
        high: Likewise of the upper one.
        dual: Bound of the ratio for negative advantages; None: none.
        tau: SAPO's temperatures.
        fraction: Share of tokens that clip_cov and kl_cov pick.
        cov_range: Covariances between which clip_cov picks.
        cov_coef: What kl_cov weighs |log-ratio| with.
        aggregation: How token terms become one number.
        scale: Divisor of seq-mean-token-sum-norm.
        kl: Weight of the KL to the reference policy.
        kl_type: Its estimator.
        kl_in: "loss" or "reward".
        kl_target: KL that its weight follows; None: it is fixed.
        kl_horizon: Answers over which it follows.
        entropy: Weight of the entropy.
        masks_cut: Whether answers that were cut off count.
        correction: Of the gap between engine and learner.
        threshold: Its largest ratio.
        temperature: Of sampling.
        passes: Over the step's groups.
        mini_groups: Groups of one optimiser step.
        lr: Learning rate.
        betas: AdamW's.
        decay: AdamW's, of weights with more than one dimension.
        max_norm: Gradients are clipped to it.
        seed: Of what clip_cov draws.
    """

    advantage: str = "grpo"
    parts: Mapping[str, float] | None = None
    loss: str = "vanilla"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    tau: tuple[float, float] = (1.0, 1.05)
    fraction: float = 2e-4
    cov_range: tuple[float, float] = (1.0, 5.0)
    cov_coef: float = 1.0
    aggregation: str = "token-mean"
    scale: float = 1.0
    kl: float = 0.0
    kl_type: str = "k3"
    kl_in: str = "loss"
    kl_target: float | None = None
    kl_horizon: int = 10000
    entropy: float = 0.0
    masks_cut: bool = False
    correction: str = "off"
    threshold: float = 2.0
    temperature: float = 1.0
    passes: int = 2
    mini_groups: int = 2
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    max_norm: float = 1.0
    seed: int = 0


# ---------------------------------------------------------------- advantages


def normalised(rewards: np.ndarray) -> np.ndarray:
    """2402.03300: (r - mean) / std, the sample's; 0 where all are equal."""
    if np.ptp(rewards) == 0:
        return np.zeros(len(rewards))
    result: np.ndarray = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    return result


def advantages_of(
    rewards: Sequence[np.ndarray], groups: Sequence[Group], method: Method
) -> list[np.ndarray]:
    """Advantage of every answer of every group, float64 [G] each."""
    lengths = [np.array([len(a.tokens) for a in group.answers]) for group in groups]
    if method.advantage == "gdpo":
        return gdpo(groups, method.parts or {})
    if method.advantage == "reinforce_plus_plus_baseline":
        # 2501.03262: r - the group's mean, over the standard deviation of the batch's tokens.
        centred = [r - r.mean() for r in rewards]
        of_tokens = np.concatenate([np.repeat(c, n) for c, n in zip(centred, lengths, strict=True)])
        spread = of_tokens.std(ddof=1)
        return [
            np.zeros(len(c)) if np.ptp(r) == 0 else (c - of_tokens.mean()) / spread
            for c, r in zip(centred, rewards, strict=True)
        ]
    return [one_group(r, n, method.advantage) for r, n in zip(rewards, lengths, strict=True)]


def one_group(rewards: np.ndarray, lengths: np.ndarray, name: str) -> np.ndarray:
    """Estimators that look at one group alone."""
    if name == "grpo":
        return normalised(rewards)
    if name == "dr_grpo":  # 2503.20783: r - mean
        centred: np.ndarray = rewards - rewards.mean()
        return centred
    if name == "rloo":  # 2402.14740: r - mean of the others
        return np.array([r - np.delete(rewards, i).mean() for i, r in enumerate(rewards)])
    if name == "opo":  # 2505.23585: r - sum(l r) / sum(l)
        led: np.ndarray = rewards - (lengths * rewards).sum() / lengths.sum()
        return led
    if name == "grpo_passk":  # 2503.19595: the best one's lead over the second; the others 0
        found = np.zeros(len(rewards))
        second, best = np.sort(rewards)[-2:]
        if best > second:
            found[rewards.argmax()] = (best - second) / (rewards.std(ddof=1) + 1e-6)
        return found
    if name == "raft":  # 2304.06767: what rejection sampling keeps; of a flat group nothing
        kept: np.ndarray = (rewards == rewards.max()) * float(np.ptp(rewards) > 0)
        return kept
    raise ValueError(name)


def gdpo(groups: Sequence[Group], weights: Mapping[str, float]) -> list[np.ndarray]:
    """2601.05242: each reward normalised in its group, weighed, summed, whitened over answers."""
    summed = []
    for group in groups:
        total = np.zeros(len(group.answers))
        for name, weight in weights.items():
            values = np.array([answer.parts[name] for answer in group.answers])
            if not np.isnan(values).any():
                total += weight * normalised(values)
        summed.append(total)
    every = np.concatenate(summed)
    return [(total - every.mean()) / every.std(ddof=1) if total.any() else total
            for total in summed]  # fmt: skip


def summed_rewards(
    answers: Sequence[Answer], weights: Mapping[str, float], penalties: Mapping[str, float]
) -> np.ndarray:
    """`combine: sum`: the average by weight of what applies, less the penalties; 0 to 1."""
    found = []
    for answer in answers:
        applies = {n: w for n, w in weights.items() if not math.isnan(answer.parts[n])}
        total = sum(w * answer.parts[n] for n, w in applies.items()) / sum(applies.values())
        total += sum(w * answer.parts[n] for n, w in penalties.items())
        found.append(min(1.0, max(0.0, total)))
    return np.array(found)


def combined_rewards(answers: Sequence[Answer], weights: Mapping[str, float]) -> np.ndarray:
    """`combine: per_reward`: each part normalised in its group, averaged by weight."""
    total = np.zeros(len(answers))
    for name, weight in weights.items():
        values = np.array([answer.parts[name] for answer in answers])
        if not np.isnan(values).any():
            total += weight * (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    return total / sum(weights.values())


# ---------------------------------------------------------------- losses


def policy_terms(
    now: Tensors,
    old: Tensors,
    advantages: Sequence[float],
    method: Method,
    picked: Sequence[torch.Tensor],
    seen: Counter[str],
) -> Tensors:
    """What is minimised, a term a token, of each answer."""
    terms = []
    for log_p, before, a, chosen in zip(now, old, advantages, picked, strict=True):
        ratio = (log_p - before).exp()
        see(ratio, a, method, seen)
        if method.loss in ("vanilla", "clip_cov"):
            gain = clipped(ratio, a, method)
            if method.loss == "vanilla" and method.dual is not None and a < 0:
                # 1912.09729: of a negative advantage, at least dual * A
                seen["dual"] += int((ratio > method.dual).sum())
                gain = torch.maximum(gain, torch.tensor(method.dual * a))
            if method.loss == "clip_cov":  # 2505.22617: the gradient of what is picked is cut
                gain = torch.where(chosen, gain.detach(), gain)
            terms.append(-gain)
        elif method.loss == "gspo":
            # 2507.18071, GSPO-token: s of the answer, with the gradient of each token's own
            # log-probability.
            s = (log_p - before).mean().exp().detach() * (log_p - log_p.detach()).exp()
            see(s[:1], a, method, seen, "answer ")
            terms.append(-clipped(s, a, method))
        elif method.loss == "cispo":  # 2506.13585, eq. 4 and 5
            weight = ratio.clamp(1 - method.low, 1 + method.high).detach()
            terms.append(-weight * a * log_p)
        elif method.loss == "sapo":  # 2511.20347: sigmoid(tau (r - 1)) * 4 / tau * A
            tau = method.tau[0] if a > 0 else method.tau[1]
            terms.append(-torch.sigmoid(tau * (ratio - 1)) * (4 / tau) * a)
        elif method.loss == "geo_mean":
            # 2507.20673: the geometric mean of ratios that are bounded where they go too far.
            log_ratio = log_p - before
            bounded = log_ratio.clamp(max=method.high) if a > 0 else log_ratio.clamp(-method.low)
            terms.append((-a * bounded.mean().exp()).expand(len(log_p)))
        elif method.loss == "kl_cov":  # 2505.22617: what is picked pays for having moved
            away = (log_p - before).abs()
            terms.append(-ratio * a + torch.where(chosen, method.cov_coef * away, 0.0))
        else:
            raise ValueError(method.loss)
    return terms


def clipped(ratio: torch.Tensor, advantage: float, method: Method) -> torch.Tensor:
    """1707.06347: min(r A, clip(r, 1 - low, 1 + high) A)."""
    bounded = ratio.clamp(1 - method.low, 1 + method.high)
    return torch.minimum(ratio * advantage, bounded * advantage)


def see(
    ratio: torch.Tensor, advantage: float, method: Method, seen: Counter[str], what: str = ""
) -> None:
    """Count which side of which bound ratios are on, for either sign of the advantage."""
    low, high = 1 - method.low, 1 + method.high
    if method.loss == "geo_mean":
        low, high = math.exp(-method.low), math.exp(method.high)
    sign = "+" if advantage > 0 else "-"
    if advantage:
        seen[f"{what}above{sign}"] += int((ratio > high).sum())
        seen[f"{what}below{sign}"] += int((ratio < low).sum())
        seen[f"{what}within{sign}"] += int(((ratio >= low) & (ratio <= high)).sum())


def aggregate(terms: Tensors, method: Method) -> torch.Tensor:
    """Token terms of the answers that count as one number."""
    if method.aggregation == "token-mean":
        return torch.cat(terms).mean()
    if method.aggregation == "seq-mean-token-mean":
        return torch.stack([term.mean() for term in terms]).mean()
    sums = torch.stack([term.sum() for term in terms])
    if method.aggregation == "seq-mean-token-sum":
        return sums.mean()
    return sums.mean() / method.scale  # seq-mean-token-sum-norm


def kl_terms(now: torch.Tensor, ref: torch.Tensor, kind: str) -> torch.Tensor:
    """Schulman's estimators (joschu.net/blog/kl-approx.html) of KL(now || ref), a token each.

    k1 has the value of the log-ratio and the gradient of k2 (2510.01555).
    """
    log_r = ref - now
    if kind == "k1":
        half = log_r.square() / 2
        return half - half.detach() - log_r.detach()
    if kind == "k2":
        return log_r.square() / 2
    return log_r.exp() - 1 - log_r


def covariances(now: Tensors, advantages: Sequence[float]) -> Tensors:
    """2505.22617: (log p - its mean) (A - its mean), means over the tokens of the mini-batch."""
    a = [torch.full_like(values, one) for values, one in zip(now, advantages, strict=True)]
    mean_p, mean_a = torch.cat(now).mean(), torch.cat(a).mean()
    return [(p - mean_p) * (x - mean_a) for p, x in zip(now, a, strict=True)]


# ---------------------------------------------------------------- the stock model


class StockModel:
    """A checkpoint as transformers loads it, in float32.

    Args:
        folder: The checkpoint.
        temperature: Divides the logits.
    """

    def __init__(self, folder: Path, temperature: float) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="sdpa"
        )
        self.processor: Any = AutoProcessor.from_pretrained(str(folder))
        self.temperature = temperature
        ids = self.processor.tokenizer.convert_tokens_to_ids(list(VISUAL))
        self.never = torch.tensor(ids)

    def score(self, groups: Sequence[Group]) -> tuple[Tensors, Tensors]:
        """Log-probability and entropy of every answer's tokens: [R] each, in order."""
        prompts, rows, answers = [], [], []
        for group in groups:
            prompt = self.encode(group)
            for answer in group.answers:
                prompts.append(prompt)
                answers.append(torch.from_numpy(answer.tokens.astype(np.int64)))
                rows.append(torch.cat([prompt["input_ids"][0], answers[-1]]))
        pad = torch.nn.utils.rnn.pad_sequence
        kinds = [
            torch.nn.functional.pad(p["mm_token_type_ids"][0], (0, len(a)))
            for p, a in zip(prompts, answers, strict=True)
        ]
        logits = self.model(
            input_ids=pad(rows, batch_first=True),
            attention_mask=pad([torch.ones_like(row) for row in rows], batch_first=True),
            mm_token_type_ids=pad(kinds, batch_first=True),
            pixel_values_videos=torch.cat([p["pixel_values_videos"] for p in prompts]),
            video_grid_thw=torch.cat([p["video_grid_thw"] for p in prompts]),
            use_cache=False,
        ).logits
        logits = (logits / self.temperature).index_fill(2, self.never, -torch.inf)
        found, entropies = [], []
        for row, prompt, tokens in zip(logits, prompts, answers, strict=True):
            start = len(prompt["input_ids"][0]) - 1
            log_all = row[start : start + len(tokens)].log_softmax(dim=1)
            found.append(log_all[torch.arange(len(tokens)), tokens])
            finite = torch.where(log_all.isinf(), 0.0, log_all)
            entropies.append(-(log_all.exp() * finite).sum(dim=1))
        return found, entropies

    def encode(self, group: Group) -> Any:
        """The processor's tokens and patches of a question about a video."""
        content = [{"type": "video"}, {"type": "text", "text": group.question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        count = len(group.frames)
        metadata = {
            "fps": group.fps,
            "frames_indices": list(range(count)),
            "total_num_frames": count,
            "duration": count / group.fps,
        }
        return self.processor(
            text=[text],
            videos=[group.frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
            return_mm_token_type_ids=True,
        )


class AdamW:
    """1711.05101 with the learning rate on the decay, as PyTorch has it; gradients are clipped."""

    def __init__(self, model: torch.nn.Module, method: Method) -> None:
        self.parameters = dict(model.named_parameters())
        self.method = method
        self.mean = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.square = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Gradients, follow: Gradients) -> float:
        """Move the weights, unless there is no gradient at all, and then to those to follow.

        Returns:
            Norm of the difference to those, as a share of the norm of the move.
        """
        before = {name: weight.clone() for name, weight in self.parameters.items()}
        if any(bool(gradient.any()) for gradient in gradients.values()):
            self.move(gradients)
        apart = moved = 0.0
        for name, weight in self.parameters.items():
            apart += float((weight - follow[name]).double().square().sum())
            moved += float((weight - before[name]).double().square().sum())
            weight.copy_(follow[name])
        return math.sqrt(apart / moved) if moved else float(apart > 0)

    def move(self, gradients: Gradients) -> None:
        """One step."""
        (b1, b2), lr = self.method.betas, self.method.lr
        self.count += 1
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        factor = min(1.0, self.method.max_norm / (norm + 1e-6))
        for name, gradient in gradients.items():
            g, weight = gradient * factor, self.parameters[name]
            self.mean[name] = b1 * self.mean[name] + (1 - b1) * g
            self.square[name] = b2 * self.square[name] + (1 - b2) * g * g
            mean = self.mean[name] / (1 - b1**self.count)
            square = self.square[name] / (1 - b2**self.count)
            if weight.dim() > 1:
                weight.mul_(1 - lr * self.method.decay)
            weight.sub_(lr * mean / (square.sqrt() + 1e-8))


# ---------------------------------------------------------------- an update


@dataclass(frozen=True)
class Answers:
    """What is known of some answers before an optimiser step.

    Attributes:
        old: Log-probabilities before the update, [R] each.
        ref: Those of the reference policy; None: there is none.
        advantages: Of each.
        weights: Importance weights, [R] each.
        kept: Which tokens count, bool [R] each.
    """

    old: Tensors
    ref: Tensors | None
    advantages: list[float]
    weights: Tensors
    kept: Tensors

    def part(self, start: int, end: int) -> "Answers":
        """Those of a mini-batch."""
        which = slice(start, end)
        ref = None if self.ref is None else self.ref[which]
        return Answers(
            self.old[which], ref, self.advantages[which], self.weights[which], self.kept[which]
        )


class SecondLearner:
    """Trains the stock model.

    Args:
        folder: Checkpoint to begin with.
        ref_folder: That of the reference policy.
        method: The algorithm.

    Attributes:
        seen: How many tokens went which way: bounds that acted, answers left out.
        kl_coef: Weight of the KL now.
    """

    def __init__(self, folder: Path, ref_folder: Path, method: Method) -> None:
        self.method = method
        self.policy = StockModel(folder, method.temperature)
        self.ref = StockModel(ref_folder, method.temperature) if method.kl else None
        self.optimizer = AdamW(self.policy.model, method)
        self.seen: Counter[str] = Counter()
        self.kl_coef = method.kl

    def update(
        self,
        groups: Sequence[Group],
        rewards: Sequence[np.ndarray],
        neighbour: tuple[Method, Sequence[np.ndarray]],
        follow: Callable[[], Gradients],
    ) -> tuple[list[Gradients], list[Gradients], list[float]]:
        """All optimiser steps of one step's groups.

        Args:
            groups: With their answers.
            rewards: Of each answer.
            neighbour: Another method and its rewards.
            follow: Gives the weights that another learner has after each optimiser step: the next
                one starts from them, else AdamW would make whole steps of rounding errors.

        Returns:
            The gradients before clipping; those of the last pass as the neighbour would have
            them; and of each optimiser step the norm of the difference between the weights that
            it led to and those that are followed, as a share of how far it moved them.
        """
        method = self.method
        with torch.no_grad():
            old, _ = self.policy.score(groups)
            ref = None if self.ref is None else self.ref.score(groups)[0]
        known = prepare(groups, rewards, old, ref, method, self.kl_coef, self.seen)
        beside, others_rewards = neighbour
        other = prepare(groups, others_rewards, old, ref, beside, beside.kl, Counter())
        ends = np.cumsum([0, *(len(group.answers) for group in groups)]).tolist()
        gradients: list[Gradients] = []
        others: list[Gradients] = []
        kls: Tensors = []
        apart: list[float] = []
        for number in range(method.passes):
            kls, others = [], []
            for g in range(0, len(groups), method.mini_groups):
                mini = groups[g : g + method.mini_groups]
                where = ends[g], ends[g + len(mini)]
                if number == method.passes - 1:
                    others.append(self.gradient(mini, other.part(*where), beside, beside.kl)[0])
                found, kl = self.gradient(mini, known.part(*where), method, self.kl_coef, self.seen)
                gradients.append(found)
                kls.append(kl)
                apart.append(self.optimizer.step(found, follow()))
        if method.kl_target is not None:  # 1909.08593, 2.2
            error = torch.cat(kls).mean().item() / method.kl_target - 1
            error = min(0.2, max(-0.2, error))
            self.kl_coef *= 1 + error * len(old) / method.kl_horizon
        return gradients, others, apart

    def gradient(
        self,
        groups: Sequence[Group],
        known: Answers,
        method: Method,
        kl_coef: float,
        seen: Counter[str] | None = None,
    ) -> tuple[Gradients, torch.Tensor]:
        """Gradient of a mini-batch, and the KL of its tokens."""
        seen = Counter() if seen is None else seen
        now, entropy = self.policy.score(groups)
        alive = [i for i, mask in enumerate(known.kept) if mask.any()]

        def kept(values: Tensors) -> Tensors:
            return [values[i][known.kept[i]] for i in alive]

        now, entropy, old, weights = map(kept, (now, entropy, known.old, known.weights))
        a = [known.advantages[i] for i in alive]
        picked = pick([v.detach() for v in now], old, a, method, self.optimizer.count, seen)
        terms = policy_terms(now, old, a, method, picked, seen)
        if method.loss == "geo_mean":  # an answer's weight is the geometric mean of its tokens'
            weights = [w.log().mean().exp().expand(len(w)) for w in weights]
        loss = aggregate([t * w for t, w in zip(terms, weights, strict=True)], method)
        if method.entropy:
            loss = loss - method.entropy * aggregate(entropy, method)
        kl_now = torch.zeros(0)
        if known.ref is not None and method.kl:
            ref = kept(known.ref)
            kl = [kl_terms(n, r, method.kl_type) for n, r in zip(now, ref, strict=True)]
            kl_now = torch.cat(kl).detach()
            away = torch.cat(ref) - torch.cat(now)
            seen["far from ref"] += int((away > 2.6).sum())
            seen["near ref"] += int((away.abs() < 1).sum())
            if method.kl_in == "loss":
                loss = loss + kl_coef * aggregate(kl, method)
        names, parameters = zip(*self.policy.model.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for name, p, g in zip(names, parameters, found, strict=True)
        }, kl_now


def prepare(
    groups: Sequence[Group],
    rewards: Sequence[np.ndarray],
    old: Tensors,
    ref: Tensors | None,
    method: Method,
    kl_coef: float,
    seen: Counter[str],
) -> Answers:
    """Advantages, importance weights and masks of every answer."""
    if ref is not None and method.kl and method.kl_in == "reward":
        kl = [float(kl_terms(o, r, method.kl_type).sum()) for o, r in zip(old, ref, strict=True)]
        ends = np.cumsum([0, *(len(group.answers) for group in groups)])
        rewards = [r - kl_coef * np.array(kl[ends[g] : ends[g + 1]]) for g, r in enumerate(rewards)]
    advantages = np.concatenate(advantages_of(rewards, groups, method))
    answers = [answer for group in groups for answer in group.answers]
    weights, kept = correct(answers, old, method, seen)
    return Answers(old, ref, [float(a) for a in advantages], weights, kept)


def correct(
    answers: Sequence[Answer], old: Tensors, method: Method, seen: Counter[str]
) -> tuple[Tensors, Tensors]:
    """Importance weights of tokens, and which of them count, of each answer."""
    weights, kept, c = [], [], method.threshold
    for answer, before in zip(answers, old, strict=True):
        weight, mask = torch.ones(len(before)), torch.ones(len(before), dtype=torch.bool)
        log_ratio = before - torch.from_numpy(answer.sampled)
        if method.correction.startswith("sequence"):
            log_ratio = log_ratio.sum().expand(len(before))
        ratio = log_ratio.exp()
        if method.masks_cut and answer.is_cut:
            mask = torch.zeros_like(mask)
            seen["cut answers"] += 1
        elif method.correction.endswith("truncate"):
            weight = ratio.clamp(max=c)
            seen["bounded weights"] += int((ratio > c).sum())
            seen["free weights"] += int((ratio <= c).sum())
        elif method.correction.endswith("reject"):
            mask = (ratio >= 1 / c) & (ratio <= c)
            seen["rejected above"] += int((ratio > c).sum())
            seen["rejected below"] += int((ratio < 1 / c).sum())
            seen["not rejected"] += int(mask.sum())
        weights.append(weight)
        kept.append(mask)
    return weights, kept


def pick(
    now: Tensors,
    old: Tensors,
    advantages: Sequence[float],
    method: Method,
    num_steps: int,
    seen: Counter[str],
) -> Tensors:
    """Which tokens clip_cov or kl_cov picks, bool [R] of each answer."""
    lengths = [len(values) for values in now]
    flat = torch.zeros(sum(lengths), dtype=torch.bool)
    if method.loss not in ("clip_cov", "kl_cov"):
        return list(flat.split(lengths))
    cov = torch.cat(covariances(now, advantages))
    number = max(1, int(method.fraction * len(cov)))
    log_ratio = torch.cat(now) - torch.cat(old)
    if method.loss == "kl_cov":
        flat[cov.argsort(descending=True)[:number]] = True
        seen["picked, likelier"] += int((log_ratio[flat] > 0).sum())
        seen["picked, less likely"] += int((log_ratio[flat] < 0).sum())
    else:
        ratio = log_ratio.exp()
        a = torch.cat([torch.full_like(n, x) for n, x in zip(now, advantages, strict=True)])
        is_cut = ((ratio > 1 + method.high) & (a > 0)) | ((ratio < 1 - method.low) & (a < 0))
        low, high = method.cov_range
        found = torch.nonzero((cov > low) & (cov < high) & ~is_cut)[:, 0]
        order = np.random.default_rng((method.seed, num_steps)).permutation(len(found))
        flat[found[torch.from_numpy(order[:number])]] = True
        seen["above the range"] += int((cov >= high).sum())
        seen["left by chance"] += max(0, len(found) - number)
    seen["picked"] += int(flat.sum())
    return list(flat.split(lengths))
