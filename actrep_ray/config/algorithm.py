"""`algorithm`: advantages and policy loss."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from actrep_ray.config.presets import PRESETS
from actrep_ray.config.section import Contradiction, Count, Float, Positive, Section


class TemporalContrastConfig(Section):
    """T-GRPO (Video-R1, arXiv 2503.21776): every clip is shown with its frames shuffled, too."""

    weight: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="Bonus of a right count where order helps (T-GRPO: 0.3); 0: no contrast."
    )
    margin: Annotated[Float, Field(ge=0, lt=1)] = Field(
        0.0, description="Order helps where its share of right counts is higher by more than this."
    )


class AlgorithmConfig(Section):
    """Advantages and policy loss, by their names in verl's registries, and raft."""

    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] | None = Field(
        None, description="Published algorithm that sets the keys below, where they are not given."
    )
    advantage: Literal[
        "grpo",
        "dr_grpo",
        "rloo",
        "gdpo",
        "opo",
        "reinforce_plus_plus_baseline",
        "grpo_passk",
        "raft",
    ] = Field(
        "grpo",
        description="Estimator of the group-relative advantage; raft: the best answers alone.",
    )
    credit: Literal["answer", "repetition"] = Field(
        "answer",
        description="What a token is paid for: its answer; or, where it writes a listed repetition "
        "of a clip with cycle marks, the place of that repetition.",
    )
    loss: Literal["vanilla", "gspo", "cispo", "sapo", "clip_cov", "kl_cov", "geo_mean"] = Field(
        "vanilla", description="Policy loss."
    )
    clip_low: Positive = Field(0.2, description="Lower clip range of the policy ratio.")
    clip_high: Positive = Field(0.2, description="Upper clip range of the policy ratio.")
    dual_clip: Annotated[Float, Field(gt=1)] | None = Field(
        3.0, description="Bound of the ratio for negative advantages (vanilla); null: none."
    )
    sapo_tau: tuple[Positive, Positive] = Field(
        (1.0, 1.05), description="SAPO's temperatures for positive and other advantages."
    )
    cov_fraction: Annotated[Float, Field(gt=0, le=1)] = Field(
        2e-4,
        description="Share of a mini-batch's tokens that clip_cov or kl_cov picks, at least 1.",
    )
    clip_cov_range: tuple[Float, Float] = Field(
        (1.0, 5.0), description="Covariances between which clip_cov picks tokens."
    )
    kl_cov_coef: Positive = Field(1.0, description="Weight of |log-ratio| where kl_cov picks.")
    aggregation: Literal[
        "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ] = Field("token-mean", description="How the token losses of a mini-batch become one number.")
    loss_scale_tokens: Count | None = Field(
        None, description="Divisor of seq-mean-token-sum-norm; null: rollout.max_response_tokens."
    )
    kl_coef: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="Weight of the KL to the reference policy; 0: no reference."
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="Whether that KL is part of the loss or taken off the reward."
    )
    kl_type: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Estimator of that KL; kl_in=reward takes k1 alone."
    )
    kl_target: Positive | None = Field(
        None, description="KL per token that the weight is adapted to; null: a fixed weight."
    )
    kl_horizon: Count = Field(10000, description="Answers over which the weight adapts.")
    entropy_coef: Annotated[Float, Field(ge=0)] = Field(0.0, description="Weight of the entropy.")
    mask_truncated: bool = Field(
        False, description="Leave answers that were cut off at max_response_tokens out of the loss."
    )
    temporal_contrast: TemporalContrastConfig = TemporalContrastConfig()
    rollout_correction: Literal[
        "off", "token_truncate", "sequence_truncate", "token_reject", "sequence_reject"
    ] = Field("off", description="What is done about engine and learner computing other ratios.")
    rollout_correction_threshold: Annotated[Float, Field(gt=1)] = Field(
        2.0, description="Largest learner/engine ratio c; rejection keeps 1/c to c."
    )

    @property
    def picks_tokens(self) -> bool:
        """Whether the loss picks tokens of a whole mini-batch before it is computed."""
        return self.loss in ("clip_cov", "kl_cov")

    @property
    def needs_old_log_probs(self) -> bool:
        """Whether something asks for the old policy's log-probabilities before the first step."""
        kl_in_reward = self.kl_in == "reward" and self.kl_coef > 0
        return self.rollout_correction != "off" or kl_in_reward or self.picks_tokens

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("preset")) in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    def contradictions(self) -> Iterator[Contradiction]:
        """Losses, advantages and KL that cannot be combined."""
        if self.loss in ("sapo", "geo_mean") and self.aggregation != "seq-mean-token-mean":
            yield Contradiction(
                ("algorithm.loss", "algorithm.aggregation"),
                f"algorithm.loss={self.loss} averages within each answer, so it cannot be combined "
                f"with algorithm.aggregation={self.aggregation}: set it to seq-mean-token-mean",
            )
        if self.kl_in == "reward" and self.advantage == "gdpo":
            yield Contradiction(
                ("algorithm.kl_in", "algorithm.advantage"),
                "algorithm.advantage=gdpo normalises each reward of its own, so there is no one "
                "reward to take the KL off: set algorithm.kl_in=loss",
            )
        if self.credit == "repetition" and self.advantage == "raft":
            yield Contradiction(
                ("algorithm.credit", "algorithm.advantage"),
                "algorithm.advantage=raft imitates the best answers whole, algorithm.credit="
                "repetition pays for the repetitions of all: set one of them otherwise",
            )
        if self.credit == "repetition" and self.kl_in == "reward" and self.kl_coef:
            yield Contradiction(
                ("algorithm.credit", "algorithm.kl_in"),
                "algorithm.kl_in=reward takes the KL off the reward of an answer, of which "
                "algorithm.credit=repetition leaves tokens out: set algorithm.kl_in=loss",
            )
        if self.kl_in == "reward" and self.kl_coef and self.kl_type != "k1":
            yield Contradiction(
                ("algorithm.kl_in", "algorithm.kl_type"),
                f"algorithm.kl_in=reward with algorithm.kl_type={self.kl_type} hardly pulls the "
                "policy to its reference (its gradient vanishes near it to first order): set "
                "algorithm.kl_type=k1, or algorithm.kl_in=loss",
            )
        if self.kl_target is not None and not self.kl_coef:
            yield Contradiction(
                ("algorithm.kl_target", "algorithm.kl_coef"),
                f"algorithm.kl_target={self.kl_target} adapts algorithm.kl_coef, which is 0: give "
                "its first value",
            )
        if self.temporal_contrast.weight and self.advantage == "gdpo":
            yield Contradiction(
                ("algorithm.temporal_contrast.weight", "algorithm.advantage"),
                "algorithm.advantage=gdpo normalises each reward of its own, so there is no one "
                "reward to add a bonus to: set algorithm.temporal_contrast.weight=0",
            )
        if self.loss == "clip_cov" and self.cov_fraction == 1:
            yield Contradiction(
                ("algorithm.loss", "algorithm.cov_fraction"),
                "algorithm.loss=clip_cov gives the tokens that it picks no gradient: expected "
                "algorithm.cov_fraction below 1 (the paper has 2e-4)",
            )
        low, high = self.clip_cov_range
        if low >= high:
            yield Contradiction(
                ("algorithm.clip_cov_range",),
                f"algorithm.clip_cov_range={[low, high]}: expected two rising numbers",
            )
