"""Records -> the numbers of summary.json. Every definition is written out in docs/metrics.md; change both together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neobench.results.backlog import backlog
from neobench.results.columns import BoolArray, Float64Array, Int64Array, RecordColumns
from neobench.results.record import Outcome
from neobench.results.sessions import arrivals, session_figures
from neobench.results.validity import STEADY_START_FRACTION

PERCENTILE_CONFIDENCE = 0.99
DEFAULT_PERCENTILES = (50.0, 99.0)
"""Reported whether or not they were asked for, the first as the median."""


def summarise(
    columns: RecordColumns,
    *,
    request_rate: float | None,
    percentiles: Sequence[float] = (),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All metrics of a run, warm-up requests left out.

    `request_rate` is what was asked for, in requests (or sessions) per second; None means all at once. `percentiles`,
    in (0, 100), are reported beside the default ones; `goodput_ms` has a limit for some of "ttft", "tpot", "e2el".
    A figure without a single sample is None, never NaN and never zero.
    """
    reported = tuple(sorted({*DEFAULT_PERCENTILES, *percentiles}))
    measured = ~columns.warmup
    completed = measured & columns.ended_with(Outcome.OK)
    num_completed = int(completed.sum())
    return {
        "num_prompts": int(measured.sum()),
        "request_rate": "inf" if request_rate is None else request_rate,
        "completed": num_completed,
        "failed": int(measured.sum()) - num_completed,
        "outcomes": {outcome.value: int((measured & columns.ended_with(outcome)).sum()) for outcome in Outcome},
        **_throughput(columns, measured, completed),
        **_steady_throughput(columns, measured, completed),
        **_latency(columns, completed, reported),
        **_goodput(columns, measured, completed, goodput_ms or {}),
        **_client_lag(columns, measured),
        **backlog(columns, measured),
        "sessions": session_figures(
            columns, measured, request_latencies_ms(columns)["ttft"], _duration_s(columns, measured)
        ),
        "percentile_support": {
            percentile_name(percentile): percentile_support(percentile, num_completed) for percentile in reported
        },
        "percentiles_asked_for": [percentile_name(percentile) for percentile in sorted(set(percentiles))],
    }


def percentile_name(percentile: float) -> str:
    """p99, p99.9: as vLLM's benchmark names them."""
    return f"p{int(percentile) if percentile == int(percentile) else percentile}"


def required_requests(percentile: float, confidence: float = PERCENTILE_CONFIDENCE) -> int:
    """The fewest requests that support a percentile: smallest n with (percentile/100)^n <= 1 - confidence.

    Exact binomial rule with no request over the limit (MLPerf LoadGen's early stopping at t = 0): with fewer requests,
    a system that violates the percentile would still show a clean sample more often than 1 - confidence.
    """
    return math.ceil(math.log(1 - confidence) / math.log(percentile / 100))


def percentile_support(percentile: float, num_requests: int) -> dict[str, int | bool]:
    required = required_requests(percentile)
    return {"required_requests": required, "requests": num_requests, "supported": num_requests >= required}


def _throughput(columns: RecordColumns, measured: BoolArray, completed: BoolArray) -> dict[str, Any]:
    duration_s = _duration_s(columns, measured)
    input_tokens = int(columns.integers("prompt_tokens")[completed].sum())
    output_tokens = int(columns.integers("output_tokens")[completed].sum())
    return {
        "duration": duration_s,
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": _rate(int(completed.sum()), duration_s),
        "output_throughput": _rate(output_tokens, duration_s),
        "total_token_throughput": _rate(input_tokens + output_tokens, duration_s),
    }


def _duration_s(columns: RecordColumns, measured: BoolArray) -> float | None:
    ended_ms = columns.instants_ms("ended_ns")[measured]
    issued_ms = columns.instants_ms("issued_ns")[measured]
    ends_of_issued_ms = ended_ms[~np.isnan(issued_ms) & ~np.isnan(ended_ms)]
    return float(ends_of_issued_ms.max()) / 1e3 if len(ends_of_issued_ms) else None


