"""Former names, kept only until the branches that are under way have moved on."""

from actrep_ray.planning.deepspeed_settings import check_deepspeed as check_plan
from actrep_ray.planning.deepspeed_settings import deepspeed_settings
from actrep_ray.planning.training import describe_training as describe_plan
from actrep_ray.planning.training import optimizer_steps_per_step

__all__ = ["check_plan", "deepspeed_settings", "describe_plan", "optimizer_steps_per_step"]
