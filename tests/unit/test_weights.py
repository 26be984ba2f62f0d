"""Weight buckets: hand-computed layout and sums, and what must not pass."""

import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.run.profile import Timeline
from actrep_ray.weights import vllm_load
from actrep_ray.weights.buckets import (
    Weights,
    bit_sums,
    checksum,
    grouped,
    located_sum,
    magnitude,
    pack_weights,
    unpack_weights,
    verify_magnitudes,
    verify_sums,
)
from actrep_ray.weights.sync import WeightSync


def test_layout_and_checksums() -> None:
    a, b = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([1.5, -0.5], dtype=torch.bfloat16)
    (bucket,) = pack_weights([("a", a), ("b", b)])
    assert bucket.names == ("a", "b")
    assert bucket.shapes == ((1, 3), (2,))
    assert bucket.dtypes == ("float32", "bfloat16")
    assert bucket.checksums[0] == zlib.crc32(
        np.array([1, -2, 3], np.float32).tobytes(), zlib.crc32(bytes(4096))
    )
    assert magnitude(a) == 6.0
    assert magnitude(b) == 2.0
    assert [array.tolist() for array in bucket.data] == [
        [0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0, 0, 0, 0x40, 0x40],
        [0xC0, 0x3F, 0, 0xBF],
    ]


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=6),
    bucket_bytes=st.integers(1, 400),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_buckets_give_back_what_went_in(
    shapes: list[list[int]], bucket_bytes: int, dtype: torch.dtype
) -> None:
    weights = {f"w{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    buckets = list(pack_weights(weights.items(), bucket_bytes))
    for bucket in buckets:
        assert len(bucket.names) == 1 or sum(map(len, bucket.data)) <= bucket_bytes
    again = unpack_weights(buckets)
    assert list(again) == list(weights)
    for name, weight in weights.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], weight)


def test_checksum_by_hand() -> None:
    words = np.arange(1026, dtype=np.uint64)  # two rows of 512, and two words more
    words[0] = 2**64 - 1
    sums = [(int(words[i]) + int(words[512 + i])) % 2**64 for i in range(512)]
    expected = zlib.crc32(np.array(sums, np.uint64).tobytes())
    expected = zlib.crc32(np.array([1024, 1025], np.uint64).tobytes(), expected)
    assert checksum(words.view(np.uint8)) == expected


@given(st.integers(1, 9600), st.data())
def test_any_changed_bit_changes_the_checksum(num_bytes: int, data: st.DataObject) -> None:
    given_bytes = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    place = data.draw(st.integers(0, len(given_bytes) - 1))
    changed = given_bytes.copy()
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(changed) != checksum(given_bytes)


def test_packing_copies_nothing() -> None:
    weight = torch.ones(8)
    (bucket,) = pack_weights([("w", weight)])
    assert bucket.data[0].ctypes.data == weight.data_ptr()


def test_a_bucket_that_was_sent_is_gone_before_the_next_is_gathered() -> None:
    alive: list[int] = []
    seen: list[weakref.ref[np.ndarray]] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in "abcdef":
            alive.append(sum(one() is not None for one in seen))
            numbers = np.ones(4, np.float32)  # of whose memory the tensor is
            seen.append(weakref.ref(numbers))
            yield name, torch.from_numpy(numbers)
            del numbers

    assert [len(b.names) for b in pack_weights(weights(), 32)] == [2, 2, 2]
    del alive[:], seen[:]
    list(map(id, pack_weights(weights(), 32)))
    assert max(alive) <= 2, alive  # those of one bucket


def test_a_changed_bit_is_an_error() -> None:
    (bucket,) = pack_weights([("layer.weight", torch.ones(4))])
    data = bucket.data[0].copy()
    data[5] ^= 1
    with pytest.raises(RuntimeError, match=r"layer.weight: checksum .* after the transfer"):
        unpack_weights([replace(bucket, data=(data,))])


def test_loaded_weights_are_compared_in_the_engines_dtype() -> None:
    weights = {"norm": torch.tensor([1.001, -1.0]), "other": torch.zeros(1)}
    bfloat16 = {"norm": magnitude(weights["norm"].to(torch.bfloat16))}
    assert verify_magnitudes(bfloat16, weights, torch.bfloat16) == 1
    with pytest.raises(RuntimeError, match=r"norm: magnitude .* in the engine"):
        verify_magnitudes(bfloat16, weights, torch.float32)
    with pytest.raises(RuntimeError, match="no weight"):
        verify_magnitudes({}, weights, torch.float32)


def test_located_sums_by_hand_and_what_they_tell_apart() -> None:
    g = 0.6180339887498949
    h = 0.41421356237309515
    rows = (1 + g, 1 + (2 * g - 1))  # 1 and the part behind the point
    columns = (1 + h, 1 + 2 * h, 1 + (3 * h - 1))
    weight = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    assert located_sum(weight) == pytest.approx(
        rows[0] * (columns[0] * 1 + columns[1] * 2) + rows[1] * (columns[2] * -1), rel=1e-14
    )
    square = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned, moved = square.transpose(1, 2), square[[1, 0, 2]]
    stale = square.clone()
    stale[2, 3, 4] += 1e-6
    flat = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    assert located_sum(flat) != pytest.approx(located_sum(flat.T), rel=1e-6)
    for other in (turned, moved, stale):
        assert magnitude(other) == pytest.approx(magnitude(square), rel=1e-6)
        with pytest.raises(RuntimeError, match="w: located sum"):
            verify_sums([("w", located_sum(other))], {"w": square}, torch.float32)
    assert verify_sums([("w", located_sum(square))] * 2, {"w": square}, torch.float32) == 2
    with pytest.raises(RuntimeError, match="no weight"):
        verify_sums([], {"w": square}, torch.float32)


