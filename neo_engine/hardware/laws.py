"""How long a part of an iteration takes, from a sheet and factors. Knows no torch.

A part is a launch and then the larger of what memory and what arithmetic need; where the two meet they hinder each
other, which a sum of powers describes: (m^p + c^p)^(1/p). The factors, achieved over sheet, come from
benchmarks/model/fit.py. Times in nanoseconds, bandwidths in bytes a nanosecond (GB/s), arithmetic in operations a
nanosecond (1,000 of them a TFLOP/s).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from neobench.neo_engine.config import DTYPE_BYTES, ModelShape


class Factors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gemm_memory: float
    """Of the GPU's bandwidth, reading weights."""
    gemm_compute: float
    """Of the GPU's TFLOP/s."""
    gemm_power: float
    layer_launch_ns: float
    """Of a layer's linear part in a CUDA graph, beside its work."""
    eager_layer_ns: float
    """Least time of a layer whose launches the host issues one by one; it does not depend on the GPU."""
    prefill_compute: float
    prefill_launch_ns: float
    decode_memory: float
    decode_launch_ns: float
    decode_row_ns: float
    head_row_ns: float
    """Sampling, for a GPU with the bandwidth of the one that was measured."""
    step_fixed_ns: float
    sub_batch_fixed_ns: float
    handover_ns: float
    link: float
    link_launch_ns: float
    host_memory: float
    """Of what the host's threads can read."""
    host_power: float
    host_call_ns: float
    host_row_ns: float
    """Of one row, shared out among the threads."""
    host_core_gb_per_s: dict[str, dict[str, dict[str, float]]]
    """By isa, dtype, and query heads of a KV head (1, 4, 8): KV that a core attends to when it is in its cache."""


@dataclass(frozen=True)
class Layer:
    """What one layer holds and computes on one GPU."""

    weight_bytes: float
    flops_per_row: float
    activation_bytes_per_row: float
    kv_bytes_per_token: float
    attention_flops_per_pair: float
    """Of one query with one key and its value, all heads."""


def layer_of(shape: ModelShape, dtype: str) -> Layer:
    query, key_value = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    parameters = hidden * (2 * query + 2 * key_value + 3 * inner)
    size = DTYPE_BYTES[dtype]
    return Layer(
        weight_bytes=parameters * size,
        flops_per_row=2.0 * parameters,
        # Inputs and outputs of two norms, of rope, and of the product of gate and up.
        activation_bytes_per_row=size * (8 * hidden + 2 * (query + 2 * key_value) + 3 * inner),
        kv_bytes_per_token=2.0 * key_value * size,
        attention_flops_per_pair=4.0 * query,
    )


def powered(first_ns: float, second_ns: float, power: float) -> float:
    """Between the larger of the two and their sum."""
    larger, smaller = max(first_ns, second_ns), min(first_ns, second_ns)
    return float(larger * (1.0 + (smaller / larger) ** power) ** (1.0 / power))


def gemm_ns(rows: float, layer: Layer, gb_per_s: float, tflops: float, factors: Factors) -> float:
    """Of a layer's matrix products alone."""
    memory = layer.weight_bytes / (gb_per_s * factors.gemm_memory)
    compute = rows * layer.flops_per_row / (1e3 * tflops * factors.gemm_compute)
    return factors.layer_launch_ns + powered(memory, compute, factors.gemm_power)


def linear_ns(
    rows: float, layer: Layer, gb_per_s: float, tflops: float, factors: Factors, *, eager: bool = False
) -> float:
    """Of everything in a layer outside attention. `eager`: launched by the host, not replayed as a graph."""
    moved = rows * layer.activation_bytes_per_row / (gb_per_s * factors.gemm_memory)
    time_ns = gemm_ns(rows, layer, gb_per_s, tflops, factors) + moved
    return max(time_ns, factors.eager_layer_ns) if eager else time_ns


def prefill_attention_ns(tokens: float, layer: Layer, tflops: float, factors: Factors) -> float:
    """Of one prompt: half of tokens^2 pairs, for attention is causal."""
    flops = layer.attention_flops_per_pair * tokens * tokens / 2
    return factors.prefill_launch_ns + flops / (1e3 * tflops * factors.prefill_compute)


def device_decode_ns(rows: float, context: float, layer: Layer, gb_per_s: float, factors: Factors) -> float:
    read = rows * context * layer.kv_bytes_per_token / (gb_per_s * factors.decode_memory)
    return factors.decode_launch_ns + rows * factors.decode_row_ns + read


def host_decode_ns(
    rows: float,
    context: float,
    kv_bytes_per_token: float,
    *,
    threads: int,
    read_gb_per_s: float,
    core_gb_per_s: float,
    factors: Factors,
) -> float:
    """`read_gb_per_s` of all threads together, `core_gb_per_s` of attention in one core's cache."""
    kv_bytes = rows * context * kv_bytes_per_token
    memory = kv_bytes / (read_gb_per_s * factors.host_memory)
    compute = kv_bytes / (threads * core_gb_per_s)
    overhead = factors.host_call_ns + rows * factors.host_row_ns / min(threads, rows)
    return overhead + powered(memory, compute, factors.host_power)
