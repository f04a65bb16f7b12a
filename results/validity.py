"""Whether a run may be believed, and if not, why: one sentence a reason, with the numbers in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neobench.results.backlog import growing_backlog
from neobench.results.machine_validity import machine_disturbances
from neobench.results.record import Outcome
from neobench.results.sessions import stay_s

LAG_LIMIT_MS = 5.0
LAG_LIMIT_SHARE_OF_TTFT = 0.01
MIN_ACHIEVED_SHARE = 0.99
MAX_LOOP_BUSY_SHARE = 0.9
MIN_LOOP_WINDOW_S = 1.0
"""Over less, the start of a schedule alone keeps an event loop busy."""
MAX_FAILED_SHARE = 0.01
"""With failures counted as infinitely late, a p99 exists only while they are no more than 1 % of the requests."""
DEFAULT_PERCENTILE = "p99"
TOO_FEW = "Too few requests for the percentiles"
STEADY_START_FRACTION = 0.25
"""The steady window leaves out this share of the arrival span as ramp-up, as the NEO paper's evaluation does."""


def judge(
    metrics: Mapping[str, Any], incidents: Sequence[str] = (), machine: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """{"valid": bool, "reasons": [sentence, ...], "warnings": [sentence, ...]} for the metrics of one run.

    `incidents` are sentences about what went wrong outside any single request (the engine died, the run was killed).
    `machine` is what telemetry saw of the machine beside the run; a key that is absent or None judges nothing.
    Warnings leave a run valid: they say which of its figures to read with care.
    """
    disturbances, signs_of_disturbance = machine_disturbances(machine or {})
    reasons = [
        *incidents,
        *_interruption(metrics),
        *_failures(metrics),
        *client_limits(metrics),
        *_saturation(metrics),
        *_unsupported(metrics, metrics["percentiles_asked_for"]),
        *_short_window(metrics),
        *disturbances,
    ]
    warnings = [
        *_unsupported(metrics, {DEFAULT_PERCENTILE} - set(metrics["percentiles_asked_for"])),
        *growing_backlog(metrics),
        *signs_of_disturbance,
    ]
    return {"valid": not reasons, "reasons": reasons, "warnings": warnings}


def lag_limit_ms(metrics: Mapping[str, Any]) -> float:
    """max(5 ms, 1 % of the median TTFT): lag below this cannot be told from the latency it would distort."""
    return max(LAG_LIMIT_MS, LAG_LIMIT_SHARE_OF_TTFT * (metrics["median_ttft_ms"] or 0.0))


def _interruption(metrics: Mapping[str, Any]) -> list[str]:
    num_interrupted = metrics["outcomes"][Outcome.INTERRUPTED.value]
    if not num_interrupted:
        return []
    return [
        f"The run was interrupted: {num_interrupted} of {metrics['num_prompts']} requests did not run to their end."
    ]


def _failures(metrics: Mapping[str, Any]) -> list[str]:
    num_prompts = metrics["num_prompts"]
    failures = {
        outcome: count
        for outcome, count in metrics["outcomes"].items()
        if count and outcome not in (Outcome.OK.value, Outcome.INTERRUPTED.value)
    }
    num_failed = sum(failures.values())
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in failures.items())
    if not metrics["completed"]:
        reason = f"Nothing completed: 0 of {num_prompts} requests returned what was asked for"
        return [f"{reason} ({kinds})." if kinds else f"{reason}."]
    if num_failed <= MAX_FAILED_SHARE * num_prompts:
        return []
    share = f"{num_failed} of {num_prompts} requests failed ({num_failed / num_prompts:.1%}; {kinds})"
    return [f"{share}; the limit is {MAX_FAILED_SHARE:.0%}, beyond which no p99 exists."]


def client_limits(metrics: Mapping[str, Any]) -> list[str]:
    """Why the load was not what the schedule says: limits of the client, of which the engine knows nothing."""
    reasons = []
    limit_ms = lag_limit_ms(metrics)
    lag_p99_ms = metrics["lag_p99_ms"]
    if lag_p99_ms is not None and lag_p99_ms > limit_ms:
        reasons.append(
            f"The client fell behind its schedule: lag p99 {lag_p99_ms:.1f} ms is over the limit of {limit_ms:.1f} ms "
            "(5 ms or 1% of the median TTFT)."
        )
    offered, achieved = metrics["offered_request_rate"], metrics["achieved_request_rate"]
    if not offered or not achieved or achieved >= MIN_ACHIEVED_SHARE * offered:
        return reasons
    # Over a span of few milliseconds the ratio says nothing; only a schedule that slipped by a lag that matters counts.
    slip_ms = 1e3 * (metrics["issued_requests"] - 1) * (1 / achieved - 1 / offered)
    if slip_ms > limit_ms:
        reasons.append(
            f"The client did not deliver the load: {achieved:.2f} of {offered:.2f} requests/s "
            f"({achieved / offered:.1%}, at least {MIN_ACHIEVED_SHARE:.0%} is required); "
            f"the schedule slipped by {slip_ms:.1f} ms."
        )
    return reasons


def _unsupported(metrics: Mapping[str, Any], percentiles: Iterable[str]) -> list[str]:
    """Silent when nothing completed, which is a reason of its own."""
    support = metrics["percentile_support"]
    short = [name for name in percentiles if not support[name]["supported"]]
    if not short or not metrics["completed"]:
        return []
    needs = ", ".join(f"{name} needs {support[name]['required_requests']}" for name in short)
    return [f"{TOO_FEW}: {needs}; {metrics['completed']} completed (see --num-requests)."]


def _short_window(metrics: Mapping[str, Any]) -> list[str]:
    """What arrives over time must stay for less time than the window lasts, or it shows the filling alone."""
    median_s, arrival_span_s = stay_s(metrics), metrics["arrival_span_s"]
    if median_s is None or not arrival_span_s:
        return []
    window_s = (1 - STEADY_START_FRACTION) * arrival_span_s
    if window_s >= median_s:
        return []
    what = "request" if metrics.get("sessions") is None else "session"
    return [
        f"The steady window is too short: it lasts {window_s:.3g} s, and the median {what} stays for "
        f"{median_s:.3g} s, so the engine never got past filling up; run more requests (see --num-requests), "
        "or a lower rate if the engine cannot keep up."
    ]


def _saturation(metrics: Mapping[str, Any]) -> list[str]:
    """A loop without idle time stamps tokens when it gets to them, not when they arrive."""
    busy_share, window_s = metrics.get("client_loop_busy_share"), metrics.get("client_window_s")
    if busy_share is None or window_s is None or window_s < MIN_LOOP_WINDOW_S or busy_share <= MAX_LOOP_BUSY_SHARE:
        return []
    return [
        f"The client was saturated: its event loop was busy {busy_share:.0%} of {window_s:.1f} s (at most "
        f"{MAX_LOOP_BUSY_SHARE:.0%}), so it measured itself; use more --client-processes, or ask for less."
    ]
