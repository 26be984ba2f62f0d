"""The model in and out: the policy and its reference from a checkpoint, weights and state back.

Every rank makes the same calls: rank 0 reads for all, a weight at a time, and a weight is whole
only where all ranks have given their shards.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.learner.folders import model_settings, read_processor_files
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.saving import Snapshot
from actrep_ray.learner.shares import Shares
from actrep_ray.learner.strategies import fsdp, optimizer
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.learner.strategies.ema import Ema
from actrep_ray.models import card, loading, lora
from actrep_ray.models.layout import published
from actrep_ray.models.loading import Source
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.shown_frames import with_frames
from actrep_ray.models.torch_names import dtype_named
from actrep_ray.models.tower import FrozenTower
from actrep_ray.run.manifest import TRAINING
from actrep_ray.tasks.loading import example_question
from data_prep import files

NamedWeights = Iterator[tuple[str, torch.Tensor]]
"""(name, whole weight), one after another."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints that a learner reads.

    Attributes:
        model: What training starts or goes on from; its tokenizer and processor go into what is
            saved.
        base: The reference policy, and the weights that adapters belong to.
    """

    model: Path
    base: Path


@dataclass(frozen=True)
class Loaded:
    """A policy that is not split yet.

    Attributes:
        policy: Of several ranks, without memory for its weights.
        source: Their values, on rank 0 of several.
        base_fingerprint: Of the base that its adapters belong to, if it has any.
    """

    policy: Policy
    source: Source | None
    base_fingerprint: int | None


def load_policy(
    recipe: Recipe, checkpoints: Checkpoints, visual_ids: tuple[int, ...], ranks: Ranks
) -> Loaded:
    """What is trained, not split yet: components frozen, adapters at their start.

    Args:
        recipe: Settings.
        checkpoints: With adapters the base is loaded, else the model.
        visual_ids: Tokens that the engine never samples.
        ranks: Rank 0 reads, and tells the others.
    """
    cfg, has_lora = recipe.learner, recipe.model.lora.rank > 0
    path = checkpoints.base if has_lora else checkpoints.model
    model: Any = loading.load(path, dtype="float32", is_split=ranks.size > 1)
    source = loading.Source(path, model) if ranks.size > 1 and ranks.is_first else None
    fingerprint: int | None = None
    if has_lora:
        torch.manual_seed(recipe.seed)  # adapters start alike on all ranks
        lora.add_adapters(model, recipe.model.lora)
        own = lora.base_fingerprint(model, source) if ranks.is_first else None
        fingerprint = ranks.gather(own)[0]
    else:
        optimizer.freeze(model, recipe.model.freeze)
    if cfg.gradient_checkpointing:
        # ZeRO-3 frees weights that a checkpoint without re-entering autograd would compare.
        _enable_checkpointing(model, cfg.strategy == "deepspeed" and cfg.zero_stage == 3)
    model.train(cfg.gradient_checkpointing)
    lora.set_dropout(model, is_on=False)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype_named(recipe.model.dtype))
    tower = FrozenTower(model) if recipe.caches_features else None
    return Loaded(Policy(model, visual_ids, cfg.attention, tower=tower), source, fingerprint)


def load_reference(
    recipe: Recipe, base: Path, policy: Policy, visual_ids: tuple[int, ...], ranks: Ranks
) -> Policy:
    """The frozen policy of the KL term, split by FSDP2 whatever the strategy.

    Where the policy is given features of its tower, so is this, and uses the same one.

    Raises:
        ConfigError: if the base has another tower then.
    """
    is_split = ranks.size > 1
    model: Any = loading.load(base, dtype=recipe.model.dtype, is_split=is_split)
    source = loading.Source(base, model) if is_split and ranks.is_first else None
    model.requires_grad_(False)
    model.eval()
    tower = FrozenTower(model) if recipe.caches_features else None
    reference = Policy(model, visual_ids, recipe.learner.attention, tower=tower)
    fsdp.shard(reference, ranks.mesh, recipe, source)
    if tower is not None:
        assert policy.tower is not None
        tower.take(policy.tower)
    return reference


class ModelIO:
    """Exports and saves what is trained, and goes on from it.

    Args:
        recipe: Settings.
        ranks: All of them make the same calls; rank 0 writes.
        policy: What is trained.
        strategy: What splits it.
        ema: Its moving average, if there is one.
        checkpoints: What it was loaded from.
        base_fingerprint: Of the base that adapters belong to; None without adapters.
        inputs: Of the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        policy: Policy,
        strategy: Strategy,
        ema: Ema | None,
        checkpoints: Checkpoints,
        base_fingerprint: int | None,
        inputs: QwenVLInputs,
    ) -> None:
        self._recipe = recipe
        self._ranks = ranks
        self._model = policy.model
        self._strategy = strategy
        self._ema = ema
        self._checkpoints = checkpoints
        self._base_fingerprint = base_fingerprint
        self._has_lora = recipe.model.lora.rank > 0
        self._dtype = dtype_named(recipe.model.dtype)
        whole = (strategy.num_elements(p) for p in policy.model.parameters())
        self._model_bytes = torch.float32.itemsize * sum(whole)
        # Now: by the time of a later checkpoint the folder may be gone.
        self._other_files: dict[str, bytes] = {}
        if ranks.is_first:
            found = with_frames(read_processor_files(checkpoints.model), recipe.video)
            text = card.card(recipe, inputs.family, inputs.factor, example_question(recipe))
            self._other_files = found | {card.FILE: text.encode()}

    def iter_weights(self) -> NamedWeights:
        """See `LearnerWorker.iter_weights`."""
        shares = self._shares()
        if self._recipe.sends_adapters:
            adapters = lora.adapter_weights(self._model, self._strategy.whole)
            yield from shares.kept(adapters, self._dtype, is_brief=True)
            return
        yield from self._published(self._rounded, shares, is_brief=True)

    def save_model(self, folder: Path) -> None:
        """Write a Hugging Face folder, the moving average as another one in it: `ema`."""
        self._write_now(folder, self._snapshot_model(self._shares()))

    def save_state(self, folder: Path, progress: dict[str, Any]) -> None:
        """Write optimiser, average, adapter and progress.

        Args:
            folder: Is made.
            progress: JSON values, which `load_state` gives back.
        """
        self._write_now(folder, self._snapshot_state(progress, self._shares()))

    def snapshot(self, progress: dict[str, Any]) -> Snapshot:
        """This rank's share of a checkpoint in host memory. Every rank must take part."""
        shares = self._shares()
        found = self._snapshot_state(progress, shares, below=TRAINING)
        found.add(self._snapshot_model(shares))
        return found

    def _shares(self) -> Shares:
        return Shares(self._ranks, self._model_bytes)

    def _snapshot_model(self, shares: Shares) -> Snapshot:
        found = self._model_files(self._rounded, shares)
        if self._ema is not None:
            with self._ema.in_place():
                found.add(self._model_files(self._strategy.whole_master, shares), "ema")
        return found

    def _snapshot_state(
        self, progress: dict[str, Any], shares: Shares, below: str = ""
    ) -> Snapshot:
        self._strategy.reshard()
        state = dict(progress)
        if self._has_lora:
            state["base_model"] = str(self._checkpoints.base)
            state["base_fingerprint"] = self._base_fingerprint
        found = Snapshot()
        if self._has_lora:  # first, since rank 0 keeps less of the rest for it
            found.add(self._adapter_files(shares), "adapter")
        found.add(
            optimizer.snapshot_optimizer(
                self._model, self._strategy, state, shares=shares, weights_of=self._is_saved_exactly
            )
        )
        if self._ema is not None:
            found.add(self._ema.snapshot(self._model, shares))
        if not self._ranks.is_first:
            found.contents.clear()
        beside = Snapshot()
        beside.add(found, below)
        return beside

    def _write_now(self, folder: Path, snapshot: Snapshot) -> None:
        """Write all ranks' files; a folder that is not there yet appears when it is complete."""
        with ExitStack() as stack:
            target = folder
            if self._ranks.is_first and not folder.is_dir():
                target = stack.enter_context(files.complete_folder(folder))
            target = self._ranks.gather(target)[0]
            snapshot.write(target)
            self._ranks.barrier()
        self._ranks.barrier()

    def load_state(self, folder: Path) -> dict[str, Any]:
        """Read what `save_state` wrote; the weights are those that were loaded already.

        Returns:
            Its `progress`.

        Raises:
            ValueError: if it belongs to another model.
            ConfigError: if its adapter belongs to another base.
        """
        if self._has_lora:
            self._check_base(folder)
        self._strategy.reshard()
        state = optimizer.load_optimizer(folder, self._model, self._strategy)
        if self._ema is not None:
            self._ema.load(folder, self._model)
        return state

    def _check_base(self, folder: Path) -> None:
        """Refuse an adapter that was trained beside other weights than those that were loaded."""
        path = folder / "learner.json"
        state = files.read_object(path, "a saved learner state") if path.is_file() else {}
        if state and state.get("base_fingerprint") != self._base_fingerprint:
            raise ConfigError(
                f"{folder}: its adapter belongs to {state.get('base_model', 'no base')}, not to "
                f"the weights of {self._checkpoints.base}: set model.path to the base it was "
                "trained on"
            )

    def _adapter_files(self, shares: Shares) -> Snapshot:
        """The adapter in peft's format, which is one file: rank 0 keeps it."""
        adapter = {}
        for name, whole in lora.adapter_weights(self._model, self._strategy.whole_master):
            shares.first_takes(whole.nbytes)
            if self._ranks.is_first:
                adapter[name] = whole.to("cpu", copy=True)
        if not self._ranks.is_first:
            return Snapshot()
        weights, config = lora.adapter_files(self._recipe.model.lora, adapter)
        return Snapshot(
            {"adapter_model.safetensors": weights}, contents={"adapter_config.json": config}
        )

    def _is_saved_exactly(self, name: str) -> bool:
        """Whether a weight's float32 is kept in the state: the model folder has less of it."""
        return lora.is_adapter(name) if self._has_lora else self._dtype != torch.float32

    def _model_files(self, whole: lora.Whole, shares: Shares) -> Snapshot:
        """This rank's share of a model folder, adapters merged."""
        weights = dict(self._published(whole, shares))
        found = shares.snapshot("model", weights, {"format": "pt"})
        if self._ranks.is_first:  # files of the source stand where the model has one too
            found.contents |= model_settings(self._model) | self._other_files
        return found

    def _rounded(self, parameter: torch.Tensor) -> torch.Tensor:
        """A whole weight on its way to where `model.dtype` is enough."""
        return self._strategy.whole(parameter, self._dtype)

    def _published(
        self, whole: lora.Whole, shares: Shares, *, is_brief: bool = False
    ) -> NamedWeights:
        """This rank's share of whole weights, by name and in the layout of a checkpoint."""
        weights = lora.merged_weights(self._model, whole, self._strategy.whole_master)
        for name, weight in shares.kept(weights, self._dtype, is_brief=is_brief):
            yield from published(self._model, {name: weight}).items()


def _enable_checkpointing(model: Any, is_reentrant: bool) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    if is_reentrant:
        # Such a checkpoint gives no gradient to a layer whose input needs none.
        first_layers: tuple[nn.Module, ...] = (
            model.get_input_embeddings(),
            model.model.visual.patch_embed,
        )
        for layer in first_layers:
            layer.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
