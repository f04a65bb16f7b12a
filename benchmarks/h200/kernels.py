"""Times the device's kernels on a CUDA machine, each beside a peer in the same run.

python benchmarks/h200/kernels.py --out kernels.json

Decode attention: K and V read per second, as a share of a device copy's bytes (read and written), beside torch's
scaled_dot_product_attention over contiguous K and V of the same lengths. The small steps: beside torch, eager.
Every launch of a sample reads another layer, together far more than the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
import triton

from neobench.neo_engine.kernels import fused, reference
from neobench.neo_engine.kernels.decode_attention import DecodeAttention
from neobench.neo_engine.kv_cache.layout import KvLayout

HEADS = {"8b": (32, 8), "70b": (64, 8), "7b": (32, 32)}
HIDDEN = {"8b": (4096, 14336), "70b": (8192, 28672), "7b": (4096, 11008)}
HEAD_DIM = 128
ROWS = (1, 16, 64, 256)
CONTEXTS = (750, 2000)
STEP_ROWS = (16, 256, 4096)
BLOCK_SIZE = 16
SAMPLE_BYTES = 2**30  # read by one sample at least, so that nothing stays in a cache
SAMPLES = 20

Launch = Callable[[], Any]


def graph_us(launches: Sequence[Launch]) -> float:
    """Median time of one launch, of several captured in one CUDA graph."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(SAMPLES):
        start, end = _event(), _event()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) * 1e3 / len(launches))
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copy_gbps() -> float:
    """Of a copy within the device, bytes read and bytes written."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_us([lambda: target.copy_(source)]) / 1e3


def attention_case(model: str, dtype: torch.dtype, rows: int, context: int) -> dict[str, Any]:
    """Kernel and peer over the same memory, which holds the same number of tokens either way."""
    query_heads, kv_heads = HEADS[model]
    layout = KvLayout(str(dtype).removeprefix("torch."), HEAD_DIM, BLOCK_SIZE)
    row_blocks = -(-context // BLOCK_SIZE)
    token_bytes = 2 * kv_heads * HEAD_DIM * dtype.itemsize
    layers = max(2, -(-SAMPLE_BYTES // (rows * context * token_bytes)))
    kv = torch.empty(rows * row_blocks, layers, kv_heads, layout.piece_bytes, dtype=torch.uint8, device="cuda")
    kv.view(dtype).normal_()
    query = torch.randn(rows, query_heads, HEAD_DIM, device="cuda").to(dtype)
    tables = torch.randperm(rows * row_blocks, device="cuda").int().view(rows, row_blocks)
    contexts = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    attention = DecodeAttention(layout, num_query_heads=query_heads, num_kv_heads=kv_heads, device=torch.device("cuda"))
    out = torch.empty_like(query)

    def paged(layer: int) -> Launch:
        return lambda: attention(
            query, kv, layer=layer, block_tables=tables, context_lens=contexts, max_context=context, out=out
        )

    contiguous = kv.view(dtype).flatten()[: layers * rows * context * token_bytes // dtype.itemsize]
    tokens = contiguous.view(layers, 2, rows, kv_heads, context, HEAD_DIM)

    def peer(layer: int) -> Launch:
        key, value = tokens[layer]
        grouped = query_heads != kv_heads
        return lambda: functional.scaled_dot_product_attention(query[:, :, None], key, value, enable_gqa=grouped)

    kernel_us = graph_us([paged(layer) for layer in range(layers)])
    peer_us = graph_us([peer(layer) for layer in range(layers)])
    read_gb = rows * context * token_bytes / 1e9
    return {
        "model": model, "dtype": layout.dtype, "rows": rows, "context": context, "layers": layers,
        "kernel_us": kernel_us, "kernel_gbps": read_gb / kernel_us * 1e6,
        "peer_us": peer_us, "peer_gbps": read_gb / peer_us * 1e6,
    }  # fmt: skip


def step_cases(model: str, dtype: torch.dtype, rows: int) -> list[dict[str, Any]]:
    """Each small step beside the torch operations that it replaces; triton's do_bench empties the L2 cache between."""
    hidden, intermediate = HIDDEN[model]
    query_heads, kv_heads = HEADS[model]
    layout = KvLayout(str(dtype).removeprefix("torch."), HEAD_DIM, BLOCK_SIZE)
    x, delta = torch.randn(2, rows, hidden, device="cuda").to(dtype)
    weight = torch.ones(hidden, dtype=dtype, device="cuda")
    gate_up = torch.randn(rows, 2 * intermediate, device="cuda").to(dtype)
    heads = torch.randn(rows, query_heads + 2 * kv_heads, HEAD_DIM, device="cuda").to(dtype)
    table = torch.ones(4096, 2, HEAD_DIM, dtype=dtype, device="cuda")
    num_blocks = -(-rows // BLOCK_SIZE)
    kv = torch.zeros(num_blocks, 2, kv_heads, layout.piece_bytes, dtype=torch.uint8, device="cuda")
    positions = torch.randint(0, 4096, (rows,), device="cuda")
    slots = torch.randperm(num_blocks * BLOCK_SIZE, device="cuda")[:rows]
    stored: dict[str, Any] = {"table": table, "kv": kv, "layout": layout, "layer": 1, "slots": slots}

    def eager_norm() -> torch.Tensor:
        return functional.rms_norm(x.add_(delta), (hidden,), weight, 1e-5)

    def eager_silu() -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    pairs: dict[str, tuple[Launch, Launch]] = {
        "add_rms_norm": (lambda: fused.add_rms_norm_(x, delta, weight=weight, eps=1e-5), eager_norm),
        "silu_mul": (lambda: fused.silu_mul(gate_up), eager_silu),
        "rotate_and_store": (
            lambda: fused.rotate_and_store_(heads, positions, **stored),
            lambda: reference.rotate_and_store_(heads, positions, **stored),
        ),
    }
    delta.zero_()  # x must not grow from launch to launch
    cases = []
    for step, (kernel, eager) in pairs.items():
        kernel_us, peer_us = (1e3 * triton.testing.do_bench(launch, return_mode="median") for launch in (kernel, eager))
        cases.append({"step": step, "model": model, "dtype": layout.dtype, "rows": rows,
                      "kernel_us": kernel_us, "peer_us": peer_us})  # fmt: skip
    return cases


def table_lines(report: dict[str, Any]) -> list[str]:
    copy = report["copy_gbps"]
    lines = [
        f"{report['device']}, torch {report['torch']}, triton {report['triton']}; device copy {copy:.0f} GB/s",
        f"{'decode attention':<22}{'rows':>6}{'context':>9}{'us':>9}{'GB/s':>8}{'of copy':>9}{'torch us':>10}{'x':>7}",
    ]
    for case in report["decode_attention"]:
        lines.append(
            f"{case['model'] + ' ' + case['dtype']:<22}{case['rows']:>6}{case['context']:>9}{case['kernel_us']:>9.1f}"
            f"{case['kernel_gbps']:>8.0f}{case['kernel_gbps'] / copy:>9.0%}{case['peer_us']:>10.1f}"
            f"{case['peer_us'] / case['kernel_us']:>7.2f}"
        )
    lines.append(f"{'step':<35}{'rows':>6}{'us':>9}{'torch us':>10}{'x':>7}")
    for case in report["steps"]:
        name = f"{case['step']} {case['model']} {case['dtype']}"
        lines.append(
            f"{name:<35}{case['rows']:>6}{case['kernel_us']:>9.1f}{case['peer_us']:>10.1f}"
            f"{case['peer_us'] / case['kernel_us']:>7.2f}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--model", choices=tuple(HEADS), nargs="+", default=list(HEADS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 1
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "copy_gbps": copy_gbps(),
        "decode_attention": [],
        "steps": [],
    }
    for dtype in (getattr(torch, name) for name in options.dtype):
        for model in options.model:
            for rows in ROWS:
                for context in CONTEXTS:
                    report["decode_attention"].append(attention_case(model, dtype, rows, context))
                    torch.cuda.empty_cache()
            for rows in STEP_ROWS:
                report["steps"] += step_cases(model, dtype, rows)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(table_lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
