"""Every setting, its default and its rule.

Defaults exist here and nowhere else. A recipe is sparse YAML; `--set key=value` comes after it.
Neither ray nor torch is imported, so that a recipe is checked in a moment, before any actor starts.

    section     kinds of values, `Section`, contradictions
    model, data, generation, algorithm, learner, run     the sections
    presets     published algorithms as settings
    rules       what must hold between sections
    recipe      `Recipe`, all sections
    mistakes    all that is wrong with a recipe, in words
    flat        settings by their dotted names
    folders     where relative paths start from
    loading     YAML, `--set`, the settings of a run as JSON
"""

from actrep_ray.config.algorithm import AlgorithmConfig, TemporalContrastConfig
from actrep_ray.config.data import DataConfig, SamplingConfig, VideoConfig
from actrep_ray.config.flat import flat_settings
from actrep_ray.config.folders import is_hub_name, under_root
from actrep_ray.config.generation import RewardConfig, RolloutConfig
from actrep_ray.config.learner import LearnerConfig
from actrep_ray.config.loading import (
    load_recipe,
    override,
    read_resolved,
    read_saved,
    recipes_folder,
    write_resolved,
)
from actrep_ray.config.model import LoraConfig, ModelConfig
from actrep_ray.config.presets import PRESET_PENALTIES, PRESETS
from actrep_ray.config.recipe import Recipe, check_attention
from actrep_ray.config.rules import VLLM_LORA_RANKS
from actrep_ray.config.run import (
    LOG_PROB_GAP_LIMITS,
    CheckpointConfig,
    EvalConfig,
    PlacementConfig,
    RunConfig,
    SftConfig,
    TrainConfig,
)
from actrep_ray.config.section import ConfigError
from actrep_ray.config.vllm import VllmConfig

__all__ = [
    "LOG_PROB_GAP_LIMITS",
    "PRESETS",
    "PRESET_PENALTIES",
    "VLLM_LORA_RANKS",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "PlacementConfig",
    "Recipe",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "TemporalContrastConfig",
    "TrainConfig",
    "VideoConfig",
    "VllmConfig",
    "check_attention",
    "flat_settings",
    "is_hub_name",
    "load_recipe",
    "override",
    "read_resolved",
    "read_saved",
    "recipes_folder",
    "under_root",
    "write_resolved",
]
