"""A memory plan: what each role holds on its GPU, where workers are, and what stands against it."""

from dataclasses import dataclass

from actrep_ray.config import Recipe

GIB = 2**30


@dataclass(frozen=True)
class RoleMemory:
    """Memory of one GPU of a role.

    Attributes:
        role: `learner` or `rollout`.
        items: (what, bytes), in the order in which they are shown; they add up to `num_bytes`.
        limit: Bytes that the role may use on its GPU; 0 if the GPU is not known.
        notes: Further lines: KV cache, host memory, alternatives.
    """

    role: str
    items: tuple[tuple[str, float], ...]
    limit: float
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> float:
        """What the role needs."""
        return sum(size for _, size in self.items)

    @property
    def fits(self) -> bool:
        """Whether it fits; True if the GPU is not known."""
        return not self.limit or self.num_bytes <= self.limit


@dataclass(frozen=True)
class MemoryPlan:
    """A recipe on some hardware.

    Attributes:
        roles: Learner, and in GRPO rollout.
        placement: Lines that say which worker is where; empty without nodes.
        problems: Why it cannot run, one line each; empty if it fits.
        warnings: What could stop a run, if the data holds such clips.
        remedies: The first settings to change, one line each, with what they come to.
    """

    roles: tuple[RoleMemory, ...]
    placement: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing stands against it."""
        return not self.problems


def value_bytes(recipe: Recipe) -> int:
    """Bytes of one value in the dtype of computation."""
    return 4 if recipe.model.dtype == "float32" else 2
