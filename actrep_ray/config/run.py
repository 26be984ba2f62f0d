"""`run`, `sft`, `train`, `eval`, `checkpoint`, `placement`: a run's course and its placement."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from actrep_ray.config.section import (
    Contradiction,
    Count,
    Float,
    Integer,
    Positive,
    Seconds,
    SecondsOrZero,
    Section,
    Whole,
)


class RunConfig(Section):
    """How a run is stopped, and when a worker counts as hung."""

    preemption_notice: str | None = Field(
        None,
        description="File that announces, by appearing or changing, that the machine will be taken "
        "away: the run saves and ends, as on SIGTERM, ctrl-C or SIGUSR1.",
    )
    stop_s: Seconds = Field(
        30.0,
        description="Longest that a run which is asked to stop may take to save and end; a step of "
        "the learner is finished within three quarters of it, or not saved.",
    )
    silence_s: Seconds = Field(
        30.0,
        description="A worker with something to do that for so long neither lets its own thread on "
        "nor computes is ended and started again.",
    )
    turn_factor: Annotated[Float, Field(ge=2)] = Field(
        10.0,
        description="A worker that is at a turn (of an engine, an update of a rank) for so many "
        "times the median of the last 20 is ended and started again.",
    )
    turn_floor_s: Seconds = Field(120.0, description="Shortest time that a turn is given.")
    turn_ceiling_s: Seconds = Field(
        1800.0,
        description="Longest time that a turn is given, as are the first three; never more than "
        "0.9 of rollout.timeout_s or learner.timeout_s.",
    )

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        ("tensorboard",),
        description="Where curves are written beside metrics.jsonl, locally: tensorboard into the "
        "run's folder; wandb (offline), mlflow and trackio, each an extra, into `trackers` beside "
        "it (docs/trackers.md).",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Bounds that exclude each other."""
        if self.turn_floor_s > self.turn_ceiling_s:
            yield Contradiction(
                ("run.turn_floor_s", "run.turn_ceiling_s"),
                f"run.turn_floor_s={self.turn_floor_s:g}: expected at most run.turn_ceiling_s="
                f"{self.turn_ceiling_s:g}",
            )


class SftConfig(Section):
    """Supervised fine-tuning."""

    num_steps: Count = Field(500, description="Optimiser steps.")
    clips_per_step: Count = Field(32, description="Clips of one optimiser step, over all ranks.")
    validate_every: Count = Field(50, description="Steps between validation losses.")
    num_validation_clips: Count = Field(64, description="Clips of the validation loss.")
    text_lists: Whole = Field(
        0,
        description="Right lists of random repetitions that are read beside the clips of each "
        "step, as text without a video; learned is all but their times. For models so small that "
        "they forget how to copy numbers which few clips show.",
    )
    text_list_length: Count = Field(20, description="Repetitions of the longest of them.")


LOG_PROB_GAP_LIMITS = {"float32": 1e-2, "bfloat16": 3e-2}
"""`train.max_log_prob_gap` by `model.dtype`, in which engines compute as well.

Chosen between what a healthy run of the small model measures (float32 1e-5, bfloat16 0.011 at most)
and what faults do (0.04 and more): `tests/engine/test_log_prob_gap.py`. An engine whose KV cache is
rounded (`rollout.vllm.kv_cache_dtype`) has no row: of the small model its gap is as large as that
of faults, so a recipe has to name the limit.
"""


