"""What `equality.py` compares: every option of `algorithm`, alone and together, and the inputs.

A case is a recipe's settings and the same algorithm in the words of the second implementation. The
inputs are chosen to reach every branch: answers of 1 to 23 tokens, of which the longest were cut
off, groups of four sizes, one whose answers all earned the same, a policy so sharp that a few
optimiser steps take ratios beyond every bound, an engine that sampled with other
log-probabilities, and a reference policy that is far away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from equality_reference import Answer, Group, Method
from safetensors.torch import load_file, save_file

from actrep_ray.models.tiny import write_tiny_model
from data_prep.video import FramePlan, read_frames
from data_prep.video_writer import encode_mp4
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

QUESTION = "How many times is the action repeated?"
GROUP_SIZES = (4, 3, 5, 2)
FLAT_GROUP = 1  # whose answers all earn the same
LENGTHS = (1, 2, 7, 13, 23)
MAX_ANSWER_TOKENS = 23
NUM_FRAMES = (4, 6, 8, 10)
FPS = 4
TEMPERATURE = 0.8
LR = 1e-3
DECAY = 0.1
SHARPNESS = 4.0
PARTS = {"graded": 0.5, "marked": 0.3, "tidy": 0.4}
PENALTIES = {"wordy": 0.3}

BOUNDS = ("above+", "above-", "below+", "below-", "within+", "within-")
ANSWER_BOUNDS = tuple(f"answer {name}" for name in BOUNDS[:4])

# ---------------------------------------------------------------- rewards, read from the answer


def graded(response: ParsedResponse, reference: Reference) -> float:
    """The first number of the answer."""
    return float(response.text.split()[0])


def marked(response: ParsedResponse, reference: Reference) -> float | None:
    """The second one; it does not apply to a clip without marks."""
    return float(response.text.split()[1]) if reference.cycles is not None else None


def tidy(response: ParsedResponse, reference: Reference) -> float:
    """The third one."""
    return float(response.text.split()[2])


def wordy(response: ParsedResponse, reference: Reference) -> float:
    """The fourth one, a penalty."""
    return float(response.text.split()[3])


def reward_weights() -> dict[str, Any]:
    """`reward.weights` of every case."""
    named = {f"equality_cases:{name}": weight for name, weight in PARTS.items()}
    penalties = {
        f"equality_cases:{name}": {"weight": weight, "penalty": True}
        for name, weight in PENALTIES.items()
    }
    return named | penalties


# ---------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Inputs:
    """Checkpoints and videos in a folder.

    Attributes:
        policy: Checkpoint that is trained.
        reference: That of the reference policy.
        plans: Frames of each group's video.
        frames: uint8 [T, H, W, 3] of each.
    """

    policy: Path
    reference: Path
    plans: tuple[FramePlan, ...]
    frames: tuple[np.ndarray, ...]


def make_inputs(folder: Path) -> Inputs:
    """Write them."""
    plans = []
    for number, count in enumerate(NUM_FRAMES):
        noise = np.random.default_rng(number).integers(0, 256, (count, 32, 32, 3), np.uint8)
        path = folder / f"{number}.mp4"
        encode_mp4(path, noise, FPS)
        status = path.stat()
        times_s = tuple(i / FPS for i in range(count))
        plans.append(FramePlan(str(path), status.st_size, times_s, FPS, 32, 32, status.st_mtime_ns))
    return Inputs(
        policy=sharp_model(folder / "policy", seed=0),
        reference=sharp_model(folder / "reference", seed=1),
        plans=tuple(plans),
        frames=tuple(read_frames(plan) for plan in plans),
    )


def sharp_model(folder: Path, *, seed: int) -> Path:
    """The small architecture with random weights and logits that are far apart."""
    path = write_tiny_model(folder, seed=seed) / "model.safetensors"
    weights = load_file(path)
    [name] = [name for name in weights if name.endswith("language_model.norm.weight")]
    save_file(weights | {name: weights[name] * SHARPNESS}, path, metadata={"format": "pt"})
    return folder


def make_groups(inputs: Inputs, step: int) -> list[Group]:
    """The answers of a step: random tokens and rewards, not sampled by anything."""
    rng = np.random.default_rng((7, step))
    groups = []
    for number, size in enumerate(GROUP_SIZES):
        has_marks = number != 0
        parts = {
            "graded": rng.choice([0.0, 0.25, 0.5, 1.0], size),
            "marked": rng.choice([0.0, 0.4, 0.9], size) if has_marks else np.full(size, np.nan),
            "tidy": np.ones(size) if number == 3 else rng.choice([0.0, 1.0], size),
            "wordy": -rng.choice([0.0, 0.5], size),
        }
        parts["graded"][:2] = 0.0, 1.0  # at least one part that differs
        if number == FLAT_GROUP:
            parts = {name: np.full(size, values[0]) for name, values in parts.items()}
        lengths = rng.permutation(LENGTHS)[:size]
        answers = tuple(
            Answer(
                tokens=rng.integers(7, 400, size=length).astype(np.int32),
                sampled=np.zeros(length, np.float32),
                parts={name: float(values[a]) for name, values in parts.items()},
                is_cut=bool(length == MAX_ANSWER_TOKENS),
            )
            for a, length in enumerate(lengths)
        )
        groups.append(Group(inputs.frames[number], FPS, QUESTION, answers))
    return groups


def sampled_elsewhere(
    groups: Sequence[Group], log_probs: Sequence[np.ndarray], step: int
) -> list[Group]:
    """The groups with an engine's log-probabilities: the learner's, and off by a token's and an
    answer's share of noise."""
    rng = np.random.default_rng((8, step))
    values = iter(log_probs)
    return [
        replace(
            group,
            answers=tuple(
                replace(answer, sampled=_disturbed(next(values), rng)) for answer in group.answers
            ),
        )
        for group in groups
    ]


