"""Weights on their way from the learner to the engines: flat buckets of bytes, with checksums.

A bucket holds whole tensors one after the other in one array, which Ray's object store hands to
readers without a copy. A checksum is the sum of magnitudes in float64: equal bits have equal sums,
and a weight that was left at its old value does not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class WeightBucket:
    """Some of the weights.

    Attributes:
        names: Hugging Face names.
        shapes: Shape of each.
        dtypes: Dtype of each, as torch calls it: `float32`, `bfloat16`.
        data: The tensors' bytes, each from a multiple of 16 on. uint8 [num_bytes]
        checksums: Sum of magnitudes of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray
    checksums: tuple[float, ...]


def pack_weights(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[WeightBucket]:
    """Copy weights into buckets of at most `bucket_bytes` (or of one larger tensor)."""
    pending: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, weight in weights:
        num_bytes = _padded(weight.nbytes)
        if pending and size + num_bytes > bucket_bytes:
            yield _pack(pending, size)
            pending, size = [], 0
        pending.append((name, weight.detach().cpu().contiguous()))
        size += num_bytes
    if pending:
        yield _pack(pending, size)


def unpack_weights(buckets: Iterable[WeightBucket]) -> dict[str, torch.Tensor]:
    """The weights of some buckets by name.

    Raises:
        RuntimeError: naming a weight whose checksum is not the one it was sent with.
    """
    weights: dict[str, torch.Tensor] = {}
    for bucket in buckets:
        data = torch.from_numpy(np.array(bucket.data))  # a copy: the object store is read-only
        start = 0
        fields = zip(bucket.names, bucket.shapes, bucket.dtypes, bucket.checksums, strict=True)
        for name, shape, dtype_name, expected in fields:
            dtype: torch.dtype = getattr(torch, dtype_name)
            num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            weights[name] = data[start : start + num_bytes].view(dtype).view(shape)
            start += _padded(num_bytes)
            if checksum(weights[name]) != expected:
                raise RuntimeError(
                    f"{name}: checksum {checksum(weights[name])!r} after the transfer, "
                    f"{expected!r} before it"
                )
    return weights


def checksum(weight: torch.Tensor) -> float:
    """Sum of magnitudes in float64, in the order of the elements."""
    return float(weight.detach().cpu().reshape(-1).double().abs().sum())


def verify_checksums(
    loaded: Mapping[str, float], weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> int:
    """Check that an engine's weights are those that it was given; returns how many were compared.

    Args:
        loaded: Checksums of weights in use, by Hugging Face name.
        weights: The weights given.
        dtype: What the engine computes in.

    Raises:
        RuntimeError: naming the first weight that differs, or if nothing could be compared.
    """
    if not loaded:
        raise RuntimeError("no weight of the engine could be compared with the one it was given")
    for name, found in loaded.items():
        expected = checksum(weights[name].to(dtype))
        if abs(found - expected) > 1e-9 * max(abs(expected), 1.0):
            raise RuntimeError(
                f"{name}: checksum {found!r} in the engine after loading, {expected!r} was given"
            )
    return len(loaded)


def _pack(weights: list[tuple[str, torch.Tensor]], size: int) -> WeightBucket:
    data = np.zeros(size, dtype=np.uint8)
    start = 0
    for _, weight in weights:
        flat = weight.reshape(-1).view(torch.uint8).numpy()
        data[start : start + len(flat)] = flat
        start += _padded(len(flat))
    return WeightBucket(
        names=tuple(name for name, _ in weights),
        shapes=tuple(tuple(weight.shape) for _, weight in weights),
        dtypes=tuple(str(weight.dtype).removeprefix("torch.") for _, weight in weights),
        data=data,
        checksums=tuple(checksum(weight) for _, weight in weights),
    )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16
