"""One measurement of neobench's own engine, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.h200.drive import Drive, Step, decode_window, drive, read_prompts
from benchmarks.h200.jobs import MeasurementError, Result, child_main
from benchmarks.h200.profiled import add_timeline, steps_timeline
from neobench.neo_engine.build import build_engine, build_executor
from neobench.neo_engine.config import DTYPE_BYTES, EngineConfig, ModelShape
from neobench.neo_engine.cost_model import Profile
from neobench.neo_engine.device_limits import copy_bytes_per_s
from neobench.neo_engine.emulation import emulated_settings
from neobench.neo_engine.profiler import THOROUGH, cache_path, measure, profile_key
from neobench.pacpu.bench import Bench
from neobench.pacpu.machine import l3_bytes
from neobench.pacpu.topology import usable_cpus


def throughput(settings: dict[str, Any]) -> Result:
    """All requests at once until the last has ended: output tokens a second, and how well NEO's parts work."""

    def metrics(driven: Drive) -> dict[str, float]:
        finished = driven.counters["finished_requests"]
        return {
            "output_tokens_per_s": 1e9 * driven.output_tokens / driven.wall_ns,
            "requests_per_s": 1e9 * finished / driven.wall_ns,
        }

    return _measured(settings, metrics, lambda driven: driven.steps)


def single_stream(settings: dict[str, Any]) -> Result:
    """Milliseconds a token of one request alone, and the time in which the device could read the weights once.

    Floor: bytes of all weights that a token needs / memory traffic of a device copy, measured after the run.
    """
    config = engine_config(settings)

    def window(driven: Drive) -> list[Step]:
        return decode_window(driven.steps, 1)

    def metrics(driven: Drive) -> dict[str, float]:
        copy = copy_bytes_per_s(torch.device(config.device))
        floor_ms = 1e3 * weight_bytes_read(config.shape, config.dtype) / copy
        wall_ms = [step.wall_ns / 1e6 for step in window(driven)]
        return {"ms_per_token": float(np.median(wall_ms)), "weight_floor_ms": floor_ms, "copy_gbps": copy / 1e9}

    return _measured(settings, metrics, window)


def profile(settings: dict[str, Any]) -> Result:
    """The thorough cost tables, kept where every later engine of the same settings finds them."""
    config = engine_config(settings)
    executor = build_executor(config, say=print)
    path = cache_path(key := profile_key(config, executor))
    Profile(key, measure(config, executor, THOROUGH)).save(path)
    executor.close()
    return Result({}, facts={"profile": str(path), "key": key})


def weight_bytes_read(shape: ModelShape, dtype: str) -> int:
    """All weights once but the embedding table, of which a token reads one row, unless it is the LM head as well."""
    unread = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return (shape.num_parameters - unread) * DTYPE_BYTES[dtype]


def engine_config(settings: dict[str, Any]) -> EngineConfig:
    return EngineConfig(**emulated_settings(settings["engine"]))


def _measured(
    settings: dict[str, Any],
    metrics: Callable[[Drive], dict[str, float]],
    judged: Callable[[Drive], Sequence[Step]],
) -> Result:
    """The metrics with those of NEO's parts, of each measurement; `judged` are the steps whose prediction is judged.

    Its rest measures on, replays requests for their timeline and closes the engine.
    """
    prompts = {part["case"]: read_prompts(part["path"]) for part in settings["parts"]}
    engine = build_engine(engine_config(settings), say=print)
    for part in prompts.values():
        drive(engine, part["warmup"])

    def measured(case: str) -> dict[str, Any]:
        driven = drive(engine, prompts[case]["requests"])
        found = metrics(driven) | prediction_errors(judged(driven))
        if driven.counters["measured_host_decode_ns"]:
            found |= host_metrics(driven.counters, engine.config)
        raw = {"steps": driven.series(), "counters": driven.counters}
        return {"case": case, "metrics": found, "facts": {"prompts": prompts[case]["facts"]}, "raw": raw}

    answers = (measured(case) for case in prompts for _ in range(settings["measurements"]))
    first = next(answers)
    first["facts"]["engine"] = engine.info()
    result = Result(first["metrics"], first["facts"], first["raw"])

    def rest() -> None:
        for answer in answers:
            result.again.append(answer)
            result.save()
        first_of = {part["case"]: part for part in reversed([first, *result.again])}
        for case, count in settings.get("timeline_requests", {}).items():
            add_timeline(first_of[case], partial(steps_timeline, engine, prompts[case]["requests"][:count]))
            result.save()
        threads = engine.info().get("host_threads")
        engine.close()
        offloading = [part["metrics"] for part in first_of.values() if "host_gbps" in part["metrics"]]
        read_gbps = host_read_gbps(threads) if offloading else None
        for part in offloading:
            part["host_read_gbps"] = read_gbps

    result.rest = rest
    return result


def prediction_errors(steps: Sequence[Step]) -> dict[str, float]:
    """Median and 95th percentile of |predicted - measured| / measured over iterations."""
    timed = [step for step in steps if step.measured_ns]
    if not timed:
        raise MeasurementError("no iteration has a measured time")
    errors = [abs(step.predicted_ns - step.measured_ns) / step.measured_ns for step in timed]
    median, p95 = np.percentile(errors, (50, 95))
    return {"prediction_error_median": float(median), "prediction_error_p95": float(p95)}


def host_metrics(counters: dict[str, int | float], config: EngineConfig) -> dict[str, float]:
    """Of attention on the host: the part of its time that was hidden, GB/s of KV it read, its share of decodes."""
    host_ns = counters["measured_host_decode_ns"]
    decodes = counters["cpu_decode_tokens"] + counters["gpu_decode_tokens"]
    return {
        "hidden_fraction": 1 - counters["measured_host_wait_ns"] / host_ns,
        "host_gbps": counters["cpu_attended_tokens"] * token_bytes(config) / host_ns,
        "host_share": counters["cpu_decode_tokens"] / decodes,
    }


def token_bytes(config: EngineConfig) -> float:
    """K and V of one token in all layers of the host tier."""
    return config.block_bytes(config.host_layout) / config.block_size


def host_read_gbps(threads: int | None) -> float:
    """What the host's memory gives the same number of threads, after the run and on its machine."""
    cpus = usable_cpus()
    count = threads or len(cpus) or os.cpu_count() or 1
    with Bench(max(2**30, 4 * l3_bytes(cpus)), max_threads=count) as bench:
        return bench.measure_read(count).median


_KINDS = {"throughput": throughput, "single_stream": single_stream, "profile": profile}


if __name__ == "__main__":
    child_main(lambda settings: _KINDS[settings["kind"]](settings))
