"""Weights on their way from the learner to the engines: flat buckets of bytes, with checksums.

A bucket holds whole tensors one after the other in one array, which Ray's object store hands to
readers without a copy. A CRC-32 of each tensor's bytes proves the transfer. What an engine made of
them is compared by sums of magnitudes, which survive padding and another device.
"""

import zlib
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
        checksums: CRC-32 of each tensor's bytes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray
    checksums: tuple[int, ...]


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
        data = np.array(bucket.data)  # a copy: the object store is read-only
        start = 0
        fields = zip(bucket.names, bucket.shapes, bucket.dtypes, bucket.checksums, strict=True)
        for name, shape, dtype_name, expected in fields:
            dtype: torch.dtype = getattr(torch, dtype_name)
            num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            found = zlib.crc32(data[start : start + num_bytes].data)
            if found != expected:
                raise RuntimeError(
                    f"{name}: checksum {found:08x} after the transfer, {expected:08x} before it"
                )
            tensor = torch.from_numpy(data[start : start + num_bytes])
            weights[name] = tensor.view(dtype).view(shape)
            start += _padded(num_bytes)
    return weights


def magnitude(weight: torch.Tensor) -> float:
    """Sum of magnitudes in float64, equal to 12 digits wherever it is computed."""
    return float(weight.detach().double().abs().sum())


def verify_magnitudes(
    loaded: Mapping[str, float], weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> int:
    """Check that an engine's weights are those that it was given; returns how many were compared.

    Args:
        loaded: Magnitudes of weights in use, by Hugging Face name.
        weights: The weights given.
        dtype: What the engine computes in.

    Raises:
        RuntimeError: naming the first weight that differs, or if nothing could be compared.
    """
    if not loaded:
        raise RuntimeError("no weight of the engine could be compared with the one it was given")
    for name, found in loaded.items():
        expected = magnitude(weights[name].to(dtype))
        if not abs(found - expected) <= 1e-10 * max(expected, 1e-6):
            raise RuntimeError(
                f"{name}: magnitude {found!r} in the engine after loading, {expected!r} was given"
            )
    return len(loaded)


def _pack(weights: list[tuple[str, torch.Tensor]], size: int) -> WeightBucket:
    data = np.zeros(size, dtype=np.uint8)
    target = torch.from_numpy(data)
    start = 0
    checksums = []
    for _, weight in weights:
        end = start + weight.nbytes
        # Not `weight.numpy()`: that would forbid FSDP to free the memory of a gathered weight.
        target[start:end].copy_(weight.reshape(-1).view(torch.uint8))
        checksums.append(zlib.crc32(data[start:end].data))
        start += _padded(weight.nbytes)
    return WeightBucket(
        names=tuple(name for name, _ in weights),
        shapes=tuple(tuple(weight.shape) for _, weight in weights),
        dtypes=tuple(str(weight.dtype).removeprefix("torch.") for _, weight in weights),
        data=data,
        checksums=tuple(checksums),
    )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16
