"""A recipe: all settings of one run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from actrep_ray.config import rules
from actrep_ray.config.algorithm import AlgorithmConfig
from actrep_ray.config.data import DataConfig, SamplingConfig, VideoConfig
from actrep_ray.config.generation import RewardConfig, RolloutConfig
from actrep_ray.config.learner import LearnerConfig
from actrep_ray.config.model import ModelConfig
from actrep_ray.config.presets import PRESET_PENALTIES, task_defaults
from actrep_ray.config.run import (
    LOG_PROB_GAP_LIMITS,
    CheckpointConfig,
    EvalConfig,
    PlacementConfig,
    RunConfig,
    SftConfig,
    TrainConfig,
)
from actrep_ray.config.section import (
    LARGEST_SEED,
    ConfigError,
    Contradiction,
    ContradictionError,
    Integer,
    Section,
)

TASKS = (
    *("counting", "recognition"),
    *("lmms_eval_repcount", "lmms_eval_countix", "lmms_eval_ovr", "lmms_eval_pushupbench"),
)
"""Names of our own tasks; any other is a class of a file."""


class Recipe(Section):
    """All settings of one run."""

    stage: Literal["sft", "grpo"] = Field("grpo", description="What the recipe is for.")
    task: str = Field(
        "counting",
        description="What is asked about clips, and how answers are judged: `counting`, "
        "`recognition` (docs/recognition.md), `lmms_eval_repcount` and the like, which `actrep "
        "benchmark` sets (docs/figures.md), or `FILE.py:CLASS`, a task of your own.",
    )
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run."
    )
    runs_dir: str = Field("runs", description="Folder of run folders.")
    seed: Annotated[Integer, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="Seed of sampling, order and initialisation."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where workers compute.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    video: VideoConfig = VideoConfig()
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    placement: PlacementConfig = PlacementConfig()
    run: RunConfig = RunConfig()

    @field_validator("task")
    @classmethod
    def _locate_task(cls, name: str) -> str:
        """A file's absolute path: workers run in other folders."""
        if name in TASKS:
            return name
        path, colon, of_file = name.rpartition(":")
        if not colon or not path.endswith(".py") or not of_file.isidentifier():
            message = f"task={name!r}: expected {', '.join(TASKS)} or FILE.py:CLASS"
            raise ContradictionError([Contradiction(("task",), message)])
        return f"{Path(path).absolute()}:{of_file}"

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, values: Any) -> Any:
        """Those of the task, and to rewards that nobody chose the penalties of the preset."""
        if not isinstance(values, dict):
            return values
        sections = {name: _mapping(values, name) for name in ("data", "reward", "algorithm")}
        reasoning = (sections["data"] or {}).get("reasoning", "before")
        mode = "none" if reasoning is None else str(reasoning)  # YAML's null is the word here
        defaults = task_defaults(str(values.get("task", "counting")), mode)
        preset = str((sections["algorithm"] or {}).get("preset"))
        if preset in PRESET_PENALTIES:
            weights = defaults.get("reward", RewardConfig().model_dump())["weights"]
            defaults["reward"] = {"weights": {**weights, **PRESET_PENALTIES[preset]}}
        for name, section in defaults.items():
            if (given := _mapping(values, name)) is not None:
                values = {**values, name: {**section, **given}}
        return values

    def contradictions(self) -> Iterator[Contradiction]:
        """Sections that do not fit together, of those that the stage uses."""
        yield from rules.attention(self.learner, self.model, self.device)
        if self.task == "recognition":
            yield from rules.recognition(self.data, self.reward)
        if self.task in TASKS:
            yield from rules.answer_form(self.data, self.reward)
        if self.stage == "sft":
            yield from rules.sft_batch(self.sft, self.learner)
            yield from rules.sft_text_lists(self.sft, self.learner)
            yield from rules.sft_lists_reason(self.sft, self.data)
            return
        yield from rules.adapters_of_engine(self.model, self.rollout)
        yield from rules.engine_attention(self.rollout, self.device)
        yield from rules.rounded_cache(self.rollout, self.algorithm, self.train)
        yield from rules.nucleus(self.rollout, self.algorithm)
        yield from rules.taking_turns(self.placement, self.rollout, self.learner, self.train)
        yield from rules.grpo_batch(self.train, self.learner)

    @property
    def answers_per_optimizer_step(self) -> int:
        """Answers (of SFT: clips) whose gradient one optimiser step takes, over all ranks."""
        if self.stage == "sft":
            return self.sft.clips_per_step
        train = self.train
        return train.mini_batch_size or train.prompts_per_step * train.group_size

    @property
    def log_prob_gap_limit(self) -> float:
        """Mean |rollout - learner| log-prob that a run may have: a setting, or by its dtype."""
        limit = self.train.max_log_prob_gap
        return LOG_PROB_GAP_LIMITS[self.model.dtype] if limit is None else limit

    @property
    def sends_adapters(self) -> bool:
        """Whether the engines hold the base model and are given adapters only."""
        lora = self.model.lora
        return self.stage == "grpo" and lora.rank > 0 and lora.send == "adapter"

    @property
    def caches_features(self) -> bool:
        """Whether learners keep what the vision tower makes of a clip, in place of its pixels."""
        cfg = self.learner
        is_split = cfg.strategy == "deepspeed" and cfg.zero_stage == 3  # no rank can run it alone
        return cfg.cache_features and self.model.is_frozen("vision_tower") and not is_split

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.runs_dir) / self.name


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A section as it was given, {} if it was not; None for what is no section."""
    given = values.get(name, {})
    return given if isinstance(given, dict) else None


def check_attention(recipe: Recipe) -> None:
    """Refuse kernels of attention that cannot serve the packing, dtype or (settled) device.

    Of learners, and of the engines of a recipe that has them.

    Raises:
        ConfigError: naming the settings and what to change.
    """
    for found in rules.attention(recipe.learner, recipe.model, recipe.device):
        raise ConfigError(found.message)
    if recipe.stage == "grpo":
        for found in rules.engine_attention(recipe.rollout, recipe.device):
            raise ConfigError(found.message)
