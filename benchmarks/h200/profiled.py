"""Iterations under torch.profiler, for their timeline. Only the device is traced, for that costs Python least."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.h200.drive import Requests
from benchmarks.h200.timeline import Activity, Iteration, read_trace, summarize
from neobench.neo_engine.batch import StageTimes
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.request import SamplingParams

WARM_UP = 2
"""The first iterations that are traced also pay for the start of the tracing, and do not count."""
ITERATIONS = 3
STEPS = 40

Trace = Callable[[Callable[[], list[Iteration]]], tuple[list[Activity], list[Iteration]]]
"""Runs what it is given; the device's activities meanwhile, by their start, and what came back."""


def add_timeline(measured: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
    """The fractions to the "metrics", all else to the "raw" series. Where it fails, the reason to the "facts"."""
    try:
        summary = measure()
    except Exception as error:
        traceback.print_exc()
        measured["facts"]["timeline"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return
    measured["raw"]["timeline"] = summary
    measured["metrics"].update({name: summary[name] for name in ("device_idle_fraction", "device_gap_fraction")})


def trace_device(run: Callable[[], list[Iteration]]) -> tuple[list[Activity], list[Iteration]]:
    """By torch.profiler on a CUDA device."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        iterations = run()
    with tempfile.TemporaryDirectory(prefix="neobench-h200-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text())), iterations


def iterations_timeline(iterate: Callable[[], StageTimes], trace: Trace = trace_device) -> dict[str, Any]:
    """The summary of ITERATIONS asymmetric iterations, each a call of `iterate`, which waits for the device."""

    def one(is_counted: bool) -> Iteration:
        start_ns = time_ns()
        stages = iterate()
        return Iteration(start_ns, time_ns(), stages.host_wait_ns, is_counted)

    before = [one(is_counted=True) for _ in range(ITERATIONS)]
    activities, iterations = trace(lambda: [one(number >= WARM_UP) for number in range(WARM_UP + ITERATIONS)])
    return summarize(activities, iterations) | _slowdown(before, iterations)


def steps_timeline(engine: NeoEngine, requests: Requests, trace: Trace = trace_device) -> dict[str, Any]:
    """The summary of the asymmetric ones among STEPS steps, from when a third of the requests' tokens is there.

    Leaves the engine without these requests, which must be its only ones.
    """
    ids = [
        engine.add_request(prompt, SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True))
        for prompt, output in requests
    ]
    try:
        before = _steps_until(engine, sum(output for _, output in requests) // 3)
        activities, iterations = trace(lambda: _steps(engine, WARM_UP + STEPS))
    finally:
        for request_id in ids:
            engine.abort(request_id)
    return summarize(activities, iterations) | _slowdown(before[-STEPS:], iterations)


def _steps_until(engine: NeoEngine, num_tokens: int) -> list[Iteration]:
    iterations = []
    while num_tokens > 0 and engine.has_work:
        iteration, tokens = _step(engine)
        num_tokens -= tokens
        iterations.append(iteration)
    return iterations


def _steps(engine: NeoEngine, count: int) -> list[Iteration]:
    iterations: list[Iteration] = []
    while len(iterations) < count and engine.has_work:
        iteration, _ = _step(engine, may_count=len(iterations) >= WARM_UP)
        iterations.append(iteration)
    return iterations


def _step(engine: NeoEngine, may_count: bool = True) -> tuple[Iteration, int]:
    """It counts if it was asymmetric; and how many tokens came of it."""
    before = engine.stats()
    start_ns = time_ns()
    outputs = engine.step()
    end_ns = time_ns()
    after = engine.stats()
    host_wait_ns, asymmetric = (
        int(after[name] - before[name]) for name in ("measured_host_wait_ns", "iterations_asymmetric")
    )
    return Iteration(start_ns, end_ns, host_wait_ns, may_count and asymmetric > 0), len(outputs)


def _slowdown(before: Sequence[Iteration], traced: Iterable[Iteration]) -> dict[str, float | None]:
    """Median time of the counted iterations, without and with the profiler; None without any."""
    medians = [
        float(np.median(walls)) if (walls := [part.wall_ns for part in iterations if part.is_counted]) else None
        for iterations in (before, traced)
    ]
    return {"untraced_wall_ns": medians[0], "traced_wall_ns": medians[1]}
