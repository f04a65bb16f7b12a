"""Which iterations a timeline is about, on the real engine on the CPU; the trace itself is made up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.h200 import profiled, timeline
from benchmarks.h200.check_child import offloading_tables
from benchmarks.h200.jobs import MeasurementError, Result
from benchmarks.h200.profiled import (
    ITERATIONS,
    STEPS,
    WARM_UP,
    add_timeline,
    iterations_timeline,
    steps_timeline,
    trace_device,
)
from benchmarks.h200.timeline import FETCH_KERNEL, KERNEL, Activity, Iteration
from neobench.neo_engine.batch import StageTimes
from neobench.neo_engine.build import build_executor
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.kernels import copies

REQUESTS = [([index + 1] * 60, 60) for index in range(9)]


def small_engine(policy: str) -> NeoEngine:
    config = EngineConfig(policy=policy, device_blocks=24, host_memory_bytes=2**26, device_threads=1, host_threads=1)
    return NeoEngine(config, build_executor(config), CostModel(offloading_tables(), config.shape.num_layers))


class Traced:
    """A trace of one kernel in each iteration, and how many tokens there were when it began."""

    def __init__(self, tokens: Callable[[], int] = int) -> None:
        self._tokens = tokens
        self.tokens_before = 0
        self.iterations: list[Iteration] = []

    def __call__(self, run: Callable[[], list[Iteration]]) -> tuple[list[Activity], list[Iteration]]:
        self.tokens_before = self._tokens()
        self.iterations = run()
        activities = [Activity(KERNEL, "gemm", 7, part.start_ns, part.end_ns) for part in self.iterations]
        return activities, self.iterations


def test_a_replay_is_traced_in_its_middle_and_leaves_the_engine_empty() -> None:
    engine = small_engine("asymmetric_pipeline")
    tokens = 0
    step = engine.step

    def counted() -> list[object]:
        nonlocal tokens
        outputs = step()
        tokens += len(outputs)
        return list(outputs)

    engine.step = counted  # type: ignore[assignment,method-assign]
    traced = Traced(lambda: tokens)
    try:
        summary = steps_timeline(engine, REQUESTS, traced)
        stats = engine.stats()
    finally:
        engine.close()
    assert 180 <= traced.tokens_before < 180 + len(REQUESTS), "a third of 9 x 60 tokens"
    assert len(traced.iterations) == WARM_UP + STEPS
    assert not any(part.is_counted for part in traced.iterations[:WARM_UP])
    assert summary["iterations"] == sum(part.is_counted for part in traced.iterations) > 0
    assert summary["by_iteration"]["host_wait_ns"] == [p.host_wait_ns for p in traced.iterations if p.is_counted]
    assert min(summary["untraced_wall_ns"], summary["traced_wall_ns"]) > 0
    assert (stats["num_running"], stats["device_blocks_used"], stats["host_blocks_used"]) == (0, 0, 0)
    assert stats["aborted_requests"] > 0


def test_iterations_that_are_not_asymmetric_do_not_count() -> None:
    engine = small_engine("gpu_only")
    traced = Traced()
    try:
        with pytest.raises(MeasurementError, match=f"no kernel in the 0 iterations that count, of {WARM_UP + STEPS}"):
            steps_timeline(engine, REQUESTS, traced)
        assert not engine.has_work
    finally:
        engine.close()


def test_iterations_by_themselves_count_after_the_warm_up() -> None:
    waits = iter(range(100, 200))
    summary = iterations_timeline(lambda: StageTimes(host_wait_ns=next(waits)), Traced())
    assert summary["iterations"] == ITERATIONS
    first = 100 + ITERATIONS + WARM_UP
    assert summary["by_iteration"]["host_wait_ns"] == list(range(first, first + ITERATIONS))


def test_fractions_become_metrics_and_the_rest_raw() -> None:
    result = Result({"rate": 1.0})
    summary = {"device_idle_fraction": 0.2, "device_gap_fraction": 0.1, "iterations": 3}
    add_timeline(vars(result), lambda: summary)
    assert result.metrics == {"rate": 1.0, "device_idle_fraction": 0.2, "device_gap_fraction": 0.1}
    assert (result.raw, result.facts) == ({"timeline": summary}, {})


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_profiler_that_fails_is_a_fact_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine = small_engine("asymmetric_pipeline")
    result = Result({"rate": 1.0})
    try:
        add_timeline(vars(result), lambda: steps_timeline(engine, REQUESTS, trace_device))
        assert not engine.has_work
    finally:
        engine.close()
    assert "profiler" in result.facts["timeline"]
    assert (result.metrics, result.raw) == ({"rate": 1.0}, {})


def test_what_torch_exports_is_on_the_clock_of_the_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPU operators are taken for kernels here, for there is no device; more than 5 % outside would be refused."""
    cpu = [ProfilerActivity.CPU]
    monkeypatch.setattr(profiled, "profile", lambda **_: profile(activities=cpu))
    monkeypatch.setattr(timeline, "KERNEL", "cpu_op")
    matrix = torch.ones(500, 500)

    def iterate() -> StageTimes:
        for _ in range(10):
            torch.mm(matrix, matrix)
        return StageTimes()

    summary = iterations_timeline(iterate)
    assert [entry["count"] for entry in summary["kernel_time"] if entry["name"] == "aten::mm"] == [10 * ITERATIONS]
    assert sum(summary["by_iteration"]["wall_ns"]) > summary["span_ns"] > summary["idle_ns"] > 0


def test_the_fetch_is_known_by_the_name_of_its_kernel() -> None:
    source = Path(inspect.getfile(copies)).with_name("triton_copies.py").read_text()
    assert f"def {FETCH_KERNEL}(" in source
