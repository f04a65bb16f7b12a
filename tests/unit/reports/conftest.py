"""Runs with the numbers that a test cares about and plausible others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from neobench.reports.run import ReportRun

MakeRun = Callable[..., ReportRun]
REASON = "The client fell behind its schedule: lag p99 8.1 ms is over the limit of 5.0 ms."


@pytest.fixture
def make_run() -> MakeRun:
    def make(
        engine: str,
        request_rate: float | None,
        latency_s: float | None,
        *,
        valid: bool = True,
        kind: str = "measured",
        model: str = "tiny-llama",
        workload: str = "carperai",
        **summary: Any,
    ) -> ReportRun:
        return ReportRun(
            engine=engine,
            workload=workload,
            model=model,
            request_rate=request_rate,
            machine="Tesla T4, 8 cores",
            summary={
                "completed": 500,
                "failed": 2,
                "request_throughput": 1.9876,
                "output_throughput": 89.65,
                "mean_ttft_ms": 123.456,
                "p99_ttft_ms": 1834.2,
                "mean_tpot_ms": 43.21,
                "mean_normalized_latency_ms": None if latency_s is None else 1e3 * latency_s,
                "validity": {"valid": valid, "reasons": [] if valid else [REASON]},
                "provenance": {"kind": kind, "command": ["neobench", "run", "--engine", engine], "commit": "abc1234"},
                "engine_stats": {},
                "percentile_support": {"p99": {"supported": True, "required_requests": 459, "requests": 500}},
                **summary,
            },
        )

    return make
