"""Whether requests pile up while they arrive: an engine slower than its load has no latency of its own to measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neobench.results.columns import BoolArray, RecordColumns
from neobench.results.sessions import arrivals, stay_s

GROWTH = 1.5
FEWEST_MORE = 10
"""Of growth by a few requests, chance is as likely a cause as the engine."""


def backlog(columns: RecordColumns, measured: BoolArray) -> dict[str, float | None]:
    """Mean number of requests between their scheduled arrival and their end, in two quarters of the arrival span.

    The second and the last; in the first the engine fills. None where the requests all arrive at once.
    """
    issued = measured & ~np.isnan(columns.instants_ms("issued_ns"))
    scheduled_ms, ended_ms = columns.instants_ms("scheduled_ns")[issued], columns.instants_ms("ended_ns")[issued]
    arrival_ms = scheduled_ms[arrivals(columns)[issued]]
    span_ms = float(arrival_ms.max()) if len(arrival_ms) else 0.0
    if not span_ms or np.ptp(arrival_ms) == 0:
        return {"mean_in_flight_early": None, "mean_in_flight_late": None}

    def mean_within(start_ms: float, end_ms: float) -> float:
        # One without an end, as an interrupted one may be, was in flight to the last.
        stay_ms = np.minimum(np.nan_to_num(ended_ms, nan=np.inf), end_ms) - np.maximum(scheduled_ms, start_ms)
        return float(stay_ms.clip(min=0).sum() / (end_ms - start_ms))

    return {
        "mean_in_flight_early": mean_within(span_ms / 4, span_ms / 2),
        "mean_in_flight_late": mean_within(3 * span_ms / 4, span_ms),
    }


def growing_backlog(metrics: Mapping[str, Any]) -> list[str]:
    """A warning, if there are half as many again in the last quarter as in the second, and 10 more at least.

    None of sessions that last longer than the first quarter: their number still grows in the second by itself.
    """
    early, late = metrics["mean_in_flight_early"], metrics["mean_in_flight_late"]
    if early is None or late <= max(GROWTH * early, early + FEWEST_MORE):
        return []
    if metrics.get("sessions") is not None and 4 * (stay_s(metrics) or 0.0) > metrics["arrival_span_s"]:
        return []
    return [
        f"Requests piled up: {early:.3g} were in flight in the second quarter of the arrivals and {late:.3g} in the "
        "last, on average. The engine is slower than this rate, so latencies grow with the length of the run."
    ]
