"""Runs whose requests are turns of sessions: what arrives, how long a session lasts, first turns against later ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neobench.results.columns import BoolArray, Float64Array, RecordColumns
from neobench.results.record import Outcome


def arrivals(columns: RecordColumns) -> BoolArray:
    """[num_requests] True for requests that arrive by the schedule; later turns follow from the answers before them."""
    return np.equal(columns.optional_integers("turn", absent=0), 0)


def session_figures(
    columns: RecordColumns, measured: BoolArray, ttft_ms: Float64Array, duration_s: float | None
) -> dict[str, Any] | None:
    """What docs/metrics.md defines under `sessions`; None where requests are on their own.

    `ttft_ms` [num_requests] from the scheduled arrival; `duration_s` of the run.
    """
    numbers = columns.optional_integers("session", absent=-1)
    of_session = measured & (numbers >= 0)
    if not of_session.any():
        return None
    # Another tool's rows, or a damaged file's, need not count from 0.
    _, session = np.unique(numbers[of_session], return_inverse=True)
    num_sessions = int(session.max()) + 1
    ended_ok = columns.ended_with(Outcome.OK)[of_session]
    is_complete = np.bincount(session, ~ended_ok, num_sessions) == 0
    start_ms, end_ms = np.full(num_sessions, np.inf), np.full(num_sessions, -np.inf)
    np.minimum.at(start_ms, session, columns.instants_ms("scheduled_ns")[of_session])
    np.maximum.at(end_ms, session, np.nan_to_num(columns.instants_ms("ended_ns")[of_session], nan=-np.inf))
    durations_s = (end_ms - start_ms)[is_complete] / 1e3
    completed = of_session & columns.ended_with(Outcome.OK)
    opens = arrivals(columns)
    return {
        "num_sessions": num_sessions,
        "completed_sessions": int(is_complete.sum()),
        "session_throughput": int(is_complete.sum()) / duration_s if duration_s else None,
        "mean_turns": float(np.bincount(session).mean()),
        "median_session_s": _median(durations_s),
        "median_first_turn_ttft_ms": _median(ttft_ms[completed & opens]),
        "median_later_turn_ttft_ms": _median(ttft_ms[completed & ~opens]),
    }


def _median(values: Float64Array) -> float | None:
    return float(np.median(values)) if len(values) else None


def stay_s(metrics: Mapping[str, Any]) -> float | None:
    """How long a median user stays: through a request, or a session with its thinking."""
    sessions = metrics.get("sessions")
    if sessions is not None and sessions["median_session_s"] is not None:
        return float(sessions["median_session_s"])
    median_ms = metrics["median_e2el_ms"]
    return None if median_ms is None else median_ms / 1e3
