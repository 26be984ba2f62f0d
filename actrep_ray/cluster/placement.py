"""Which node each worker gets: from a recipe and a list of nodes, without a cluster.

Workers of a role form a pool; each worker is a bundle of CPUs and GPUs that must lie on one node,
so an engine's tensor parallelism never crosses a network. Bundles of a pool are packed onto as few
nodes as possible. The same rule refuses a recipe before anything starts and says what is missing.

Engines and learner ranks have GPUs of their own, or with `placement.mode: colocated` an engine and
a rank share a bundle and take turns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actrep_ray.config import ConfigError, Recipe

ROLES = ("learner", "rollout", "reward")

# What drivers and libraries leave of a GPU's marketed size, GiB of a "GB": 48GB is 45, 80GB 79 GiB.
_USABLE = 0.95


class PlacementError(ConfigError):
    """The nodes cannot hold the recipe; the message says what is missing."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        name: For messages.
        num_gpus: GPUs.
        num_cpus: CPUs that may be reserved.
        gpu_gib: Memory of one GPU; 0 if not known.
        labels: Ray's node labels.
    """

    name: str
    num_gpus: float
    num_cpus: float = float("inf")
    gpu_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolSpec:
    """The workers of one role.

    Attributes:
        role: One of `ROLES`.
        num_workers: Bundles.
        num_gpus: Of one bundle.
        num_cpus: Of one bundle.
        labels: That a node must have.
        guest: Role whose workers share these bundles, one each; "" if none do.
    """

    role: str
    num_workers: int
    num_gpus: float
    num_cpus: float
    labels: Mapping[str, str]
    guest: str = ""

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one worker as Ray reads them."""
        resources = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in resources.items() if amount}


def parse_gpus(text: str) -> list[Node]:
    """Nodes of a description: `8x80GB` is one node, `2x8x80GB` two, `8x80GB,4x48GB` two kinds.

    Raises:
        ConfigError: if the description cannot be read.
    """
    nodes: list[Node] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)x)?(\d+)x(\d+(?:\.\d+)?)\s*G(?:i?B)?\s*", part, re.I)
        if match is None:
            raise ConfigError(
                f"--gpus {text!r}: expected GPUS x SIZE or NODES x GPUS x SIZE, as 8x80GB or "
                "2x8x80GB, several separated by commas"
            )
        for _ in range(int(match[1] or 1)):
            name = f"node {len(nodes) + 1}"
            nodes.append(Node(name, int(match[2]), gpu_gib=float(match[3]) * _USABLE))
    return nodes


def pools_of(recipe: Recipe, roles: Sequence[str] = (), *, is_cpu: bool = False) -> list[PoolSpec]:
    """The pools that a recipe starts, largest bundles first.

    Args:
        recipe: Settings.
        roles: Only these; by default a learner for SFT and all of them for GRPO.
        is_cpu: Whether workers compute on CPUs.
    """
    gpu = 0.0 if is_cpu else 1.0
    rollout, learner, reward = recipe.rollout, recipe.learner, recipe.reward
    cfg = recipe.placement
    pools = [
        PoolSpec("learner", learner.num_workers, gpu, learner.num_cpus, cfg.learner_labels),
        PoolSpec(
            "rollout",
            rollout.num_workers,
            gpu * rollout.tensor_parallel_size,
            rollout.num_cpus,
            cfg.rollout_labels,
        ),
        PoolSpec("reward", reward.num_workers, 0.0, reward.num_cpus, cfg.reward_labels),
    ]
    wanted = tuple(roles) or (("learner",) if recipe.stage == "sft" else ROLES)
    pools = [pool for pool in pools if pool.role in wanted]
    if is_colocated(recipe) and {"learner", "rollout"} <= set(wanted):
        shared = replace(pools[0], num_cpus=max(learner.num_cpus, rollout.num_cpus))
        pools[:2] = [replace(shared, guest="rollout")]
    return sorted(pools, key=lambda pool: -pool.num_gpus)


def is_colocated(recipe: Recipe) -> bool:
    """Whether an engine and a rank take turns in one bundle."""
    return recipe.stage == "grpo" and recipe.placement.mode == "colocated"


