"""What is measured in each case, and what must hold: jobs and comparisons, as data.

Two scales. "full" is the published measurement. "tiny" runs the same code on shapes and requests that a laptop's CPU
manages: it shows that everything works and says nothing about speed, so only correctness is judged there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.h200.jobs import Job
from benchmarks.h200.table import Comparison

Scale = Literal["full", "tiny"]
Device = Literal["cuda", "cpu"]

CASES = ("1", "2", "3", "4a", "4b", "5", "6")
POLICIES = ("gpu_only", "chunked_prefill", "full_offload", "asymmetric_pipeline")
NEO, CHUNKED, PLAIN = "asymmetric_pipeline", "chunked_prefill", "gpu_only"
OUTPUT_LENGTHS = (50, 100, 200, 300, 400)
HOST_TOKENS = (832, 1664, 3328)
"""KV that case 3's host holds beside all that fits: what hiding more of its time costs."""
HOST_THREADS = (2, 4, 8, 16)
BLOCK_SIZE = 16
GIB = 2**30
TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 1e-4}
"""Of logits against transformers' in float32: what 16 bits can do after four layers."""
_TIMELINE_METRICS = ("device_idle_fraction", "device_gap_fraction")
"""From a trace of a GPU: a CPU has none."""


@dataclass(frozen=True)
class Setting:
    """Model, memory and traffic of a case. `chunk_tokens` is the token budget of an iteration."""

    model: str
    dtype: str
    device_tokens: int
    host_bytes: int
    workload: str
    num_requests: int
    chunk_tokens: int = 2048
    neo_chunk_tokens: int | None = None
    """NEO's, where another budget suits it: a prompt hides host attention while it lasts."""
    limit_s: float = 540.0
    memory_fraction: float = 0.9
    """vLLM's gpu_memory_utilization: of the GPU's memory, or on a CPU of the machine's."""
    max_model_tokens: int = 2048
    num_warmup: int = 16
    timeline_requests: int = 0
    """The first so many are replayed under a profiler after a run of NEO on a GPU."""


_CASE_2 = Setting("llama-3.1-8b", "bfloat16", 400_000, GIB, "synthetic:1000,200", 256)
_CASE_4 = Setting(
    "llama-3.1-70b",
    "bfloat16",
    13_296,
    24 * GIB,
    "exact:500,500",
    48,
    chunk_tokens=512,
    memory_fraction=0.985,
    timeline_requests=32,
)

FULL: Mapping[str, Setting] = {
    "2": _CASE_2,
    "2-single": Setting("llama-3.1-8b", "bfloat16", 4096, GIB, "exact:128,128", 1),
    "3": Setting(
        "llama-2-7b",
        "float16",
        864,
        24 * GIB,
        "carperai",
        100,
        chunk_tokens=512,
        neo_chunk_tokens=2048,
        max_model_tokens=832,
        timeline_requests=100,
    ),
    # 17 rows of 750 tokens fill 799 of the 831 blocks.
    "4a": Setting("llama-3.1-70b", "bfloat16", 13_296, 24 * GIB, "exact:750,1", 17),
    "4b-500-500": _CASE_4,
    "4b-1000-200": replace(_CASE_4, workload="exact:1000,200", timeline_requests=0),
    "5": replace(_CASE_2, host_bytes=24 * GIB),
    **{
        f"6-out{output}": Setting(
            "llama-3.1-8b",
            "bfloat16",
            26_400,
            12 * GIB,
            f"synthetic:1000,{output}",
            # About twice what the device holds. A prompt takes a third of a second there.
            48,
            num_warmup=4,
            timeline_requests=32 if output == OUTPUT_LENGTHS[0] else 0,
        )
        for output in OUTPUT_LENGTHS
    },
}


