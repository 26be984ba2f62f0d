"""How fast weights get from a learner to an engine, against a plain copy of the same bytes.

Weights with the shapes of Qwen2.5-VL-3B (bfloat16) are put into Ray's object store (shared memory)
in buckets and unpacked by a worker in another process, as `WeightSync` does, checksums included.
Those of the last push are held meanwhile, as a pool does for workers that come later. `--quick`
takes a tenth of the layers.

    python benchmarks/weight_push.py [--quick]

The last line is one JSON object: GB/s of each part and of the whole, GB/s of numpy copying the same
bytes in the same run, and the share of the two. Each part is the best of five, the copy of three:
the first pushes touch memory of the object store that is fresh; `first_share_of_copy` is the first.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from simulated import start_ray

from actrep_ray.weights.buckets import WeightBucket, pack_weights, unpack_weights

# Qwen2.5-VL-3B: width, layers and sizes of the language model, of which the rest is a seventh.
_WIDTH, _NUM_LAYERS, _MLP, _KV, _VOCABULARY = 2048, 36, 11008, 256, 151936


class Receiver:
    """Unpacks what it is given."""

    def receive(self, *buckets: WeightBucket) -> tuple[float, int]:
        """Seconds, and bytes that arrived."""
        began = time.perf_counter()
        weights = unpack_weights(buckets)
        return time.perf_counter() - began, sum(weight.nbytes for weight in weights.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a tenth of the layers")
    args = options.parse_args()
    torch.set_num_threads(1)
    weights = dict(make_weights(4 if args.quick else _NUM_LAYERS))
    num_bytes = sum(weight.nbytes for weight in weights.values())
    print(f"{len(weights)} weights, {num_bytes / 1e9:.2f} GB")
    start_ray()
    receiver: Any = ray.remote(num_cpus=0)(Receiver).remote()
    ray.get(receiver.receive.remote())
    rows, held = [], None
    for _ in range(12):  # the object store touches memory of its own for the first ones
        row, held = push(weights, receiver)
        rows.append(row)
    del held
    ray.shutdown()
    copy_s = plain_copy_s(num_bytes)
    row = {part: min(seconds[part] for seconds in rows) for part in rows[0]}
    total_s = sum(row.values())
    speeds = {name: num_bytes / 1e9 / seconds for name, seconds in row.items()}
    for name, speed in {**speeds, "whole push": num_bytes / 1e9 / total_s}.items():
        print(f"{name:>12}: {speed:6.2f} GB/s")
    print(f"{'plain copy':>12}: {num_bytes / 1e9 / copy_s:6.2f} GB/s")
    result = {
        "benchmark": "weight_push",
        "quick": args.quick,
        "gigabytes": round(num_bytes / 1e9, 3),
        "gb_per_s": {name: round(speed, 3) for name, speed in speeds.items()},
        "push_gb_per_s": round(num_bytes / 1e9 / total_s, 3),
        "copy_gb_per_s": round(num_bytes / 1e9 / copy_s, 3),
        "share_of_copy": round(copy_s / total_s, 3),
        "first_share_of_copy": round(copy_s / sum(rows[0].values()), 3),
    }
    print(json.dumps(result))


def make_weights(num_layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights, layer by layer, in bfloat16."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.01, dtype=torch.bfloat16)

    yield "model.embed_tokens.weight", tensor(_VOCABULARY // (36 // num_layers), _WIDTH)
    for i in range(num_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", tensor(_WIDTH)
        yield f"{layer}.self_attn.q_proj.weight", tensor(_WIDTH, _WIDTH)
        yield f"{layer}.self_attn.k_proj.weight", tensor(_KV, _WIDTH)
        yield f"{layer}.self_attn.v_proj.weight", tensor(_KV, _WIDTH)
        yield f"{layer}.self_attn.o_proj.weight", tensor(_WIDTH, _WIDTH)
        yield f"{layer}.mlp.gate_proj.weight", tensor(_MLP, _WIDTH)
        yield f"{layer}.mlp.up_proj.weight", tensor(_MLP, _WIDTH)
        yield f"{layer}.mlp.down_proj.weight", tensor(_WIDTH, _MLP)


def plain_copy_s(num_bytes: int) -> float:
    """Seconds of numpy copying as many bytes into memory that is already there; best of three."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def push(weights: dict[str, torch.Tensor], receiver: Any) -> tuple[dict[str, float], list[Any]]:
    """Seconds of each part of one push, and the references of what was pushed."""
    began = time.perf_counter()
    refs = [ray.put(bucket) for bucket in pack_weights(weights.items())]
    put = time.perf_counter()
    seconds, _ = ray.get(receiver.receive.remote(*refs))
    return {"export": put - began, "unpack": seconds}, refs


if __name__ == "__main__":
    main()
