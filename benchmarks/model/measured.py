"""The measurements that the factors are fitted on, each as what was done and how long it took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neobench.neo_engine.config import NAMED_SHAPES, ModelShape
from neobench.neo_engine.cost_model import PROFILE_SCHEMA, Profile
from neobench.neo_engine.hardware.catalogue import shipped
from neobench.neo_engine.hardware.laws import Factors, Layer, gemm_ns, layer_of, linear_ns

PUBLISHED = Path("results/published")
GQA_SHAPES = {"mha": (32, 32), "gqa4": (32, 8), "gqa8": (64, 8)}
HEAD_DIM = 128
WHOLE_SMS = 132
AVX2_FRACTION = 0.75
"""Of AVX-512's rate where arithmetic binds (64/8 heads), as seen once on a Zen 4 that was busy: an assumption."""


@dataclass(frozen=True)
class Gemm:
    """A layer's matrix products, or all of its linear part (`whole_layer`), in a CUDA graph or back to back."""

    kind: str
    rows: int
    layer: Layer
    gb_per_s: float
    tflops: float
    time_ns: float
    whole_layer: bool

    def predicted_ns(self, factors: Factors) -> float:
        law = linear_ns if self.whole_layer else gemm_ns
        return law(self.rows, self.layer, self.gb_per_s, self.tflops, factors)


@dataclass(frozen=True)
class HostCall:
    kind: str
    rows: int
    context: int
    kv_bytes_per_token: float
    threads: int
    read_gb_per_s: float
    isa: str
    dtype: str
    gqa: int
    time_ns: float


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def profiles(patterns: list[str]) -> Iterator[tuple[Path, Profile, ModelShape]]:
    """CUDA profiles of models with a name; those of the emulated device say nothing of a GPU."""
    for pattern in patterns:
        for path in sorted(Path().glob(pattern)):
            if _read(path).get("schema") != PROFILE_SCHEMA:
                continue
            profile = Profile.load(path)
            if profile.key.get("executor") == "cuda":
                yield path, profile, _shape(profile.key["shape"])


def _shape(raw: dict[str, Any]) -> ModelShape:
    sizes = ("num_layers", "hidden_size", "intermediate_size", "num_kv_heads", "vocab_size")
    return next(shape for shape in NAMED_SHAPES.values() if all(getattr(shape, name) == raw[name] for name in sizes))


def gemms() -> Iterator[Gemm]:
    """Whole and restricted H200. A restricted one has its SMs' share of the sheet's TFLOP/s, and of the sheet's
    bandwidth what its copies are of the whole card's copies.
    """
    gpu = shipped().sheets.gpus["h200"]
    raw = _read(PUBLISHED / "model/linear-by-sms.json")
    for series in raw["linear"]:
        sms = series["sms"]
        share = raw["copy_gb_per_s"][str(sms)] / raw["copy_gb_per_s"][str(WHOLE_SMS)]
        layer = layer_of(NAMED_SHAPES[series["shape"]], "float16")
        for rows, time_us in series["us_by_rows"].items():
            tflops = gpu.fp16_tflops * sms / WHOLE_SMS
            kind = f"GEMM, {sms} SMs" if sms < WHOLE_SMS else "GEMM, whole H200"
            yield Gemm(kind, int(rows), layer, gpu.bandwidth_gb_per_s * share, tflops, time_us * 1e3, False)
    names = {"7b": "llama-2-7b", "8b": "llama-3.1-8b", "70b": "llama-3.1-70b"}
    for point in _read(PUBLISHED / "h200/kernel-choices.json")["gemm"]:
        layer = layer_of(NAMED_SHAPES[names[point["shape"]]], "float16")
        time_ns = 1e3 * min(point["us_a_layer_inputs_by_outputs"], point["us_a_layer_transposed"])
        yield Gemm("GEMM, whole H200", point["rows"], layer, gpu.bandwidth_gb_per_s, gpu.fp16_tflops, time_ns, False)


def _bench_cpu_rows() -> Iterator[dict[str, Any]]:
    for path in sorted((PUBLISHED / "cpu-attention").glob("*.json")):
        raw = _read(path)
        if isinstance(raw, dict) and raw.get("schema") == "neobench/bench-cpu/v1":
            yield from raw["rows"]


def host_calls() -> Iterator[HostCall]:
    """Of two machines, each beside the reads that were measured around it."""
    isas = {"amx_bf16": "amx", "avx512_bf16": "avx512_bf16"}
    for row in _bench_cpu_rows():
        if row["kernel"] in isas:
            query_heads, kv_heads = GQA_SHAPES[row["shape"]]
            size = 1 + 4 / HEAD_DIM if row["dtype"] == "int8" else 2
            kv_bytes_per_token = 2 * kv_heads * HEAD_DIM * size
            kv_bytes = row["batch"] * row["context"] * kv_bytes_per_token
            isa = isas[row["kernel"]]
            yield HostCall(
                f"host attention, {'H200 host' if isa == 'amx' else 'two cores'}",
                row["batch"],
                row["context"],
                kv_bytes_per_token,
                row["threads"],
                row["read_gbps"],
                isa,
                row["dtype"],
                query_heads // kv_heads,
                kv_bytes / row["gbps"],
            )


def in_cache_rates() -> dict[str, dict[str, dict[str, float]]]:
    """GB/s of one thread whose KV is in its cache, by isa, dtype and query heads of a KV head; medians."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in _bench_cpu_rows():
        kernel, _, where = row["kernel"].partition(" ")
        if where == "in_cache" and row["threads"] == 1:
            query_heads, kv_heads = GQA_SHAPES[row["shape"]]
            found.setdefault((kernel, row["dtype"], str(query_heads // kv_heads)), []).append(row["gbps"])
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for (kernel, dtype, gqa), values in found.items():
        rates.setdefault(kernel, {}).setdefault(dtype, {})[gqa] = round(statistics.median(values), 2)
    amx, avx512_bf16 = rates["amx_bf16"], rates["avx512_bf16"]
    ispc = avx512_bf16["float16"]
    # float16 is ISPC's everywhere (docs/kernels.md), and bfloat16 costs it as much, as both are converted to float32.
    # int8 is assumed to take ISPC as long a token, so half the bytes.
    avx512 = {"float16": ispc, "bfloat16": ispc, "int8": _scaled(ispc, 0.5)}
    return {
        "amx": {**avx512_bf16, "bfloat16": amx["bfloat16"]},
        "avx512_bf16": avx512_bf16,
        "avx512": avx512,
        "avx2": {dtype: _scaled(by_gqa, AVX2_FRACTION) for dtype, by_gqa in avx512.items()},
    }


def _scaled(by_gqa: dict[str, float], factor: float) -> dict[str, float]:
    return {gqa: round(rate * factor, 2) for gqa, rate in by_gqa.items()}
