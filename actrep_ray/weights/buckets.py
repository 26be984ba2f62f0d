"""Weights on their way from the learner to the engines: buckets of tensors, with checksums.

A bucket holds whole tensors as views of their bytes. Put into Ray's object store, they are copied
once, each right into shared memory, where readers use them without another copy. A checksum of each
tensor's bytes proves the transfer. What an engine made of them is compared by sums, which survive
another device: of magnitudes, or of numbers by where they stand in their weight.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actrep_ray.models.torch_names import dtype_named

BUCKET_BYTES = 256 * 2**20
Weights = Mapping[str, torch.Tensor]
"""Tensors by their Hugging Face names."""

_NUM_SUMS = 512
_PIECE = 2**18  # numbers that are summed at a time
_GOLDEN, _ROOT_OF_TWO = 0.6180339887498949, 0.41421356237309515  # parts behind the point


@dataclass(frozen=True)
class WeightBucket:
    """Some of the weights.

    Attributes:
        names: Hugging Face names.
        shapes: Shape of each.
        dtypes: Dtype of each, as torch calls it: `float32`, `bfloat16`.
        data: Bytes of each, which are the tensor's own until they are sent. uint8 [num_bytes]
        checksums: `checksum` of each tensor's bytes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: tuple[np.ndarray, ...]
    checksums: tuple[int, ...]


def pack_weights(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[WeightBucket]:
    """Gather weights in buckets of at most `bucket_bytes` (or of one larger tensor).

    Nothing is copied that is contiguous and on the CPU: the caller must leave it as it is. A bucket
    that the caller has let go is gone before the next one is gathered.
    """
    ours = ((name, weight.detach().cpu().contiguous()) for name, weight in weights)
    for group in grouped(ours, bucket_bytes):
        yield _bucket(group)
        group.clear()


def unpack_weights(buckets: Iterable[WeightBucket]) -> dict[str, torch.Tensor]:
    """The weights of some buckets by name: views of the buckets, not to be written to.

    Raises:
        RuntimeError: naming a weight whose checksum is not the one it was sent with.
    """
    weights: dict[str, torch.Tensor] = {}
    for bucket in buckets:
        fields = zip(
            bucket.names, bucket.shapes, bucket.dtypes, bucket.data, bucket.checksums, strict=True
        )
        for name, shape, dtype, data, expected in fields:
            found = checksum(data)
            if found != expected:
                raise RuntimeError(
                    f"{name}: checksum {found:08x} after the transfer, {expected:08x} before it"
                )
            with warnings.catch_warnings():  # that the object store's memory is read-only
                warnings.simplefilter("ignore", UserWarning)
                weights[name] = torch.from_numpy(data).view(dtype_named(dtype)).view(shape)
    return weights


def bit_sums(weights: Weights, within: str) -> dict[str, int]:
    """Sum of the bits of each weight whose name holds some words, read as integers: equal if equal.

    Different weights of one sum are as likely as a number of 64 bits that is guessed.
    """
    return {
        name: int(weight.reshape(-1).view(torch.int16).sum(dtype=torch.int64))
        for name, weight in weights.items()
        if within in name
    }


def checksum(data: np.ndarray) -> int:
    """CRC-32 over 512 interleaved sums of 64-bit words, at twice the speed of copying.

    A changed word always shows; words that change places show unless they are a multiple of 4 KiB
    apart. A CRC of the bytes themselves is three times slower than copying them.

    Args:
        data: uint8 [num_bytes]
    """
    num_whole = len(data) // (8 * _NUM_SUMS) * _NUM_SUMS
    words = data[: 8 * num_whole].view(np.uint64)
    sums = words.reshape(-1, _NUM_SUMS).sum(axis=0, dtype=np.uint64)
    rest = data[8 * num_whole :].tobytes()
    return zlib.crc32(rest, zlib.crc32(sums.tobytes()))


def magnitude(weight: torch.Tensor) -> float:
    """Sum of magnitudes in float64, equal to 12 digits wherever it is computed."""
    pieces = weight.detach().reshape(-1).split(_PIECE)  # at once it would be copied whole
    return float(sum(piece.abs().sum(dtype=torch.float64) for piece in pieces))


def located_sum(weight: torch.Tensor) -> float:
    """Sum of numbers, each times a factor of its row and one of its column, in float64.

    As a sum of magnitudes it is equal to about 12 digits wherever it is computed; unlike it, it
    tells a weight from its transpose, and from one whose rows, columns or experts changed places.

    Args:
        weight: [..., C]; all dimensions but the last are rows.
    """
    rows = weight.detach().reshape(-1, weight.shape[-1] if weight.ndim else 1)
    of_rows = _factors(len(rows), _GOLDEN, weight.device)
    of_columns = _factors(rows.shape[1], _ROOT_OF_TWO, weight.device)
    step = max(1, _PIECE // max(1, rows.shape[1]))
    pieces = zip(rows.split(step), of_rows.split(step), strict=True)
    return float(sum(factors @ (piece.double() @ of_columns) for piece, factors in pieces))


def _factors(num: int, irrational: float, device: torch.device) -> torch.Tensor:
    """Numbers between 1 and 2 of which no two are equal: multiples of an irrational one, cut."""
    return 1 + torch.arange(1, num + 1, dtype=torch.float64, device=device) * irrational % 1


def verify_sums(loaded: Sequence[tuple[str, float]], weights: Weights, dtype: torch.dtype) -> int:
    """As `verify_magnitudes`, of located sums; a name may come more than once.

    Raises:
        RuntimeError: naming the first weight that differs, or if nothing could be compared.
    """
    if not loaded:
        raise RuntimeError("no weight of the engine could be compared with the one it was given")
    sums: dict[str, list[float]] = {}  # those of one weight: what was given is summed once
    for name, found in loaded:
        sums.setdefault(name, []).append(found)
    for name, in_use in sums.items():
        weight = weights[name].to(dtype)
        expected, scale = located_sum(weight), magnitude(weight)
        for found in in_use:
            if not abs(found - expected) <= 1e-11 * max(scale, 1e-6):
                raise RuntimeError(
                    f"{name}: located sum {found!r} in the engine after loading, {expected!r} was "
                    "given"
                )
    return len(loaded)


def grouped(
    weights: Iterable[tuple[str, torch.Tensor]], num_bytes: int = BUCKET_BYTES
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Weights in groups of at most `num_bytes`, or of one larger one."""
    group: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, weight in weights:
        if group and size + weight.nbytes > num_bytes:
            yield group
            group, size = [], 0
        group.append((name, weight))
        size += weight.nbytes
    if group:
        yield group


def verify_magnitudes(loaded: Mapping[str, float], weights: Weights, dtype: torch.dtype) -> int:
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


def _bucket(weights: list[tuple[str, torch.Tensor]]) -> WeightBucket:
    data = tuple(weight.reshape(-1).view(torch.uint8).numpy() for _, weight in weights)
    return WeightBucket(
        names=tuple(name for name, _ in weights),
        shapes=tuple(tuple(weight.shape) for _, weight in weights),
        dtypes=tuple(str(weight.dtype).removeprefix("torch.") for _, weight in weights),
        data=data,
        checksums=tuple(checksum(array) for array in data),
    )
