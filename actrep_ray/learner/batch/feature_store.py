"""A node's store of what a frozen vision tower makes of clips: computed once, whoever asks first.

Files `HASH.safetensors` in the folder of decoded clips, with a bound of their own: the features of
all that one prompt shows, memory-mapped by readers, in the dtype in which they were computed. The
name says what they follow from: the content, seconds and sizes of what is shown, the tower's
weights, code and device, and how the processor cuts patches. So each rank of a node finds what
another has computed, and a run that goes on what was computed before.

A process compares a file's checksum once, and again after it was written to. One that is damaged
is told and made anew.
"""

import hashlib
import json
import logging
import re
import time
from contextlib import ExitStack
from functools import cached_property
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from actrep_ray.media.bounded_folder import BoundedFolder
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import EncodedPrompt, QwenVLInputs
from actrep_ray.models.tower import FrozenTower, bytes_of
from data_prep.locks import BusyError, locked
from data_prep.video import FramePlan

_log = logging.getLogger(__name__)

_NAMES = re.compile(r"[0-9a-f]{32}\.safetensors")
_LONGEST_WAIT_S = 120.0  # for another process that computes; then this one does, too


class FeatureStore:
    """Features of a frozen tower, from memory-mapped files.

    Args:
        frames: The node's cache of decoded clips, beside which the files lie.
        max_bytes: Size that they are kept under, in bytes, the newest file excepted; 0: none is
            read or written.
        tower: Computes what is missing. Its weights must be there when features are asked for.
        inputs: Cut its patches.
    """

    def __init__(
        self, frames: FrameCache, max_bytes: int, tower: FrozenTower, inputs: QwenVLInputs
    ) -> None:
        self._frames = frames
        self._folder: BoundedFolder | None = None
        if max_bytes > 0:
            consequence = "other processes compute features again"
            folder, is_shared = frames.folder.path, frames.folder.is_shared
            self._folder = BoundedFolder(
                folder, _NAMES, max_bytes, consequence, is_shared=is_shared
            )
        self._tower = tower
        self._inputs = inputs
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._told: set[str] = set()

    def features(self, plan: FramePlan, prompt: EncodedPrompt) -> torch.Tensor:
        """What the tower makes of all that a plan shows.

        Args:
            plan: Of the prompt.
            prompt: With pixels.

        Returns:
            [taps, patches, width] on the CPU; writing to it changes nothing in the store.

        Raises:
            DataError: if the folder can no longer be trusted.
        """
        folder, num_patches = self._folder, len(prompt.pixel_values)
        if folder is None:
            return self._tower.features(prompt.pixel_values, prompt.grid_thw)
        key = self._key_of(plan)
        if (found := self._load(folder, key, num_patches)) is not None:
            return found
        lock = locked(
            folder.path / f"{key}.lock",
            timeout_s=_LONGEST_WAIT_S,
            waits_for=f"the process that computes features of {plan.video}",
            mode=folder.file_mode,
        )
        with ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except BusyError as error:
                _log.warning("%s; they are computed here too", error)
            except OSError:  # a folder that is only read: who stores them says so
                pass
            if (found := self._load(folder, key, num_patches)) is not None:  # another was faster
                return found
            features = self._tower.features(prompt.pixel_values, prompt.grid_thw)
            told = {"key": key, "crc32": _checksum(features)}
            content = save({"features": features}, told)
            folder.store(f"{key}.safetensors", lambda out: out.write(content), len(content))
        return features

    def _load(self, folder: BoundedFolder, key: str, num_patches: int) -> torch.Tensor | None:
        name = f"{key}.safetensors"
        with folder.reading(name) as found:
            if found is None:
                return None
            file, status = found
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            is_verified = self._verified.get(name) == version
            features = _map(file, key, self._tower, num_patches, is_verified=is_verified)
            if features is None:
                if name not in self._told:
                    _log.warning("%s: damaged, made anew", folder.path / name)
                    self._told.add(name)
                return None
            self._verified[name] = version
            folder.touch(file, status, time.time_ns())
        return features

    def _key_of(self, plan: FramePlan) -> str:
        shown = [self._frames.key_of(one) for one in plan.shown]
        return hashlib.sha256(json.dumps([*self._made_by, *shown]).encode()).hexdigest()[:32]

    @cached_property
    def _made_by(self) -> tuple[str, str]:
        """What names the tower, and how patches are cut."""
        return self._tower.fingerprint(), self._inputs.patch_fingerprint()


def _map(
    file: int, key: str, tower: FrozenTower, num_patches: int, *, is_verified: bool
) -> torch.Tensor | None:
    """The features in an open file, mapped; None if it is damaged or holds something else."""
    try:
        with safe_open(f"/proc/self/fd/{file}", framework="pt") as opened:
            told, features = opened.metadata() or {}, opened.get_tensor("features")
    except (SafetensorError, OSError):
        return None
    is_expected = features.shape[:-1] == (tower.num_taps, num_patches)
    if not is_expected or features.dtype != tower.dtype or told.get("key") != key:
        return None
    return features if is_verified or told.get("crc32") == _checksum(features) else None


def _checksum(features: torch.Tensor) -> str:
    return f"{crc32(bytes_of(features)):08x}"