@dataclass
class Llm:
    """What `vllm.LLM` does with weights, in two workers; `loses` and `spoils` name its faults."""

    loses: str = ""
    spoils: str = ""
    held: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    llm_engine: Any = None

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any], /) -> None:
        self.calls.append("update")
        given = dict(request["update_info"]["weights"])
        self.held |= {n: w * (2 if n == self.spoils else 1) for n, w in given.items()}

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[Any]:
        if method == "actrep_missing_weights":
            return [[], [self.loses] if self.loses else []]
        if method == "actrep_stale_experts":
            return [[], []]
        assert method == "actrep_located_sums"
        return [[(name, located_sum(self.held[name])) for name in args[0]]] * 2


def test_vllm_is_given_all_weights_and_asked_for_what_it_uses() -> None:
    weights: Weights = {"a.norm.weight": torch.ones(3), "b.norm.weight": torch.ones(2)}
    llm = Llm()
    vllm_load.replace_all(llm, weights)
    assert llm.calls == ["start", "update", "finish"]
    vllm_load.verify_all(llm, weights, torch.float32)
    with pytest.raises(ValueError, match=r"1 weights of the engine were not given, among them c"):
        vllm_load.replace_all(Llm(loses="c"), weights)
    spoiled = Llm(spoils="b.norm.weight")
    vllm_load.replace_all(spoiled, weights)
    with pytest.raises(RuntimeError, match=r"b.norm.weight: located sum .* in the engine"):
        vllm_load.verify_all(spoiled, weights, torch.float32)


def test_a_push_goes_bucket_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker process of vLLM copies what it is given: at most a bucket, or one weight."""
    weights = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(30), "d": torch.ones(1)}
    given = grouped

    def small(weights: Any, num_bytes: int = 32) -> Any:
        return given(weights, num_bytes)

    monkeypatch.setattr(vllm_load, "grouped", small)
    llm = Llm()
    vllm_load.replace_all(llm, weights)
    assert llm.calls == ["start", "update", "update", "update", "finish"]
    assert set(llm.held) == set(weights)


def test_of_a_large_model_each_push_compares_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    monkeypatch.setattr(vllm_load, "VERIFIED_BYTES", 32)
    llm = Llm(spoils="c")
    vllm_load.replace_all(llm, weights)
    vllm_load.verify_all(llm, weights, torch.float32, turn=0)  # a and b
    with pytest.raises(RuntimeError, match="c: located sum"):
        vllm_load.verify_all(llm, weights, torch.float32, turn=1)
    vllm_load.verify_all(llm, weights, torch.float32, turn=2)  # a and b again


class OneEngine:
    """Takes a second to load weights, while the machine's clock is set back by an hour."""

    num_workers = 1

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.wall_s, self.monotonic_s, self.version = 10_000.0, 50.0, -1

    def export_weights_refs(self) -> Sequence[Any]:
        return ()

    def let_go_of_weights(self) -> None:
        """It keeps none."""

    def load_weights(self, refs: Sequence[Any], policy_version: int) -> None:
        self.wall_s, self.monotonic_s = self.wall_s - 3600.0, self.monotonic_s + 1.0
        self.version = policy_version

    def start_load(
        self, refs: Sequence[Any], policy_version: int, then: Any, *, at_once: int | None = None
    ) -> None:
        self.load_weights(refs, policy_version)
        then()

    def policy_versions(self) -> list[int]:
        return [self.version]


def test_a_push_lasts_as_long_as_passed_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = OneEngine()
    monkeypatch.setattr(time, "time", lambda: engine.wall_s)
    monkeypatch.setattr(time, "perf_counter", lambda: engine.monotonic_s)
    sync = WeightSync(engine, engine)
    expected = {"sync/load_s": 1.0, "sync/policy_version": 3.0}
    assert sync.push(3) == {"sync/export_s": 0.0} | expected
    told: list[dict[str, float]] = []
    sync.start_delivery((), 3, told.append)
    assert told == [expected]


def test_sums_of_bits_tell_weights_apart_and_leave_others_out() -> None:
    """1.0 is 0x3f80 in bfloat16 and 0x3f80, 0x0000 in float32; -0.0 is 0x8000, the least int16."""
    weights = {
        "visual.a": torch.ones(2, 2, dtype=torch.bfloat16),
        "visual.b": torch.tensor(1.0),
        "visual.c": torch.tensor([-0.0], dtype=torch.bfloat16),
        "language_model.a": torch.ones(3),
    }
    expected = {"visual.a": 4 * 0x3F80, "visual.b": 0x3F80, "visual.c": -(2**15)}
    assert bit_sums(weights, "visual.") == expected