def _goodput(
    columns: RecordColumns, measured: BoolArray, completed: BoolArray, limits_ms: Mapping[str, float]
) -> dict[str, Any]:
    if not limits_ms:
        return {"goodput_ms": {}, "good_requests": None, "request_goodput": None}
    latencies_ms = request_latencies_ms(columns)
    # A request of one token has no TPOT, and nothing in it that a limit on TPOT could fault.
    good = completed.copy()
    for name, limit_ms in limits_ms.items():
        good &= ~(latencies_ms[name] > limit_ms)
    num_good = int(good.sum())
    return {
        "goodput_ms": dict(limits_ms),
        "good_requests": num_good,
        "request_goodput": _rate(num_good, _duration_s(columns, measured)),
    }


def request_latencies_ms(columns: RecordColumns) -> dict[str, Float64Array]:
    """[num_requests] each of "ttft", "tpot" and "e2el", in ms from the scheduled arrival; NaN where there is none."""
    scheduled_ms, first_token_ms, ended_ms = (
        columns.instants_ms(name) for name in ("scheduled_ns", "first_token_ns", "ended_ns")
    )
    gaps = columns.integers("output_tokens") - 1
    return {
        "ttft": first_token_ms - scheduled_ms,
        "tpot": np.where(gaps > 0, (ended_ms - first_token_ms) / np.maximum(gaps, 1), np.nan),
        "e2el": ended_ms - scheduled_ms,
    }


def _steady_throughput(columns: RecordColumns, measured: BoolArray, completed: BoolArray) -> dict[str, Any]:
    arrived = measured & arrivals(columns) & ~np.isnan(columns.instants_ms("issued_ns"))
    scheduled_ms = columns.instants_ms("scheduled_ns")[arrived]
    end_ms = float(scheduled_ms.max()) if len(scheduled_ms) else 0.0
    start_ms = STEADY_START_FRACTION * end_ms
    ended_ms = columns.instants_ms("ended_ns")[completed]
    num_inside = int(((ended_ms > start_ms) & (ended_ms <= end_ms)).sum())
    window_s = (end_ms - start_ms) / 1e3 if num_inside else None
    return {
        "steady_window_start_s": start_ms / 1e3 if num_inside else None,
        "steady_window_end_s": end_ms / 1e3 if num_inside else None,
        "steady_completed": num_inside,
        "steady_request_throughput": _rate(num_inside, window_s),
        "steady_output_throughput": _rate(_tokens_within(columns, completed, start_ms, end_ms), window_s),
    }


def _tokens_within(columns: RecordColumns, completed: BoolArray, start_ms: float, end_ms: float) -> float:
    """Output tokens of completed requests that arrived in (start, end].

    An event counts for output_tokens / events of its request, because one event may carry several tokens.
    """
    offsets = columns.token_offsets
    token_ns = columns.token_ns
    inside = np.concatenate(([0], np.cumsum((token_ns > start_ms * 1e6) & (token_ns <= end_ms * 1e6))))
    events_inside = inside[offsets[1:]] - inside[offsets[:-1]]
    events = np.diff(offsets)
    counted = completed & (events > 0)
    tokens_per_event = columns.integers("output_tokens")[counted] / events[counted]
    return float((events_inside[counted] * tokens_per_event).sum())


