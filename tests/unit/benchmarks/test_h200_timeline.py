"""What is made of a trace: of made-up events, where every nanosecond is known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.h200.jobs import MeasurementError
from benchmarks.h200.timeline import (
    FETCH_KERNEL,
    KERNEL,
    TOP,
    Activity,
    Gap,
    Iteration,
    busy_ns,
    gaps_between,
    read_trace,
    span_ns,
    summarize,
)


def kernel(start_ns: int, end_ns: int, name: str = "gemm", stream: int = 7) -> Activity:
    return Activity(KERNEL, name, stream, start_ns, end_ns)


def copy(start_ns: int, end_ns: int) -> Activity:
    return Activity("gpu_memcpy", "Memcpy DtoH", 13, start_ns, end_ns)


def test_nothing_ran() -> None:
    assert (gaps_between([]), span_ns([]), busy_ns([])) == ([], 0, 0)


def test_one_kernel_leaves_no_gap() -> None:
    assert (gaps_between([kernel(5, 9)]), span_ns([kernel(5, 9)]), busy_ns([kernel(5, 9)])) == ([], 4, 4)


@pytest.mark.parametrize(
    ("intervals", "gaps", "busy"),
    [
        ([(0, 10), (10, 20)], [], 20),
        ([(0, 10), (15, 20)], [(10, 15)], 15),
        ([(0, 10), (5, 15), (20, 30)], [(15, 20)], 25),
        ([(0, 100), (10, 20), (30, 40), (110, 120)], [(100, 110)], 110),
        ([(0, 10), (0, 4), (4, 4), (12, 13)], [(10, 12)], 11),
    ],
    ids=["touching", "apart", "overlapping", "nested", "same start and empty"],
)
def test_busy_is_the_union_and_gaps_are_what_it_leaves(
    intervals: list[tuple[int, int]], gaps: list[tuple[int, int]], busy: int
) -> None:
    kernels = [kernel(start, end) for start, end in intervals]
    assert [(gap.start_ns, gap.end_ns) for gap in gaps_between(kernels)] == gaps
    assert busy_ns(kernels) == busy
    assert span_ns(kernels) - busy == sum(end - start for start, end in gaps)


def test_a_gap_lies_after_the_kernel_that_ended_last() -> None:
    kernels = [kernel(0, 50, "long", stream=7), kernel(10, 20, "short", stream=9), kernel(60, 70, "next", stream=9)]
    assert gaps_between(kernels) == [Gap(50, 60, after="long", before="next")]


def event(category: str, ts_us: float, dur_us: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": category, "ts": ts_us, "dur": dur_us, "args": {"stream": 7}, **more}


def test_a_trace_is_read_in_nanoseconds_of_the_system_clock() -> None:
    document = {
        "baseTimeNanoseconds": 1_790_857_026_000_000_000,
        "traceEvents": [
            event("gpu_memset", 4_438_544_058_290.25, 0.5),
            event("kernel", 4_438_544_058_285.033, 2.5, name="x" * 500),
            event("gpu_memcpy", 4_438_544_058_300.0, 1.0, args={}, tid=21),
            event("cuda_runtime", 4_438_544_058_280.0, 9.0),
            {"ph": "M", "name": "process_name"},
            {"ph": "i", "cat": "kernel", "name": "mark", "ts": 1.0},
        ],
    }
    first, second, third = read_trace(document)
    assert (first.category, len(first.name), first.stream) == ("kernel", 120, 7)
    assert (first.start_ns, first.ns) == (1_795_295_570_058_285_033, 2500)
    assert (second.category, second.start_ns - first.start_ns) == ("gpu_memset", 5217)
    assert (third.category, third.stream, third.ns) == ("gpu_memcpy", 21, 1000)


def test_only_iterations_that_count_are_summed() -> None:
    activities = [
        kernel(0, 40),
        copy(5, 25),
        kernel(50, 100, "norm"),
        kernel(1000, 1010),
        kernel(1090, 1100),
        kernel(2000, 2060),
        copy(2050, 2070),
        copy(2060, 2080),
        kernel(2080, 2100, "head"),
    ]
    iterations = [Iteration(-10, 110, 0), Iteration(990, 1200, 0, is_counted=False), Iteration(1990, 2110, 0)]
    summary = summarize(activities, iterations)
    assert (summary["iterations"], summary["span_ns"], summary["idle_ns"]) == (2, 200, 30)
    assert summary["device_idle_fraction"] == pytest.approx(0.15)
    assert summary["device_gap_fraction"] == pytest.approx(0.15)
    assert summary["copy_ns"] == 20 + 30
    assert summary["kernel_time"] == [
        {"name": "gemm", "count": 2, "ns": 100},
        {"name": "norm", "count": 1, "ns": 50},
        {"name": "head", "count": 1, "ns": 20},
    ]
    assert summary["copy_time"] == [{"name": "Memcpy DtoH", "count": 3, "ns": 60}]
    assert summary["longest_gaps"] == [
        {"ns": 20, "iteration": 1, "at_ns": 60, "after": "gemm", "before": "head"},
        {"ns": 10, "iteration": 0, "at_ns": 40, "after": "gemm", "before": "norm"},
    ]
    assert summary["by_iteration"] == {
        "wall_ns": [120, 120],
        "span_ns": [100, 100],
        "idle_ns": [10, 20],
        "host_wait_ns": [0, 0],
    }


@pytest.mark.parametrize(("host_wait_ns", "gap_ns"), [(0, 50), (25, 25), (30, 20), (45, 20)])
def test_waiting_for_the_host_is_idle_in_front_of_a_fetch_and_no_more(host_wait_ns: int, gap_ns: int) -> None:
    """Stage times count the fetch itself as waiting: taken off whole it would hide other idle time."""
    activities = [kernel(0, 30), kernel(60, 75, f"{FETCH_KERNEL}_0d1"), kernel(95, 100)]
    summary = summarize(activities, [Iteration(0, 120, host_wait_ns)])
    assert summary["device_idle_fraction"] == 0.5
    assert summary["device_gap_fraction"] == gap_ns / 100
    assert [entry["ns"] for entry in summary["idle_before"]] == [30, 20]


def test_waiting_of_one_iteration_does_not_excuse_another() -> None:
    activities = [kernel(0, 50), kernel(60, 100, FETCH_KERNEL), kernel(200, 250), kernel(290, 300, FETCH_KERNEL)]
    summary = summarize(activities, [Iteration(0, 110, 50), Iteration(200, 310, 0)])
    assert summary["device_gap_fraction"] == 40 / 200


def test_lists_end_after_the_largest() -> None:
    names = [f"kernel {number}" for number in range(TOP + 10)]
    activities = [kernel(100 * number, 100 * number + number + 1, name) for number, name in enumerate(names)]
    summary = summarize(activities, [Iteration(0, 100_000, 0)])
    assert [entry["name"] for entry in summary["kernel_time"]] == names[: -TOP - 1 : -1]
    assert [gap["after"] for gap in summary["longest_gaps"]] == names[:TOP]


def test_a_trace_without_kernels_is_no_measurement() -> None:
    with pytest.raises(MeasurementError, match="no kernel in the 1 iterations that count, of 2 traced"):
        summarize([copy(1, 2)], [Iteration(0, 10, 0), Iteration(20, 30, 0, is_counted=False)])
    with pytest.raises(MeasurementError, match="no kernel in the 0 iterations"):
        summarize([kernel(1, 2)], [Iteration(0, 10, 0, is_counted=False)])


def test_clocks_that_differ_are_noticed() -> None:
    kernels = [kernel(start, start + 10) for start in range(0, 1000, 10)]
    assert summarize(kernels, [Iteration(50, 1000, 0)])["iterations"] == 1
    with pytest.raises(MeasurementError, match="6% of the kernels' time lies outside"):
        summarize(kernels, [Iteration(60, 1000, 0)])
