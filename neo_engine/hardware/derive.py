"""Cost tables of a machine nobody has measured, from its sheets and the factors. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from neobench.neo_engine.config import DTYPE_BYTES, USABLE_MEMORY_FRACTION, ConfigError, EngineConfig, ModelShape
from neobench.neo_engine.cost_model import CostTables, Curve, Raggedness, Surface
from neobench.neo_engine.hardware.catalogue import Machine
from neobench.neo_engine.hardware.host_memory import read_gb_per_s
from neobench.neo_engine.hardware.laws import (
    Factors,
    Layer,
    device_decode_ns,
    host_decode_ns,
    layer_of,
    linear_ns,
    prefill_attention_ns,
)
from neobench.neo_engine.hardware.schema import BandwidthLevel, Host, Isa

GRAPH_ROWS = EngineConfig.max_batch_rows
"""Steps of no more rows are replayed as CUDA graphs; others are launched by the host."""
HOST_MEMORY_FRACTION = 0.8
"""Of a host's memory for KV: the rest is the system's and the engine's."""
CONTEXT_BYTES = 2**29
"""What CUDA and its libraries hold on a GPU: an assumption."""

_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, GRAPH_ROWS, GRAPH_ROWS + 1, 384, 512, 768, 1024, 2048, 4096, 16384)
_PROMPTS = (1, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536, 131072)
_DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONTEXTS = (1, 128, 512, 1024, 4096, 16384, 131072)
_REQUESTS = (1, 16, 64, 256, 1024)
_MOVED = (1, 8, 64, 512, 4096)
_GQA = (1, 4, 8)


@cache
def fitted_factors() -> Factors:
    text = resources.files("neobench.neo_engine.hardware").joinpath("data", "factors.json").read_text()
    factors: Factors = msgspec.convert(msgspec.json.decode(text)["factors"], Factors)
    return factors


@dataclass(frozen=True)
class KvRoom:
    """On the GPUs. Each of several holds its share of every block."""

    device_blocks: int
    weight_bytes: int
    """On each GPU."""
    step_bytes: int
    """On each GPU: the largest step's activations and logits, and what CUDA holds."""


def tables_for(
    machine: Machine,
    shape: ModelShape,
    dtype: str,
    *,
    shard: ModelShape | None = None,
    block_bytes: int | None = None,
    host_kv_dtype: str = "same",
    host_threads: int | None = None,
    host_bandwidth: BandwidthLevel = "typical",
    factors: Factors | None = None,
) -> CostTables:
    """Tables of a layer on the machine, without the all-reduces of several GPUs.

    `shard` is what each GPU has of the model (default: all of it); `block_bytes` is of a KV block in all layers and
    heads (default: of 16 tokens). `host_threads` defaults to all cores but one, which drives the GPU.
    """
    factors = factors or fitted_factors()
    shard = shard or shape
    gpu, layer = machine.gpu, layer_of(shard, dtype)
    threads = host_threads or max(1, machine.host.cores - 1)
    per_token = 2.0 * shape.num_kv_heads * shape.head_dim * _host_element_bytes(dtype, host_kv_dtype, shape.head_dim)
    block_bytes = block_bytes or round(16 * shape.num_layers * layer_of(shape, dtype).kv_bytes_per_token)

    def host(rows: int, context: int) -> float:
        return host_decode_ns(
            rows,
            context,
            per_token,
            threads=threads,
            read_gb_per_s=read_gb_per_s(machine.host, threads, host_bandwidth),
            core_gb_per_s=core_gb_per_s(machine.host.isa, dtype if host_kv_dtype == "same" else "int8", shape, factors),
            factors=factors,
        )

    head_bytes = shard.vocab_size * shard.hidden_size * DTYPE_BYTES[dtype] * shard.num_query_heads
    head_ns = head_bytes / shape.num_query_heads / (gpu.bandwidth_gb_per_s * factors.gemm_memory)
    link = machine.link_gb_per_s * machine.num_gpus * factors.link
    sheet = (layer, gpu.bandwidth_gb_per_s, gpu.fp16_tflops, factors)
    return CostTables(
        linear=Curve(_ROWS, tuple(linear_ns(rows, *sheet, eager=rows > GRAPH_ROWS) for rows in _ROWS)),
        prefill_attention=Curve(
            _PROMPTS, tuple(prefill_attention_ns(tokens, layer, gpu.fp16_tflops, factors) for tokens in _PROMPTS)
        ),
        device_decode=_surface(
            [
                [device_decode_ns(rows, context, layer, gpu.bandwidth_gb_per_s, factors) for context in _CONTEXTS]
                for rows in _DECODE_ROWS
            ]
        ),
        host_decode=_surface([[host(rows, context) for context in _CONTEXTS] for rows in _DECODE_ROWS]),
        head=Curve(_REQUESTS, tuple(head_ns + requests * factors.head_row_ns for requests in _REQUESTS)),
        move=Curve(_MOVED, tuple(factors.link_launch_ns + blocks * block_bytes / link for blocks in _MOVED)),
        step_fixed_ns=factors.step_fixed_ns,
        sub_batch_fixed_ns=factors.sub_batch_fixed_ns,
        raggedness=Raggedness(several_prompts=_several_prompts(layer, gpu.fp16_tflops, factors)),
        handover_ns=factors.handover_ns,
    )


