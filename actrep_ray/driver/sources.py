"""Where scored groups come from: engines answer prompts, reward workers score the answers."""

from collections.abc import Callable, Mapping, Sequence

from actrep_ray.config import Recipe
from actrep_ray.evaluation.predictors import sampling_of
from actrep_ray.records import Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.scoring.pool import RewardPool
from rewards.reference import Reference


class GroupSource:
    """One group a prompt.

    Args:
        rollouts: Engines.
        rewards: Reward workers.
        settings: How answers are sampled.

    Attributes:
        groups_per_prompt: Groups that the engines are asked for with each prompt.
    """

    groups_per_prompt = 1

    def __init__(
        self, rollouts: RolloutPool, rewards: RewardPool, settings: SamplingSettings
    ) -> None:
        self.rollouts = rollouts
        self.rewards = rewards
        self.settings = settings

    def generate(self, prompts: Sequence[Prompt]) -> tuple[list[RolloutGroup], list[Refusal]]:
        """The answers to some prompts, group by group in their order, and those without any."""
        return self.rollouts.answer(prompts, self.settings)

    def submit(
        self,
        prompts: Sequence[Prompt],
        on_group: Callable[[RolloutGroup], None],
        on_refused: Callable[[Refusal], None],
    ) -> None:
        """Have prompts answered; each is told to one of the callbacks, by whoever waits."""
        self.rollouts.submit(prompts, self.settings, on_group, on_refused)

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        """The groups with their rewards, in order."""
        return self.rewards.score(groups, labels)


def training_settings(recipe: Recipe) -> SamplingSettings:
    """How answers are sampled in training."""
    return sampling_of(recipe, recipe.train.group_size)
