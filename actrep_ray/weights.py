"""Weights on their way from the learner to the engines: flat buckets of bytes, with checksums.

A bucket holds whole tensors one after the other in one array, which Ray's object store hands to
readers without a copy. A checksum of each tensor's bytes proves the transfer. What an engine made
of them is compared by sums of magnitudes, which survive padding and another device.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

BUCKET_BYTES = 256 * 2**20
_NUM_SUMS = 512


@dataclass(frozen=True)
class WeightBucket:
    """Some of the weights.

    Attributes:
        names: Hugging Face names.
        shapes: Shape of each.
        dtypes: Dtype of each, as torch calls it: `float32`, `bfloat16`.
        data: The tensors' bytes, each from a multiple of 16 on, zeros between. uint8 [num_bytes]
        checksums: `checksum` of each tensor's bytes.
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
    """The weights of some buckets by name: views of the buckets, not to be written to.

    Raises:
        RuntimeError: naming a weight whose checksum is not the one it was sent with.
    """
    weights: dict[str, torch.Tensor] = {}
    for bucket in buckets:
        start = 0
        with warnings.catch_warnings():  # that the object store's memory is read-only
            warnings.simplefilter("ignore", UserWarning)
            data = torch.from_numpy(bucket.data)
        fields = zip(bucket.names, bucket.shapes, bucket.dtypes, bucket.checksums, strict=True)
        for name, shape, dtype_name, expected in fields:
            dtype: torch.dtype = getattr(torch, dtype_name)
            num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            found = checksum(bucket.data[start : start + _padded(num_bytes)])
            if found != expected:
                raise RuntimeError(
                    f"{name}: checksum {found:08x} after the transfer, {expected:08x} before it"
                )
            weights[name] = data[start : start + num_bytes].view(dtype).view(shape)
            start += _padded(num_bytes)
    return weights


def checksum(data: np.ndarray) -> int:
    """CRC-32 over 512 interleaved sums of 64-bit words, at twice the speed of copying.

    A changed word always shows; words that change places show unless they are a multiple of 4 KiB
    apart. A CRC of the bytes themselves is three times slower than copying them.

    Args:
        data: uint8, a multiple of 8 bytes.
    """
    words = data.view(np.uint64)
    num_whole = len(words) // _NUM_SUMS * _NUM_SUMS
    sums = words[:num_whole].reshape(-1, _NUM_SUMS).sum(axis=0, dtype=np.uint64)
    return zlib.crc32(words[num_whole:].tobytes(), zlib.crc32(sums.tobytes()))


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
        padded_end = start + _padded(weight.nbytes)
        checksums.append(checksum(data[start:padded_end]))
        start = padded_end
    return WeightBucket(
        names=tuple(name for name, _ in weights),
        shapes=tuple(tuple(weight.shape) for _, weight in weights),
        dtypes=tuple(str(weight.dtype).removeprefix("torch.") for _, weight in weights),
        data=data,
        checksums=tuple(checksums),
    )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16