def _disturbed(log_probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(log_probs)
    noise = rng.normal(scale=0.6, size=size) + rng.normal(scale=0.8) / size
    return (log_probs + noise).astype(np.float32)


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """An option, as the project is told of it and as the second implementation is.

    Attributes:
        option: What is checked.
        settings: Of `algorithm`.
        method: The same in the words of the papers.
        without: A neighbour of it, whose gradients must differ: what the comparison would take
            for right if the option did nothing.
        source: Where the formula is from.
        branches: What tokens must have gone through, by the names of `SecondLearner.seen`.
        combine: `reward.combine`.
        without_combine: That of the neighbour.
    """

    option: str
    settings: Mapping[str, Any]
    method: Method
    without: Method
    source: str
    branches: tuple[str, ...] = ()
    combine: str = "sum"
    without_combine: str = "sum"


BASE = Method(temperature=TEMPERATURE, lr=LR, decay=DECAY, scale=MAX_ANSWER_TOKENS)
_FIELDS = {
    "clip_low": "low",
    "clip_high": "high",
    "dual_clip": "dual",
    "sapo_tau": "tau",
    "cov_fraction": "fraction",
    "clip_cov_range": "cov_range",
    "kl_cov_coef": "cov_coef",
    "loss_scale_tokens": "scale",
    "kl_coef": "kl",
    "entropy_coef": "entropy",
    "mask_truncated": "masks_cut",
    "rollout_correction": "correction",
    "rollout_correction_threshold": "threshold",
}


def _case(
    option: str, source: str, *branches: str, without: Method = BASE, **settings: Any
) -> Case:
    """A case of settings that have a field each."""
    method = replace(BASE, **{_FIELDS.get(key, key): value for key, value in settings.items()})
    if method.advantage == "gdpo":
        method = replace(method, parts=PARTS | PENALTIES)
    return Case(option, settings, method, without, source, branches)


def _preset(name: str, source: str, *branches: str, without: Method = BASE, **paper: Any) -> Case:
    """A preset; `paper` is what it stands for."""
    method = replace(BASE, **paper)
    return Case(f"preset: {name}", {"preset": name}, method, without, source, branches)


_UNCLIPPED = replace(BASE, low=1e6, high=1e6)
_ANSWERS: dict[str, Any] = {"aggregation": "seq-mean-token-mean"}
_BY_ANSWER = replace(BASE, aggregation="seq-mean-token-mean")
_PICKED = ("picked", "left by chance", "above the range")


def single_options() -> list[Case]:
    """A case an option."""
    advantage = [
        _case(f"advantage: {name}", source, *branches, advantage=name, without=without)
        for name, source, branches, without in (
            ("grpo", "2402.03300", BOUNDS, replace(BASE, advantage="dr_grpo")),
            ("dr_grpo", "2503.20783", BOUNDS, BASE),
            ("rloo", "2402.14740", BOUNDS, replace(BASE, advantage="dr_grpo")),
            ("opo", "2505.23585", BOUNDS, replace(BASE, advantage="dr_grpo")),
            ("grpo_passk", "2503.19595", ("above+", "below+"), BASE),
            ("raft", "2304.06767", ("above+",), BASE),
            ("reinforce_plus_plus_baseline", "2501.03262", BOUNDS, BASE),
            ("gdpo", "2601.05242", BOUNDS, BASE),
        )
    ]
    loss = [
        _case("loss: vanilla", "1707.06347, eq. 7", *BOUNDS, without=_UNCLIPPED),
        _case(
            "loss: vanilla, clip_high", "2503.14476, eq. 8", *BOUNDS, clip_low=0.1, clip_high=0.4
        ),
        _case("loss: vanilla, dual_clip", "1912.09729", "dual", dual_clip=1.5),
        _case(
            "loss: gspo", "2507.18071, GSPO-token", *ANSWER_BOUNDS, loss="gspo", clip_low=0.02,
            clip_high=0.03, without=replace(BASE, low=0.02, high=0.03),
        ),
        _case("loss: cispo", "2506.13585, eq. 4, 5", *BOUNDS, loss="cispo", without=_UNCLIPPED),
        _case(
            "loss: sapo", "2511.20347", *BOUNDS, loss="sapo", sapo_tau=(1.0, 1.5),
            **_ANSWERS, without=replace(_UNCLIPPED, **_ANSWERS),
        ),
        _case(
            "loss: geo_mean", "2507.20673", *BOUNDS, loss="geo_mean", clip_low=0.2,
            clip_high=0.3, **_ANSWERS, without=_BY_ANSWER,
        ),
        _case(
            "loss: clip_cov", "2505.22617", *_PICKED, loss="clip_cov",
            cov_fraction=0.1, clip_cov_range=(0.2, 2.0),
        ),
        _case(
            "loss: kl_cov", "2505.22617", "picked, likelier", "picked, less likely",
            loss="kl_cov", cov_fraction=0.1, kl_cov_coef=0.7, without=_UNCLIPPED,
        ),
    ]  # fmt: skip
    return [*advantage, *loss, *_aggregations(), *_kl(), *_which_tokens(), *_presets(), *_rewards()]


def _aggregations() -> list[Case]:
    found = [
        _case(f"aggregation: {name}", source, *BOUNDS, aggregation=name, without=without)
        for name, source, without in (
            ("token-mean", "2503.14476, eq. 8", _BY_ANSWER),
            ("seq-mean-token-mean", "2402.03300, eq. 3", BASE),
            ("seq-mean-token-sum", "2503.20783", BASE),
            ("seq-mean-token-sum-norm", "2503.20783", BASE),
        )
    ]
    scaled: dict[str, Any] = {"aggregation": "seq-mean-token-sum-norm", "loss_scale_tokens": 50}
    sums = replace(BASE, aggregation="seq-mean-token-sum-norm")
    return [
        *found,
        _case("loss_scale_tokens: 50", "2503.20783", *BOUNDS, **scaled, without=sums),
    ]


def _kl() -> list[Case]:
    source, branches = "joschu.net/blog/kl-approx.html", ("far from ref", "near ref")
    found = [
        _case(
            f"kl_in: {place}, kl_type: {kind}", source, *branches, kl_coef=0.05, kl_in=place,
            kl_type=kind,
        )
        for place, kind in (("loss", "k1"), ("loss", "k2"), ("loss", "k3"), ("reward", "k1"))
    ]  # fmt: skip
    target: dict[str, Any] = {"kl_coef": 0.05, "kl_type": "k2", "kl_target": 0.5, "kl_horizon": 50}
    fixed = replace(BASE, kl=0.05, kl_type="k2")
    return [
        *found,
        _case("kl_target: 0.5", "1909.08593", *branches, **target, without=fixed),
        _case("entropy_coef: 0.05", "1602.01783", *BOUNDS, entropy_coef=0.05),
    ]


def _which_tokens() -> list[Case]:
    weighed = ("bounded weights", "free weights")
    rejected = ("rejected above", "rejected below", "not rejected")
    corrections = [
        _case(f"rollout_correction: {name}", source, *branches, rollout_correction=name)
        for name, source, branches in (
            ("token_truncate", "TIS, Yao et al. 2025", weighed),
            ("sequence_truncate", "TIS, Yao et al. 2025", weighed),
            ("token_reject", "IcePop, 2510.18855", rejected),
            ("sequence_reject", "MIS, Liu et al. 2025", rejected),
        )
    ]
    return [
        _case("mask_truncated: true", "2503.14476", "cut answers", mask_truncated=True),
        *corrections,
    ]


def _one_step(loss: str, *branches: str, without: Method, **settings: Any) -> Case:
    """A step with a single optimiser step, where every ratio is 1."""
    case = _case(f"one optimiser step: {loss}", "", *branches, loss=loss, **settings)
    method = replace(case.method, passes=1, mini_groups=len(GROUP_SIZES))
    return replace(case, method=method, without=without)


def _presets() -> list[Case]:
    kl: dict[str, Any] = {"kl": 0.04, "kl_type": "k3", "kl_in": "loss"}
    by_sum = "seq-mean-token-sum-norm"
    narrow: dict[str, Any] = {"low": 3e-4, "high": 4e-4}
    return [
        _preset("grpo", "2402.03300, eq. 3, 4", *BOUNDS, "far from ref", **_ANSWERS, **kl),
        _preset("dr_grpo", "2503.20783", *BOUNDS, advantage="dr_grpo", aggregation=by_sum),
        _preset("dapo", "2503.14476, eq. 8", *BOUNDS, low=0.2, high=0.28),
        _preset("gspo", "2507.18071, eq. 5", *ANSWER_BOUNDS, loss="gspo", **narrow, **_ANSWERS),
        _preset("cispo", "2506.13585, eq. 4", "above+", "above-", loss="cispo", low=1.0, high=4.0),
    ]


def _rewards() -> list[Case]:
    by_sum = _case("combine: sum", "weighted mean less penalties, by hand", *BOUNDS)
    by_part = _case("combine: per_reward", "2601.05242", *BOUNDS, advantage="dr_grpo")
    return [
        replace(by_sum, without_combine="per_reward"),
        replace(by_part, combine="per_reward", without=by_part.method),
    ]


def combinations() -> list[Case]:
    """Every option at least once, in few cases, with their side effects on each other."""
    far = ("far from ref", "near ref")
    rejected = ("rejected above", "rejected below", "not rejected")
    weighed = ("bounded weights", "free weights")
    return [
        _case(
            "rloo, vanilla, k3 in the loss, entropy, token_reject", "", *BOUNDS, *far, *rejected,
            advantage="rloo", dual_clip=1.5, kl_coef=0.05, entropy_coef=0.05,
            rollout_correction="token_reject", aggregation="seq-mean-token-sum",
        ),
        _case(
            "opo, gspo, k2 in the loss, sequence_reject", "", *far, *rejected, advantage="opo",
            loss="gspo", clip_low=0.02, clip_high=0.03, kl_coef=0.05, kl_type="k2",
            rollout_correction="sequence_reject", **_ANSWERS,
        ),
        _case(
            "reinforce++, cispo, k1 in the reward, sequence_truncate", "", *BOUNDS, *far,
            *weighed, advantage="reinforce_plus_plus_baseline", loss="cispo", kl_coef=0.05,
            kl_in="reward", kl_type="k1", rollout_correction="sequence_truncate",
        ),
        _case(
            "pass@k, sapo, cut answers masked", "", "above+", "below+", "cut answers",
            advantage="grpo_passk", loss="sapo", mask_truncated=True, **_ANSWERS,
        ),
        _case(
            "gdpo, geo_mean, token_truncate", "", *BOUNDS, *weighed, advantage="gdpo",
            loss="geo_mean", rollout_correction="token_truncate", **_ANSWERS,
        ),
        _case(
            "dr_grpo, clip_cov, token_reject, cut answers masked", "", *_PICKED, "cut answers",
            *rejected, advantage="dr_grpo", loss="clip_cov", cov_fraction=0.1,
            clip_cov_range=(0.2, 2.0), rollout_correction="token_reject", mask_truncated=True,
            aggregation="seq-mean-token-sum-norm", loss_scale_tokens=50,
        ),
        _case(
            "grpo, kl_cov, token_truncate, k1 in the loss", "", "picked", *far, *weighed,
            loss="kl_cov", cov_fraction=0.1, kl_coef=0.05, kl_type="k1",
            rollout_correction="token_truncate",
        ),
        _case("raft, vanilla", "", "above+", advantage="raft"),
        _one_step("vanilla", without=_BY_ANSWER),
        _one_step(
            "clip_cov", *_PICKED, without=BASE, cov_fraction=0.1, clip_cov_range=(0.2, 2.0)
        ),
    ]  # fmt: skip
