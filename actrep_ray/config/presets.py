"""Published algorithms by name, as the settings that they stand for."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300
    "grpo": {
        "advantage": "grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": None,
        "aggregation": "seq-mean-token-mean",
        "kl_in": "loss",
        "kl_coef": 0.04,
        "kl_type": "k3",
    },
    # arXiv 2503.20783: no division by the standard deviation, nor by an answer's own length
    "dr_grpo": {
        "advantage": "dr_grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": None,
        "aggregation": "seq-mean-token-sum-norm",
        "kl_coef": 0.0,
    },
    # arXiv 2503.14476; groups without variance are always dropped; see also `PRESET_PENALTIES`
    "dapo": {
        "advantage": "grpo",
        "loss": "vanilla",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "dual_clip": None,
        "aggregation": "token-mean",
        "kl_coef": 0.0,
    },
    # arXiv 2507.18071: the ratio of whole answers, hence the narrow range
    "gspo": {
        "advantage": "grpo",
        "loss": "gspo",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "aggregation": "seq-mean-token-mean",
        "kl_coef": 0.0,
    },
    # MiniMax-M1, arXiv 2506.13585: no lower bound; the upper one, a weight of 5, is from ScaleRL
    "cispo": {
        "advantage": "grpo",
        "loss": "cispo",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "aggregation": "token-mean",
        "kl_coef": 0.0,
    },
}
"""What `algorithm.preset` stands for; a key that the recipe gives itself wins."""

RECOGNITION_QUESTION = "Which activity is shown? {candidates} {form}"


COUNTING_QUESTION = "How many times is the action repeated? {form}"

BARE_WEIGHTS: dict[str, dict[str, Any]] = {
    "none": {"obo": {"weight": 0.9, "evidence": "answer"}},
    "after": {"obo": 0.5, "cycles": 0.4},
}
"""What pays for a count where `data.reasoning` is not before, beside its form."""


def task_defaults(task: str, reasoning: str) -> dict[str, dict[str, Any]]:
    """What a task of ours has for defaults in place of those of counting, by section.

    Args:
        task: Its name.
        reasoning: The recipe's `data.reasoning`.
    """
    form = {"weight": 0.1, "reasoning": reasoning}
    if task == "counting" and reasoning in BARE_WEIGHTS:
        weights = {**BARE_WEIGHTS[reasoning], "think_answer": form}
        return {"data": {"question": COUNTING_QUESTION}, "reward": {"weights": weights}}
    if task != "recognition":
        return {}
    return {
        "data": {"question": RECOGNITION_QUESTION},
        "reward": {"weights": {"recognition": 0.9, "think_answer": form}},
        "rollout": {"takes_images": True},
    }


PRESET_PENALTIES: dict[str, dict[str, float]] = {"dapo": {"overlong": 1.0}}
"""What a preset adds to the default `reward.weights`."""