def _latency(columns: RecordColumns, completed: BoolArray, percentiles: Sequence[float]) -> dict[str, Any]:
    from_schedule_ms = {name: values[completed] for name, values in request_latencies_ms(columns).items()}
    issued_ms = columns.instants_ms("issued_ns")[completed]
    first_token_ms = columns.instants_ms("first_token_ns")[completed]
    ended_ms = columns.instants_ms("ended_ns")[completed]
    output_tokens = columns.integers("output_tokens")[completed]
    normalized_ms = from_schedule_ms["e2el"][output_tokens > 0] / output_tokens[output_tokens > 0]
    samples_ms = {
        "ttft_ms": from_schedule_ms["ttft"],
        "tpot_ms": from_schedule_ms["tpot"],
        "itl_ms": _gaps_ms(columns, completed),
        "e2el_ms": from_schedule_ms["e2el"],
        "ttft_from_issue_ms": first_token_ms - issued_ms,
        "e2el_from_issue_ms": ended_ms - issued_ms,
        "normalized_latency_ms": normalized_ms,
    }
    summary: dict[str, Any] = {}
    for name, values_ms in samples_ms.items():
        summary |= _distribution(name, values_ms, percentiles)
    return summary


def _gaps_ms(columns: RecordColumns, completed: BoolArray) -> Float64Array:
    """[num_gaps] time between consecutive events of the same completed request."""
    token_ns: Int64Array = columns.token_ns
    owner = np.repeat(np.arange(len(columns), dtype=np.int32), np.diff(columns.token_offsets))
    same_request = (owner[1:] == owner[:-1]) & completed[owner[1:]]
    gaps_ms: Float64Array = np.diff(token_ns)[same_request] / 1e6
    return gaps_ms


def _client_lag(columns: RecordColumns, measured: BoolArray) -> dict[str, Any]:
    """How faithfully the client kept its own schedule; rates by (n - 1) / span, as LoadGen counts queries a second."""
    issued_ms = columns.instants_ms("issued_ns")
    issued = measured & ~np.isnan(issued_ms)
    issued_ms = issued_ms[issued]
    scheduled_ms = columns.instants_ms("scheduled_ns")[issued]
    ready_ms = columns.instants_ms("ready_ns")[issued]
    due_ms = np.where(np.isnan(ready_ms), scheduled_ms, ready_ms)
    lag_ms = _finite(issued_ms - due_ms)
    queue_ms = due_ms - scheduled_ms
    return {
        "issued_requests": len(lag_ms),
        "arrival_span_s": _span_s(scheduled_ms[arrivals(columns)[issued]]),
        "lag_p50_ms": float(np.percentile(lag_ms, 50)) if len(lag_ms) else None,
        "lag_p99_ms": float(np.percentile(lag_ms, 99)) if len(lag_ms) else None,
        "lag_max_ms": float(lag_ms.max()) if len(lag_ms) else None,
        "mean_client_queue_ms": float(queue_ms.mean()) if len(queue_ms) else None,
        "max_client_queue_ms": float(queue_ms.max()) if len(queue_ms) else None,
        "offered_request_rate": _rate(len(lag_ms) - 1, _span_s(due_ms)),
        "achieved_request_rate": _rate(len(lag_ms) - 1, _span_s(issued_ms)),
    }


def _span_s(instants_ms: Float64Array) -> float | None:
    return float(np.ptp(instants_ms)) / 1e3 if len(instants_ms) else None


def _rate(count: float, duration_s: float | None) -> float | None:
    """Per second; None when there was no time to count in."""
    return count / duration_s if duration_s else None


def _finite(values: Float64Array) -> Float64Array:
    return values[~np.isnan(values)]


def _distribution(name: str, values_ms: Float64Array, percentiles: Sequence[float]) -> dict[str, float | None]:
    """mean, median, std (population) and percentiles (linear interpolation), as vLLM's benchmark computes them."""
    samples = _finite(values_ms)
    names = ["median" if percentile == 50 else percentile_name(percentile) for percentile in percentiles]
    if not len(samples):
        return dict.fromkeys(f"{statistic}_{name}" for statistic in ("mean", *names, "std"))
    quantiles = dict(zip(names, np.percentile(samples, percentiles), strict=True))
    statistics = {"mean": samples.mean(), **quantiles, "std": samples.std()}
    return {f"{statistic}_{name}": float(value) for statistic, value in statistics.items()}
