"""DeepSpeed ZeRO-2 and ZeRO-3: gradients and optimiser split over ranks, or the weights as well.

Used as a library for splitting, reducing, clipping and stepping. What it does not do here: cut
batches (the worker says which micro-batch is the last), scale losses, schedule learning rates, or
save. Its own saving is pickle; ours reads whole tensors out of it (`Moments`), so a state goes on
under another strategy or number of ranks too.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.base import Moments, Strategy
from actrep_ray.learner.strategies.fsdp import units
from actrep_ray.learner.strategies.optimizer import make_optimizer, set_learning_rates
from actrep_ray.models.loading import Source, receive
from actrep_ray.models.torch_names import dtype_named
from actrep_ray.planning.deepspeed_settings import deepspeed_settings


class Zero(Strategy):
    """`learner.strategy: deepspeed`; see `Strategy`."""

    def __init__(
        self, policy: Policy, mesh: DeviceMesh, recipe: Recipe, source: Source | None = None
    ) -> None:
        self._policy = policy
        self._deepspeed = _import_deepspeed(mesh.device_type)
        if mesh.size() > 1:
            self._fill(mesh, recipe, source)
        self._engine, self._zero, _, _ = self._deepspeed.initialize(
            model=policy,
            optimizer=make_optimizer(policy.model, recipe.learner),
            config=deepspeed_settings(recipe),
            dist_init_required=False,
        )
        self._base = self._zero.optimizer  # PyTorch's AdamW over this rank's flat shards
        self._are_states_linked = False

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Policy.forward`."""
        found: tuple[torch.Tensor, torch.Tensor] = self._engine(
            batch, temperature=temperature, with_entropy_grad=with_entropy_grad
        )
        return found

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradient."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)
        if not is_last:
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self, lr_factor: float) -> float:
        """Clip and step; the norm is that before clipping."""
        set_learning_rates(self._base, lr_factor)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        assert norm is not None, "DeepSpeed computed no gradient norm"
        if not self._engine.was_step_applied():
            return float("inf")
        if not self._are_states_linked:
            self._link_states()
        return float(norm)

    def reshard(self) -> None:
        """Nothing: a parameter stays the same object here."""

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole gradient) of every trained parameter."""
        for name, parameter in self._policy.model.named_parameters():
            if parameter.requires_grad:
                yield name, self._deepspeed.utils.safe_get_full_grad(parameter)

    def num_elements(self, parameter: torch.Tensor) -> int:
        """How many numbers the whole of a parameter holds, where this rank has a share too."""
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def whole(self, parameter: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole of a parameter in the dtype of computation, in which it is held."""
        with self._gathered(parameter):
            return parameter.detach().clone()

    def whole_master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter in float32, out of the optimiser if it is trained."""
        if not parameter.requires_grad:
            return self.whole(parameter).float()
        found: torch.Tensor = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
        return found

    def set_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value in the model and in the optimiser."""
        whole = whole.to(self._engine.device)
        with self._gathered(parameter, modifier_rank=0), torch.no_grad():
            parameter.copy_(whole)
        if parameter.requires_grad:
            self.write_master(parameter, whole)

    def write_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value in the optimiser alone."""
        whole = whole.to(self._engine.device)
        self._deepspeed.utils.safe_set_full_fp32_param(parameter, whole)

    def local_shards(self) -> list[torch.Tensor]:
        """This rank's flat shards of the optimiser's weights."""
        return [flat.detach() for flat in self._flat_masters()]

    def moments(self, parameter: torch.Tensor) -> Moments | None:
        """AdamW's state of a parameter."""
        if not self._base.state or not parameter.requires_grad:
            return None
        read = self._deepspeed.utils.safe_get_full_optimizer_state
        step = max(float(state["step"]) for state in self._base.state.values())
        return Moments(step, read(parameter, "exp_avg"), read(parameter, "exp_avg_sq"))

    def set_moments(self, parameter: torch.Tensor, moments: Moments) -> None:
        """Keep this rank's shard of the state; all parameters have taken as many steps."""
        self._make_states()
        for state in self._base.state.values():
            state["step"].fill_(moments.step)
        wanted = {"exp_avg": moments.exp_avg, "exp_avg_sq": moments.exp_avg_sq}
        for key, value in wanted.items():
            self._deepspeed.utils.safe_set_full_optimizer_state(
                parameter, value.to(self._engine.device), key
            )

    def _fill(self, mesh: DeviceMesh, recipe: Recipe, source: Source | None) -> None:
        """Give the policy its values in the dtype of computation; ZeRO-3 splits layer by layer."""
        settings, dtype = deepspeed_settings(recipe), dtype_named(recipe.model.dtype)
        for parameter in self._policy.parameters():
            parameter.data = parameter.data.to(dtype)
        split: list[torch.nn.Module] = [*units(self._policy), self._policy]
        if recipe.learner.zero_stage != 3:
            split = [self._policy]
        for module in split:
            receive(module, mesh, source)
            if recipe.learner.zero_stage == 3:
                self._deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=dtype)

    @property
    def _is_split(self) -> bool:
        """Whether the weights are split as well: ZeRO-3."""
        return hasattr(self._zero, "fp32_partitioned_groups_flat")

    def _flat_masters(self) -> list[torch.Tensor]:
        zero = self._zero
        found: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat
            if self._is_split
            else zero.single_partition_of_fp32_groups
        )
        return found

    def _make_states(self) -> None:
        """AdamW makes its states in its first step; make them now, empty."""
        if self._base.state:
            return
        for flat in self._flat_masters():
            self._base.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self._link_states()

    def _link_states(self) -> None:
        """Let parameters find their part of AdamW's states, once those of all groups are there.

        ZeRO-2 does it itself after the first group's first step, and leaves out the other groups.
        """
        if not self._is_split:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()
        self._are_states_linked = True

    @contextmanager
    def _gathered(
        self, parameter: torch.Tensor, modifier_rank: int | None = None
    ) -> Iterator[None]:
        """ZeRO-3: the whole parameter in place of this rank's shard, for a while."""
        if not hasattr(parameter, "ds_id"):
            yield
            return
        zero = self._deepspeed.zero
        with zero.GatheredParameters([parameter], modifier_rank=modifier_rank):
            yield


def _import_deepspeed(device_type: str) -> Any:
    """The package, told what it runs on; it looks at its environment when it is imported."""
    if device_type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Ray shows a rank its own GPU only.
    os.environ["LOCAL_RANK"] = "0"
    import deepspeed
    import deepspeed.ops
    import deepspeed.utils

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU it would compile an operator of its own at the first start: two minutes, for nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed's matter, not the user's; and checkpointed layers do run without gradients here,
    # when answers are scored.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad", UserWarning)
    return deepspeed