def _surface(lines: Sequence[Sequence[float]]) -> Surface:
    return Surface(_DECODE_ROWS, _CONTEXTS, tuple(tuple(line) for line in lines))


def _several_prompts(layer: Layer, tflops: float, factors: Factors) -> float:
    """Prompts of one step share a launch: four of the mean length that `neobench profile` takes, over four alone."""
    tokens = EngineConfig.max_batch_tokens / 4
    alone = prefill_attention_ns(tokens, layer, tflops, factors)
    return 1.0 - 3 * factors.prefill_launch_ns / (4 * alone)


def _host_element_bytes(dtype: str, host_kv_dtype: str, head_dim: int) -> float:
    """int8 has a float32 scale for each token's K and V of a head."""
    return 1.0 + 4.0 / head_dim if host_kv_dtype == "int8" else float(DTYPE_BYTES[dtype])


def core_gb_per_s(isa: Isa, dtype: str, shape: ModelShape, factors: Factors) -> float:
    """Of attention in a core's cache. Query heads of a KV head between the measured 1, 4 and 8 count as the next."""
    by_gqa = factors.host_core_gb_per_s[isa][dtype if dtype in ("bfloat16", "int8") else "float16"]
    heads = shape.num_query_heads // shape.num_kv_heads
    measured = next((gqa for gqa in _GQA if gqa >= heads), _GQA[-1])
    return by_gqa[str(measured)] * min(1.0, measured / heads)


def kv_room(machine: Machine, shard: ModelShape, config: EngineConfig) -> KvRoom:
    """What is left for KV beside weights and the largest step, by the rule of `kv_sizing` without running it.

    Raises ConfigError when the weights leave nothing.
    """
    size = DTYPE_BYTES[config.dtype]
    weight_bytes = shard.num_parameters * size
    per_row = size * (4 * shard.hidden_size + 2 * shard.num_query_heads * shard.head_dim + 3 * shard.intermediate_size)
    step_bytes = CONTEXT_BYTES + config.max_batch_tokens * per_row + config.max_batch_rows * shard.vocab_size * 12
    usable = int(USABLE_MEMORY_FRACTION * machine.gpu.memory_mib * 2**20) - weight_bytes - step_bytes
    blocks = usable * machine.num_gpus // config.block_bytes(config.device_layout)
    if blocks < 1:
        raise ConfigError(
            f"{config.shape.name} in {config.dtype} does not fit {machine.name}: its weights take "
            f"{weight_bytes / 2**30:.1f} GiB and the largest step {step_bytes / 2**30:.1f} GiB of "
            f"{USABLE_MEMORY_FRACTION:g} x {machine.gpu.memory_mib / 1024:.1f} GiB of each GPU. Choose a machine with "
            "more memory or more GPUs, or say with --device-blocks how many blocks to assume"
        )
    return KvRoom(blocks, weight_bytes, step_bytes)


def kv_memory_bytes(host: Host) -> int:
    return int(HOST_MEMORY_FRACTION * host.memory_gib * 2**30)


def assumptions(machine: Machine, host_bandwidth: BandwidthLevel, host_threads: int | None = None) -> dict[str, Any]:
    """For run.json: the sheets, and what was assumed. Raises ConfigError for more threads than the host has cores."""
    threads = host_threads or max(1, machine.host.cores - 1)
    if threads > machine.host.cores:
        raise ConfigError(f"{machine.name} has {machine.host.cores} cores, fewer than {threads} host threads")
    return {
        "gpu": msgspec.to_builtins(machine.gpu),
        "num_gpus": machine.num_gpus,
        "host": msgspec.to_builtins(machine.host),
        "price_usd_per_h": machine.price_usd_per_h,
        "host_threads": threads,
        "host_bandwidth": host_bandwidth,
        "host_read_gb_per_s": read_gb_per_s(machine.host, threads, host_bandwidth),
        "profile": str(machine.profile_path) if machine.profile_path else None,
    }
