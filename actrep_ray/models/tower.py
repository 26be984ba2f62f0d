"""A frozen vision tower, run once for each clip: what it makes of the pixels is kept, and shown
again in place of running it.

A Qwen-VL model's vision part is patches -> blocks -> merger (Qwen3-VL: a merger after some of the
blocks as well). The blocks are 0.6 billion parameters that most recipes freeze, and a clip passes
through them in every scoring and training pass of every step, though the result is always the same.
Mergers, which recipes train, run each time.

`features` of a clip: [taps, patches, width], the outputs of those blocks that a merger reads, in
the order in which the tower holds patches (Qwen2.5-VL: by windows of one clip). They follow from
pixels and grid alone: no block sees another clip, or another temporal patch.

Cached vision features are in EasyVideoR1 and LongVILA-R1 (arXiv 2507.07966).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from actrep_ray.config import ConfigError


class FrozenTower:
    """Computes features, and shows them to the model in place of pixels.

    Args:
        model: A Qwen-VL model whose vision tower is not trained, before it is split.

    Attributes:
        num_patches: How many patches were computed so far.
    """

    def __init__(self, model: Any) -> None:
        self.num_patches = 0
        self._visual = model.model.visual
        self._own = {n: child for n, child in self._visual.named_children() if "merger" not in n}
        self._blocks = self._visual.blocks
        self._taps = taps_of(self._visual)
        self._shown = _Shown({block: number for number, block in enumerate(self._taps)})
        players = nn.ModuleList(_Player(self._shown, i) for i in range(len(self._blocks)))
        self._for_showing = {"blocks": players, "patch_embed": nn.Identity()}
        # Mergers may be split over ranks, and nobody else runs them at the same time.
        self._for_computing: dict[str, nn.Module] = {"merger": nn.Identity()}
        if mergers := getattr(self._visual, "deepstack_merger_list", None):
            own = nn.ModuleList(nn.Identity() for _ in mergers)
            self._for_computing["deepstack_merger_list"] = own

    def parameters(self) -> list[nn.Parameter]:
        """Those of the tower, without its mergers; no rank can compute features without them."""
        return [p for child in self._own.values() for p in child.parameters()]

    @property
    def dtype(self) -> torch.dtype:
        """Of its blocks, and of features."""
        dtype: torch.dtype = next(self._blocks.parameters()).dtype
        return dtype

    @property
    def num_taps(self) -> int:
        """How many blocks' outputs features are."""
        return len(self._taps)

    def fingerprint(self) -> str:
        """Names all that features follow from beside pixels: SHA-256 of each weight in its dtype,
        the settings and code of the tower, the kind of device. Its weights must be there.
        """
        config = self._visual.config
        code = config.to_json_string(), config._attn_implementation, self._taps
        versions = torch.__version__, transformers.__version__
        device = next(self._blocks.parameters()).device.type
        told = hashlib.sha256(repr((code, versions, device)).encode())
        for weight in self.parameters():
            told.update(repr((weight.dtype, tuple(weight.shape))).encode())
            told.update(bytes_of(weight.detach()))
        return told.hexdigest()

    def to(self, device: torch.device) -> None:
        """Move the tower, without its mergers, to a device."""
        for child in self._own.values():
            child.to(device)

    def take(self, other: "FrozenTower") -> None:
        """Use the weights of another model's tower, which are the same, and keep them once.

        Raises:
            ConfigError: if they are not.
        """
        pairs = zip(self.parameters(), other.parameters(), strict=True)
        if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
            raise ConfigError(
                "learner.cache_features: the vision towers of the trained checkpoint and of the "
                "reference policy differ: set it to false"
            )
        self._own, self._blocks = other._own, other._blocks
        for name, child in self._own.items():
            setattr(self._visual, name, child)

    @torch.no_grad()
    def features(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """What the tower makes of clips.

        Args:
            pixel_values: [patches, patch_dim]
            grid_thw: int64 [clips, 3], see `EncodedPrompt`.

        Returns:
            [taps, patches, width] on the CPU, in the dtype of the tower's weights.
        """
        weight = next(self._blocks.parameters())
        found: dict[int, torch.Tensor] = {}
        hooks = [self._blocks[i].register_forward_hook(_keeper(found, i)) for i in self._taps]
        try:
            with _swapped(self._visual, self._for_computing):
                pixels = pixel_values.to(weight.device, weight.dtype)
                self._visual(pixels, grid_thw.to(weight.device))
        finally:
            for hook in hooks:
                hook.remove()
        self.num_patches += len(pixel_values)
        return torch.stack([found[i] for i in self._taps]).cpu()

    @contextmanager
    def showing(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        """Have the model take features where it is given what this yields as its pixels."""
        self._shown.features = features
        try:
            with _swapped(self._visual, self._for_showing):
                yield features[-1]
        finally:
            self._shown.features = None


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """What a tensor holds, in its dtype."""
    flat = tensor.cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def taps_of(visual: Any) -> list[int]:
    """Numbers of the blocks whose output a merger reads, the last one among them."""
    last = len(visual.blocks) - 1
    return sorted({*getattr(visual, "deepstack_visual_indexes", ()), last})


@contextmanager
def _swapped(module: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in place of a module's children, for a while."""
    own = {name: getattr(module, name) for name in others}
    for name, other in others.items():
        setattr(module, name, other)
    try:
        yield
    finally:
        for name, child in own.items():
            setattr(module, name, child)


@dataclass
class _Shown:
    """What is shown: features, and which of them is the output of a block."""

    taps: dict[int, int]
    features: torch.Tensor | None = None


class _Player(nn.Module):
    """In place of a block: its output if it is kept, else its input."""

    def __init__(self, shown: _Shown, number: int) -> None:
        super().__init__()
        self._shown, self._number = shown, number

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """[patches, width] in and out."""
        assert self._shown.features is not None
        tap = self._shown.taps.get(self._number)
        return hidden_states if tap is None else self._shown.features[tap]


def _keeper(found: dict[int, torch.Tensor], number: int) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        found[number] = output

    return keep
