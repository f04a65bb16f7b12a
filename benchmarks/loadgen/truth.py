"""What really happened, from the server's log: the rate that arrived, and the latencies that it served with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neobench.engines.instant_log import Instants


def measured_requests(served: Sequence[Instants], num_requests: int) -> list[Instants]:
    """In the order of their arrival. Some tools send a request to try the server before the ones they measure."""
    return sorted(served, key=lambda request: request.received_ns)[-num_requests:]


def true_figures(requests: Sequence[Instants]) -> dict[str, Any]:
    """Of `requests` in the order of their arrival: rates per second, and milliseconds from the last byte of a request.

    delivered_rate   (n - 1) / (last arrival - first arrival)
    gap_cv           standard deviation / mean of the gaps between arrivals: 1 of a Poisson process, 0 of a constant
                     rate
    requests_per_s   completed, from the first arrival to the last token
    """
    completed = [request for request in requests if request.completed]
    figures: dict[str, Any] = {"requests": len(requests), "completed": len(completed)}
    figures |= _arrivals(np.array([request.received_ns for request in requests], dtype=np.int64))
    streams = [(request.received_ns, np.array(request.token_ns, dtype=np.int64)) for request in completed]
    ttft_ms = [(instants[0] - received) / 1e6 for received, instants in streams]
    gaps_ms = [np.diff(instants) / 1e6 for _, instants in streams if len(instants) > 1]
    figures |= _percentiles("ttft", ttft_ms)
    figures |= _percentiles("tpot", [gaps.mean() for gaps in gaps_ms])
    figures |= _percentiles("itl", np.concatenate(gaps_ms) if gaps_ms else [])
    figures |= {"requests_per_s": None, "tokens_per_s": None}
    if completed:
        span_s = (max(request.token_ns[-1] for request in completed) - requests[0].received_ns) / 1e9
        figures["requests_per_s"] = len(completed) / span_s
        figures["tokens_per_s"] = sum(len(request.token_ns) for request in completed) / span_s
    return figures


def _arrivals(received_ns: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float | None]:
    gaps_s = np.diff(received_ns) / 1e9
    if not len(gaps_s) or not gaps_s.sum():
        return {"delivered_rate": None, "gap_cv": None}
    return {"delivered_rate": float(1 / gaps_s.mean()), "gap_cv": float(gaps_s.std() / gaps_s.mean())}


def _percentiles(name: str, values_ms: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float | None]:
    if not len(values_ms):
        return {f"{name}_p50_ms": None, f"{name}_p99_ms": None}
    p50, p99 = np.percentile(values_ms, (50, 99))
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}