def share_of_bundle(recipe: Recipe) -> dict[str, float]:
    """What Ray gives an engine, and a rank, of the bundle that they share: half of it each."""
    (pool,) = pools_of(recipe, ("learner", "rollout"), is_cpu=recipe.device == "cpu")
    return {"num_cpus": pool.num_cpus / 2, "num_gpus": pool.num_gpus / 2}


def place(pools: Sequence[PoolSpec], nodes: Sequence[Node]) -> dict[str, list[int]]:
    """The node of each worker, by role.

    A pool goes to the fullest node that still holds all of its bundles; if none does, it fills the
    emptiest node and goes on, so it spans as few nodes as can be.

    Returns:
        For each role, an index into `nodes` for each worker.

    Raises:
        PlacementError: naming the pool that does not fit and what is missing.
    """
    free = [{"GPU": node.num_gpus, "CPU": node.num_cpus} for node in nodes]
    placed: dict[str, list[int]] = {}
    for pool in pools:
        allowed = [i for i, node in enumerate(nodes) if _matches(pool.labels, node.labels)]
        chosen: list[int] = []
        while len(chosen) < pool.num_workers:
            left = pool.num_workers - len(chosen)
            room = {i: min(_room(pool, free[i]), left) for i in allowed}
            room = {i: count for i, count in room.items() if count}
            if not room:
                raise PlacementError(_explain(pool, nodes, allowed, placed, pools))
            holds_all = [i for i, count in room.items() if count == left]
            if holds_all:
                best = min(holds_all, key=lambda i: (free[i]["GPU"], free[i]["CPU"], i))
            else:
                best = max(room, key=lambda i: (room[i], -i))
            for resource, amount in pool.bundle.items():
                free[best][resource] -= amount * room[best]
            chosen += [best] * room[best]
        placed[pool.role] = chosen
        if pool.guest:
            placed[pool.guest] = chosen
    return placed


def describe(placed: Mapping[str, Sequence[int]], nodes: Sequence[Node]) -> list[str]:
    """One line for each role: how many workers on which node."""
    lines = []
    for role, chosen in placed.items():
        counts = {i: list(chosen).count(i) for i in sorted(set(chosen))}
        where = ", ".join(f"{count} on {nodes[i].name}" for i, count in counts.items())
        lines.append(f"{role}: {where}")
    return lines


def _matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _room(pool: PoolSpec, free: Mapping[str, float]) -> int:
    """How many bundles a node has room for."""
    amounts = [free[name] / amount for name, amount in pool.bundle.items()]
    return min(int(amount + 1e-6) if amount != float("inf") else 1_000_000 for amount in amounts)


def _explain(
    pool: PoolSpec,
    nodes: Sequence[Node],
    allowed: Sequence[int],
    placed: Mapping[str, Sequence[int]],
    pools: Sequence[PoolSpec],
) -> str:
    labels = "".join(f", {key}={value}" for key, value in pool.labels.items())
    unit = " and ".join(f"{amount:g} {name}" for name, amount in pool.bundle.items())
    have = "; ".join(map(_describe_node, nodes[:8]))
    if not allowed:
        return (
            f"no node has the label{'s' if len(pool.labels) > 1 else ''}{labels[1:]} that "
            f"placement.{pool.role}_labels asks for; nodes: {have or 'none'}"
        )
    total = {
        name: sum(other.bundle.get(name, 0) * other.num_workers for other in pools)
        for name in ("GPU", "CPU")
    }
    has = {"GPU": sum(node.num_gpus for node in nodes), "CPU": sum(n.num_cpus for n in nodes)}
    short = [
        f"{total[name] - has[name]:g} more {name}" for name in total if total[name] > has[name]
    ]
    taken = ", ".join(f"{role} takes {len(chosen)}" for role, chosen in placed.items())
    key = "rollout.num_workers or rollout.tensor_parallel_size"
    return (
        f"the nodes cannot hold {pool.num_workers} {pool.role} workers of {unit}{labels} each"
        f"{f' ({taken} before it)' if taken else ''}; nodes: {have or 'none'}; missing: "
        f"{', '.join(short) or f'a node with {unit} free'}. Lower "
        f"{key if pool.role == 'rollout' else f'{pool.role}.num_workers'} or add nodes"
    )


def _describe_node(node: Node) -> str:
    cpus = "" if node.num_cpus == float("inf") else f", {node.num_cpus:g} CPU"
    return f"{node.name}: {node.num_gpus:g} GPU{cpus}"