class TrainConfig(Section):
    """Settings of the GRPO loop."""

    num_steps: Count = Field(200, description="Steps: batches of prompts.")
    prompts_per_step: Count = Field(32, description="Prompts issued in a step.")
    group_size: Annotated[Integer, Field(ge=2, le=4096)] = Field(
        8, description="Answers to each prompt (G)."
    )
    mini_batch_size: Count | None = Field(
        None, description="Rollouts of one optimiser step, about; all of the step's by default."
    )
    num_updates_per_batch: Count = Field(
        1, description="Passes over a step's batch; above 1 the ratio leaves 1 and clipping acts."
    )
    max_staleness: Whole | None = Field(
        None,
        description="Steps that a rollout may lag behind the learner while both go on at the same "
        "time (asynchronous driver; 0: the numbers of the synchronous one); null: synchronous.",
    )
    max_refill_factor: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="Groups issued in place of dropped ones, of the same count stratum, at most "
        "this many times prompts_per_step in a step (dynamic sampling); 0: none.",
    )
    pass_rate_window: tuple[Float, Float] | None = Field(
        None,
        description="Groups whose mean reward (the weighted sum, whatever reward.combine makes of "
        "it) lies outside [low, high] are dropped.",
    )
    max_log_prob_gap: Positive | None = Field(
        None,
        description="Mean |rollout - learner| log-prob of sampled tokens above which a run stops; "
        "null: 0.01 with model.dtype=float32, 0.03 with bfloat16.",
    )
    on_log_prob_gap: Literal["stop", "log"] = Field("stop", description="What happens above it.")
    max_untrained_steps: Count = Field(
        5, description="Steps in a row without a group to train on, at which a run stops."
    )
    on_untrained: Literal["stop", "log"] = Field("stop", description="What happens then.")
    alarm_steps: Whole = Field(
        50,
        description="Steps without a rise of the reward at which a run warns; the last fifth as "
        "many are compared with the first for entropy, length, form and variety of the answers "
        "(docs/reliability.md). 0: no such warnings.",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """A window of pass rates that is empty."""
        window = self.pass_rate_window
        if window is not None and not 0 <= window[0] < window[1] <= 1:
            yield Contradiction(
                ("train.pass_rate_window",),
                f"train.pass_rate_window={list(window)}: expected [low, high] with "
                "0 <= low < high <= 1",
            )


class EvalConfig(Section):
    """Evaluation during and after training."""

    split: Literal["validation", "test"] = Field("validation", description="Clips to evaluate on.")
    every: Whole = Field(0, description="Steps between evaluations; 0: none.")
    num_clips: Count | None = Field(None, description="Only the first clips of the split.")
    num_bootstrap: Count = Field(2000, description="Resamples of the 95% intervals.")


class CheckpointConfig(Section):
    """Checkpoints of a run."""

    every: Whole = Field(50, description="Steps between them; 0: at the end.")
    keep: Count = Field(2, description="How many of the newest are kept, beside the best.")
    best_by: str | None = Field(
        None,
        description="Figure of the evaluation by which the best step is written and kept, for "
        "example obo or mae; of SFT: validation_loss. null: none is.",
    )
    patience: Count | None = Field(
        None,
        description="Evaluations in a row that may find nothing better by best_by; then the run "
        "ends. null: it never ends early.",
    )
    in_background: bool = Field(
        True,
        description="Steps go on while files are written, from a copy in host memory, shared among "
        "the ranks: weights in model.dtype, 8 bytes a trained parameter, 4 more below float32 or "
        "with an average; false: they wait, and the copy lasts as long.",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Patience with nothing to be patient for."""
        if self.patience is not None and self.best_by is None:
            yield Contradiction(
                ("checkpoint.patience", "checkpoint.best_by"),
                f"checkpoint.patience={self.patience}: by which figure? set checkpoint.best_by",
            )


class PlacementConfig(Section):
    """Settings of where in the cluster workers run."""

    mode: Literal["separated", "colocated"] = Field(
        "separated",
        description="GPUs of their own for engines and learner ranks, or one for a pair of them "
        "that takes turns: the engine sleeps while its rank works.",
    )
    learner_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may learn.")
    rollout_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may generate.")
    reward_labels: dict[str, str] = Field({}, description="Ray labels of nodes that may score.")
    wait_s: SecondsOrZero = Field(
        0.0,
        description="Longest wait at the start for nodes that a joined cluster does not have yet.",
    )
    rejoin_s: SecondsOrZero = Field(
        60.0, description="Longest wait for nodes in place of those that were lost in a run."
    )
    busy_s: Seconds = Field(
        600.0, description="Longest wait for room that other jobs of a joined cluster take up."
    )