def _shrunk(setting: Setting) -> Setting:
    """A tenth of the lengths, a few requests, a device tier for about three of them."""
    kind, _, lengths = setting.workload.partition(":")
    prompt, output = (max(2, int(length) // 10) for length in (lengths or "370,100").split(","))
    num_requests = min(setting.num_requests, 7)
    # Decode iterations need room for some rows at once, and steps in which all of them decode.
    workload = "exact:48,40" if kind == "exact" else f"synthetic:{prompt},{output}"
    return Setting(
        "tiny",
        "float32",
        min(setting.device_tokens, 384),
        GIB // 16,
        workload,
        num_requests,
        chunk_tokens=64,
        limit_s=120.0,
        memory_fraction=0.1,
        max_model_tokens=256,
        timeline_requests=min(setting.timeline_requests, num_requests),
    )


def setting_of(case: str, scale: Scale) -> Setting:
    return FULL[case] if scale == "full" else _shrunk(FULL[case])


def jobs(case: str, *, scale: Scale, device: Device, thorough: bool = False) -> list[Job]:
    """Of one of CASES, in the order in which they take turns. `thorough`: cost tables are measured for it first."""
    made = list({"1": _checks}.get(case, _measurements)(case, scale, device))
    if not thorough:
        return made
    return [*_profiles(made), *made]


def _profiles(made: list[Job]) -> Iterator[Job]:
    """One for each engine that plans with cost tables; those of other policies are the same."""
    for job in made:
        if job.child in ("neo_child", "iterations_child") and job.settings["engine"]["policy"] == NEO:
            settings = {"kind": "profile", "engine": job.settings["engine"]}
            yield Job(job.case, f"profile of {job.system}", "neo_child", settings, job.limit_s, once=True)


def _measurements(case: str, scale: Scale, device: Device) -> Iterator[Job]:
    systems: dict[str, tuple[str, ...]] = {
        "2": ("vllm", CHUNKED),
        "3": ("vllm", "vllm-eager", PLAIN, CHUNKED, NEO),
        "4b": ("vllm", CHUNKED, NEO),
        "5": (CHUNKED, NEO),
    }
    part, *others = _parts(case)
    setting = setting_of(part, scale)
    also = {other: _prompts(setting_of(other, scale)) for other in others}
    if case == "4a":
        yield from _decode_jobs(part, setting, scale, device)
    elif case == "6":
        for job in _emulated_jobs(part, setting, scale, device):
            yield replace(job, also=also)
    else:
        for system in systems[case]:
            make = _vllm if system.startswith("vllm") else _neo
            yield replace(make(part, system, setting, device), also=also)
    if case == "3" and scale == "full":
        yield from _small_hosts(case, replace(setting, timeline_requests=0), device)
    if case == "2":
        setting = setting_of("2-single", scale)
        prompts = _prompts(setting) | {"num_warmup": 1}
        yield _neo("2-single", CHUNKED, setting, device, kind="single_stream", prompts=prompts)


def _small_hosts(case: str, setting: Setting, device: Device) -> Iterator[Job]:
    for tokens in HOST_TOKENS:
        # 7B in 16 bits: 32 layers x K and V x 4096.
        memory = tokens * 32 * 2 * 4096 * 2
        yield _neo(case, NEO, setting, device, label=f"{NEO}-host{tokens}", host_memory_bytes=memory)


def _parts(case: str) -> list[str]:
    """Keys of FULL that a case measures its systems on."""
    return [part for part in FULL if part == case or (part.startswith(f"{case}-") and part != "2-single")]


def _decode_jobs(case: str, setting: Setting, scale: Scale, device: Device) -> Iterator[Job]:
    """Iterations of as many rows as the device holds; with NEO as many again on the host, and more, in halves."""
    context, _ = map(int, setting.workload.partition(":")[2].split(","))
    device_rows, halves = (17, [12, 14, 16, 18, 20]) if scale == "full" else (3, [2])
    for system, host_rows in ((PLAIN, [0]), (NEO, halves)):
        made = _neo(case, system, setting, device)
        settings = {**made.settings, "device_rows": device_rows, "host_rows": host_rows, "context": context}
        yield replace(made, child="iterations_child", settings=settings, prompts=None)


def _emulated_jobs(case: str, setting: Setting, scale: Scale, device: Device) -> Iterator[Job]:
    """An A10G's share of the GPU; on the CPU there is nothing to restrict but threads."""
    restricted: dict[str, Any] = {"emulate": "a10g"} if device == "cuda" else {}
    threads = HOST_THREADS if scale == "full" else HOST_THREADS[:1]
    for system in (PLAIN, CHUNKED):
        yield _neo(case, system, setting, device, **restricted)
    for count in threads:
        yield _neo(case, NEO, setting, device, label=f"{NEO}-{count}t", host_threads=count, **restricted)


def _neo(
    case: str,
    policy: str,
    setting: Setting,
    device: Device,
    *,
    label: str | None = None,
    kind: str = "throughput",
    prompts: dict[str, Any] | None = None,
    **engine: Any,
) -> Job:
    chosen = {
        "model": setting.model,
        "policy": policy,
        "dtype": setting.dtype,
        "device": device,
        "device_blocks": setting.device_tokens // BLOCK_SIZE,
        "host_memory_bytes": setting.host_bytes,
        "max_batch_tokens": (setting.neo_chunk_tokens if policy == NEO else None) or setting.chunk_tokens,
        "max_model_tokens": setting.max_model_tokens,
        **engine,
    }
    settings: dict[str, Any] = {"kind": kind, "engine": chosen}
    if policy == NEO and device == "cuda" and setting.timeline_requests:
        settings["timeline_requests"] = {case: setting.timeline_requests}
    return Job(case, label or policy, "neo_child", settings, setting.limit_s, prompts or _prompts(setting))


def _vllm(case: str, system: str, setting: Setting, device: Device) -> Job:
    # vLLM's attention on a CPU wants blocks of 32 tokens; the tokens of KV are the same.
    block_size = BLOCK_SIZE if device == "cuda" else 32
    llm = {
        "dtype": setting.dtype,
        "max_model_len": setting.max_model_tokens,
        "max_num_seqs": min(256, setting.chunk_tokens),
        "max_num_batched_tokens": setting.chunk_tokens,
        "num_gpu_blocks_override": setting.device_tokens // block_size,
        "block_size": block_size,
        "gpu_memory_utilization": setting.memory_fraction,
        "enforce_eager": system == "vllm-eager" or device == "cpu",
    }
    settings = {"model": setting.model, "llm": llm, "in_process": device == "cpu"}
    return Job(case, system, "vllm_child", settings, setting.limit_s, _prompts(setting))


def _prompts(setting: Setting) -> dict[str, Any]:
    return {
        "workload": setting.workload,
        "num_requests": setting.num_requests,
        "num_warmup": min(setting.num_warmup, setting.num_requests),
        "model": setting.model,
    }


def _checks(case: str, scale: Scale, device: Device) -> Iterator[Job]:
    small = scale == "tiny"
    for dtype in _check_dtypes(scale):
        for policy in POLICIES:
            engine = {"policy": policy, "dtype": dtype, "device": device, "device_blocks": 24, "host_memory_bytes": GIB}
            settings = {
                "kind": "agreement",
                "engine": engine,
                "num_requests": 6 if small else 50,
                "tolerance": TOLERANCE[dtype],
                "roomy_blocks": 1000,
            }
            yield Job(case, f"{policy}-{dtype}", "check_child", settings, limit_s=300.0)
    for policy in POLICIES:
        engine = {"policy": policy, "model": "tiny", "device": device, "device_blocks": 13}
        engine["dtype"] = "float32" if device == "cpu" else "bfloat16"
        settings = {"kind": "stress", "engine": engine, "num_requests": 40 if small else 200, "host_blocks": 14}
        yield Job(case, f"{policy}-stress", "check_child", settings, limit_s=300.0)


def _check_dtypes(scale: Scale) -> tuple[str, ...]:
    return ("float32",) if scale == "tiny" else ("bfloat16", "float16")


def comparisons(case: str, *, scale: Scale, device: Device) -> list[Comparison]:
    """The rows of one of CASES."""
    makers = {"1": _check_rows, "2": _case_2_rows, "4a": _case_4a_rows, "6": _case_6_rows}
    rows = makers.get(case, _rows)(case, scale)
    return [row for row in rows if device == "cuda" or row.metric not in _TIMELINE_METRICS]


def _check_rows(case: str, scale: Scale) -> Iterator[Comparison]:
    def row(system: str, metric: str, required: str | None) -> Comparison:
        return Comparison(case, system, metric, "", required=required, at_any_scale=True)

    for dtype in _check_dtypes(scale):
        for policy in POLICIES:
            yield row(f"{policy}-{dtype}", "logit_error", f"<= {TOLERANCE[dtype]}")
            yield row(f"{policy}-{dtype}", "different_requests", None)
            yield row(f"{policy}-{dtype}", "unexplained_differences", "<= 0")
    for policy in POLICIES:
        finished = 40 if scale == "tiny" else 200
        yield row(f"{policy}-stress", "finished_requests", f">= {finished}")
        forced = "swaps" if policy == NEO else "preemptions"
        yield row(f"{policy}-stress", forced, ">= 1")


def _throughput(case: str, system: str, required: str | None = None, *baselines: str) -> Comparison:
    return Comparison(case, system, "output_tokens_per_s", "tok/s", baselines, required=required)


def _case_2_rows(case: str, scale: Scale) -> Iterator[Comparison]:  # noqa: ARG001
    yield _throughput(case, "vllm")
    yield _throughput(case, CHUNKED, ">= 0.90", "vllm")
    floor = "weight_floor_ms"
    yield Comparison("2-single", CHUNKED, "ms_per_token", "ms", limit_metric=floor, required="<= 1.25")


def _case_4a_rows(case: str, scale: Scale) -> Iterator[Comparison]:  # noqa: ARG001
    rate = "decode_tokens_per_s"
    yield Comparison(case, PLAIN, rate, "tok/s")
    yield Comparison(case, NEO, rate, "tok/s", (PLAIN,), required=">= 1.35")
    yield from _part_rows(case, NEO)
    yield from _timeline_rows(case, NEO)


def _case_6_rows(case: str, scale: Scale) -> Iterator[Comparison]:
    for part in _parts(case):
        yield _throughput(part, PLAIN)
        yield _throughput(part, CHUNKED, None, PLAIN)
        for count in HOST_THREADS if scale == "full" else HOST_THREADS[:1]:
            system = f"{NEO}-{count}t"
            yield _throughput(part, system, None, PLAIN)
            yield _throughput(part, system, None, CHUNKED)
            yield from _part_rows(part, system)


def _rows(case: str, scale: Scale) -> Iterator[Comparison]:
    if case == "3":
        yield _throughput(case, "vllm")
        yield _throughput(case, "vllm-eager", None, "vllm")
        yield _throughput(case, PLAIN, None, "vllm")
        yield _throughput(case, CHUNKED, None, "vllm")
        yield _throughput(case, NEO, ">= 1.5", "vllm")
        yield _throughput(case, NEO, ">= 1.25", PLAIN, CHUNKED)
        yield from _part_rows(case, NEO)
        for tokens in HOST_TOKENS if scale == "full" else ():
            yield _throughput(case, f"{NEO}-host{tokens}", None, PLAIN, CHUNKED)
            yield Comparison(case, f"{NEO}-host{tokens}", "hidden_fraction", "")
    elif case == "4b":
        for part, required in (("4b-500-500", ">= 1.2"), ("4b-1000-200", ">= 1.05")):
            yield _throughput(part, "vllm")
            yield _throughput(part, CHUNKED, ">= 1.0", "vllm")
            yield _throughput(part, NEO, required, "vllm")
            yield from _part_rows(part, NEO)
    elif case == "5":
        yield _throughput(case, CHUNKED)
        yield _throughput(case, NEO, ">= 0.98", CHUNKED)


def _part_rows(case: str, system: str) -> Iterator[Comparison]:
    """How well NEO's parts do where it offloads: hiding, predicting, reading."""
    yield Comparison(case, system, "hidden_fraction", "", required=">= 0.85")
    yield Comparison(case, system, "prediction_error_median", "", required="<= 0.10")
    yield Comparison(case, system, "prediction_error_p95", "", required="<= 0.25")
    yield Comparison(case, system, "host_gbps", "GB/s", limit_metric="host_read_gbps")
    if FULL[case].timeline_requests:
        yield from _timeline_rows(case, system)


def _timeline_rows(case: str, system: str) -> Iterator[Comparison]:
    """How much of asymmetric iterations the device idles, and how much without waiting for host attention."""
    idle, gap = _TIMELINE_METRICS
    yield Comparison(case, system, idle, "")
    yield Comparison(case, system, gap, "", required="<= 0.10")
