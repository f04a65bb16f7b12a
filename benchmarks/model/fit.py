"""Fits the efficiency factors of modelled machines, and writes them with their errors.

python -m benchmarks.model.fit                              # the published measurements
python -m benchmarks.model.fit --profiles 'my/*.json'       # and profiles of a GPU that the catalogue has

Only measurements of neobench's own machines go in. Each law has few factors, found by coordinate descent on the mean
absolute logarithm of predicted over measured, so that one bad point does not decide.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.model.measured import PUBLISHED, Gemm, HostCall, gemms, host_calls, in_cache_rates, profiles
from neobench.neo_engine.config import ModelShape
from neobench.neo_engine.cost_model import Profile
from neobench.neo_engine.hardware.catalogue import Machine, shipped
from neobench.neo_engine.hardware.derive import GRAPH_ROWS, tables_for
from neobench.neo_engine.hardware.host_memory import read_gb_per_s
from neobench.neo_engine.hardware.laws import (
    Factors,
    device_decode_ns,
    host_decode_ns,
    layer_of,
    prefill_attention_ns,
)

OUT = Path("neo_engine/hardware/data/factors.json")
PROFILES = str(PUBLISHED / "model/*.json")
FIRST = Factors(
    gemm_memory=0.85,
    gemm_compute=0.75,
    gemm_power=4.0,
    layer_launch_ns=20_000,
    eager_layer_ns=0,
    prefill_compute=0.3,
    prefill_launch_ns=60_000,
    decode_memory=0.75,
    decode_launch_ns=12_000,
    decode_row_ns=80,
    head_row_ns=1_000,
    step_fixed_ns=0,
    sub_batch_fixed_ns=0,
    handover_ns=0,
    link=0.8,
    link_launch_ns=20_000,
    host_memory=0.9,
    host_power=3.0,
    host_call_ns=8_000,
    host_row_ns=1_000,
    host_core_gb_per_s={},
)

Point = tuple[str, float, Callable[[Factors], float]]
Points = Sequence[Point]
"""Kind, measured nanoseconds, and the law."""


def fitted(factors: Factors, names: Sequence[str], points: Points) -> Factors:
    """With the named factors moved to where the mean absolute log ratio is least; the others stay."""
    best, step = _loss(factors, points), 0.5
    while step > 0.002:
        improved = False
        for name in names:
            for scale in (1 + step, 1 / (1 + step)):
                trial = msgspec.structs.replace(factors, **{name: getattr(factors, name) * scale})
                loss = _loss(trial, points)
                if loss < best - 1e-9:
                    factors, best, improved = trial, loss, True
        if not improved:
            step /= 2
    return msgspec.structs.replace(factors, **{name: float(f"{getattr(factors, name):.4g}") for name in names})


def _loss(factors: Factors, points: Points) -> float:
    return statistics.fmean(abs(math.log(law(factors) / measured)) for _, measured, law in points)


def errors(factors: Factors, points: Points) -> dict[str, dict[str, float]]:
    """By kind: points, median and worst of |predicted / measured - 1|, and the median of predicted / measured - 1."""
    signed: dict[str, list[float]] = {}
    for kind, measured, law in points:
        signed.setdefault(kind, []).append(law(factors) / measured - 1)
    return {
        kind: {
            "points": len(values),
            "median": round(statistics.median(map(abs, values)), 3),
            "worst": round(max(map(abs, values)), 3),
            "bias": round(statistics.median(values), 3),
        }
        for kind, values in signed.items()
    }


def gemm_points(points: Iterable[Gemm]) -> Points:
    return [(point.kind, point.time_ns, point.predicted_ns) for point in points]


def host_points(calls: Iterable[HostCall]) -> Points:
    def law(call: HostCall) -> Callable[[Factors], float]:
        return lambda factors: host_decode_ns(
            call.rows,
            call.context,
            call.kv_bytes_per_token,
            threads=call.threads,
            read_gb_per_s=call.read_gb_per_s,
            core_gb_per_s=factors.host_core_gb_per_s[call.isa][call.dtype][str(call.gqa)],
            factors=factors,
        )

    return [(call.kind, call.time_ns, law(call)) for call in calls]


def prefill_points(profile: Profile, shape: ModelShape, machine: Machine) -> Points:
    layer, curve = layer_of(shape, profile.key["dtype"]), profile.tables.prefill_attention

    def law(tokens: int) -> Callable[[Factors], float]:
        return lambda factors: prefill_attention_ns(tokens, layer, machine.gpu.fp16_tflops, factors)

    return [
        ("prefill attention", time_ns, law(tokens)) for tokens, time_ns in zip(curve.sizes, curve.times_ns, strict=True)
    ]


def decode_points(profile: Profile, shape: ModelShape, machine: Machine) -> Points:
    layer, surface = layer_of(shape, profile.key["dtype"]), profile.tables.device_decode

    def law(rows: int, context: int) -> Callable[[Factors], float]:
        return lambda factors: device_decode_ns(rows, context, layer, machine.gpu.bandwidth_gb_per_s, factors)

    return [
        ("decode attention", time_ns, law(rows, context))
        for rows, line in zip(surface.rows, surface.times_ns, strict=True)
        for context, time_ns in zip(surface.contexts, line, strict=True)
    ]


def linear_points(profile: Profile, shape: ModelShape, machine: Machine) -> Points:
    """All of a layer outside attention, where it is replayed as a graph or takes the GPU longer than the launches."""
    layer, curve = layer_of(shape, profile.key["dtype"]), profile.tables.linear
    gpu = machine.gpu
    return gemm_points(
        Gemm("linear layer, whole H200", rows, layer, gpu.bandwidth_gb_per_s, gpu.fp16_tflops, time_ns, True)
        for rows, time_ns in zip(curve.sizes, curve.times_ns, strict=True)
        if rows <= GRAPH_ROWS or time_ns > 1.2 * _eager_layer_ns(profile)
    )


def _eager_layer_ns(profile: Profile) -> float:
    curve = profile.tables.linear
    return min(t for rows, t in zip(curve.sizes, curve.times_ns, strict=True) if rows > GRAPH_ROWS)


def read_off(factors: Factors, profile: Profile, shape: ModelShape, machine: Machine) -> Factors:
    """What one profile says by itself: two ends of a line give its slope and start."""
    head, move = profile.tables.head, profile.tables.move
    block_bytes = 16 * shape.num_layers * layer_of(shape, profile.key["dtype"]).kv_bytes_per_token
    ns_per_block = (move.times_ns[-1] - move.times_ns[0]) / (move.sizes[-1] - move.sizes[0])
    return msgspec.structs.replace(
        factors,
        eager_layer_ns=round(_eager_layer_ns(profile)),
        head_row_ns=round((head.times_ns[-1] - head.times_ns[0]) / (head.sizes[-1] - head.sizes[0])),
        link=round(block_bytes / ns_per_block / machine.link_gb_per_s, 4),
        link_launch_ns=round(max(0.0, move.times_ns[0] - ns_per_block)),
        handover_ns=round(profile.tables.handover_ns),
        sub_batch_fixed_ns=round(profile.tables.sub_batch_fixed_ns),
    )


def single_stream_step_ns() -> float:
    """A decode step of one request in a run. The fixed part is what it takes beside its stages; that of the profile
    itself is of steps that wait for each stage, while steps of a run are queued ahead.
    """
    run = json.loads((PUBLISHED / "h200/runs/2-single-chunked_prefill-1.json").read_text())
    steps = run["raw"]["steps"]
    decodes = [t for t, p in zip(steps["measured_ns"], steps["prefill_tokens"], strict=True) if not p]
    return float(statistics.median(decodes))


def fit(patterns: list[str]) -> tuple[Factors, dict[str, Any], list[str]]:
    machine = shipped().machine("h200-vm-16")
    found = list(profiles(patterns))
    linear: list[Point] = []
    prefill: list[Point] = []
    decode: list[Point] = []
    for _, profile, shape in found:
        linear += linear_points(profile, shape, machine)
        prefill += prefill_points(profile, shape, machine)
        decode += decode_points(profile, shape, machine)
    factors = msgspec.structs.replace(FIRST, host_core_gb_per_s=in_cache_rates())
    products = [*gemm_points(gemms()), *linear]
    factors = fitted(factors, ["gemm_memory", "gemm_compute", "gemm_power", "layer_launch_ns"], products)
    factors = fitted(factors, ["prefill_compute", "prefill_launch_ns"], prefill)
    factors = fitted(factors, ["decode_memory", "decode_launch_ns", "decode_row_ns"], decode)
    calls = list(host_calls())
    for _, profile, shape in found:
        calls += host_profile_calls(profile, shape, machine)
    host = host_points(calls)
    factors = fitted(factors, ["host_memory", "host_power", "host_call_ns", "host_row_ns"], host)
    for _, profile, shape in found:
        factors = read_off(factors, profile, shape, machine)
    _, profile, shape = found[-1]
    stages = tables_for(machine, shape, profile.key["dtype"], factors=factors)
    of_stages = shape.num_layers * (stages.linear(1) + stages.device_decode(1, 200)) + stages.head(1)
    factors = msgspec.structs.replace(factors, step_fixed_ns=round(max(0.0, single_stream_step_ns() - of_stages)))
    return factors, errors(factors, [*products, *prefill, *decode, *host]), [str(path) for path, *_ in found]


def host_profile_calls(profile: Profile, shape: ModelShape, machine: Machine) -> Iterable[HostCall]:
    """A profile does not say what the host could read that day: what is typical of its kind stands for it."""
    surface, threads, dtype = profile.tables.host_decode, profile.key["host_threads"], profile.key["dtype"]
    for rows, line in zip(surface.rows, surface.times_ns, strict=True):
        for context, time_ns in zip(surface.contexts, line, strict=True):
            yield HostCall(
                kind="host attention, in the engine",
                rows=rows,
                context=context,
                kv_bytes_per_token=layer_of(shape, dtype).kv_bytes_per_token,
                threads=threads,
                read_gb_per_s=read_gb_per_s(machine.host, threads, "typical"),
                isa=machine.host.isa,
                dtype=dtype,
                gqa=shape.num_query_heads // shape.num_kv_heads,
                time_ns=time_ns,
            )


def written(factors: Factors, found: Mapping[str, Any], sources: Sequence[str]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    body = {
        "provenance": {
            "command": ["python", "-m", "benchmarks.model.fit", *sys.argv[1:]],
            "commit": commit,
            "measurements": [
                *sources,
                "results/published/model/linear-by-sms.json",
                "results/published/h200/kernel-choices.json",
                "results/published/h200/runs/2-single-chunked_prefill-1.json",
                "results/published/cpu-attention/*.json",
            ],
        },
        "factors": msgspec.to_builtins(factors),
        "errors": found,
    }
    OUT.write_text(json.dumps(body, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", action="append", help="pattern of files of `neobench profile`; repeatable")
    arguments = parser.parse_args()
    factors, found, sources = fit([PROFILES, *(arguments.profiles or [])])
    written(factors, found, sources)
    for name, value in msgspec.to_builtins(factors).items():
        if name != "host_core_gb_per_s":
            sys.stdout.write(f"{name:<22}{value:>12g}\n")
    sys.stdout.write(f"\n{'kind':<46}{'points':>7}{'median':>8}{'worst':>8}{'bias':>8}\n")
    for kind, error in found.items():
        sys.stdout.write(
            f"{kind:<46}{error['points']:>7}{error['median']:>8.1%}{error['worst']:>8.1%}{error['bias']:>+8.1%}\n"
        )


if __name__ == "__main__":
    main()
