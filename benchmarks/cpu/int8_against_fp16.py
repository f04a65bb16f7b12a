"""Decode tokens a second over int8 KV against fp16 KV: the two take turns call by call.

On a machine whose memory bandwidth changes from one second to the next only neighbouring calls can be compared.
Prints a line a shape and thread count; --json writes the rows. Percentiles are over pairs of calls.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from neobench import pacpu
from neobench.pacpu.bench import Point
from neobench.pacpu.bench_kernels import Kernel, Rotation, attention_kernel, fill
from neobench.pacpu.machine import l3_bytes
from neobench.pacpu.topology import choose_cpus, usable_cpus

DTYPES = ("float16", "int8")


def kernel(point: Point, pool: pacpu.WorkerPool) -> Kernel:
    memory = pacpu.KvMemory(max(point.layer_bytes, 2**29, 2 * l3_bytes(usable_cpus())), pool=pool).array
    fill(memory, point.dtype)
    return attention_kernel(point, memory, pool)


def compare(shape: str, threads: int, *, batch: int, context: int, seconds: float) -> dict[str, Any]:
    pool = pacpu.WorkerPool(threads, cpus=choose_cpus(threads))
    layers = [Rotation(kernel(Point(shape, dtype, threads, batch, context), pool)) for dtype in DTYPES]
    for one in layers:
        one.call_ns(5)
    ratios = []
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        float16_ns, int8_ns = (one.call_ns(1) for one in layers)
        ratios.append(float16_ns / int8_ns)
    pool.close()
    low, median, high = np.percentile(ratios, (25, 50, 75))
    where = {"shape": shape, "threads": threads, "batch": batch, "context": context}
    return where | {"ratio": float(median), "ratio_p25": float(low), "ratio_p75": float(high), "pairs": len(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[len(usable_cpus()) or 1])
    parser.add_argument("--shape", nargs="+", default=["mha", "gqa4"], choices=["mha", "gqa4", "gqa8"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=5.0, help="a line")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        for shape in options.shape:
            row = compare(shape, threads, batch=options.batch, context=options.context, seconds=options.seconds)
            rows.append(row)
            spread = f"{row['ratio_p25']:.2f} to {row['ratio_p75']:.2f}"
            print(f"{shape:5} {threads:2} threads: int8 / fp16 = {row['ratio']:.2f} ({spread}, {row['pairs']} pairs)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
