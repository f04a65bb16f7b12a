"""A run over time in one line of text each: what a sparkline shows of TTFT, throughput and requests in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neobench.results.columns import RecordColumns
from neobench.results.record import Outcome

BARS = "▁▂▃▄▅▆▇█"
GAP = " "


def sparkline(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    """One character a value, from 0 to the highest; a gap where it is NaN."""
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    return "".join(_bar(value, highest) for value in values)


def _bar(value: float, highest: float) -> str:
    if not math.isfinite(value):
        return GAP
    share = value / highest if highest > 0 else 0.0
    return BARS[max(0, min(int(share * len(BARS)), len(BARS) - 1))]


def ttft_over_time_ms(columns: RecordColumns, bins: int) -> npt.NDArray[np.float64]:
    """[bins] median TTFT of completed requests by their arrivals; NaN where none arrived."""
    completed = ~columns.warmup & columns.ended_with(Outcome.OK)
    scheduled_ms = columns.instants_ms("scheduled_ns")[completed]
    ttft_ms = columns.instants_ms("first_token_ns")[completed] - scheduled_ms
    bin_of = _bins(scheduled_ms, _last(scheduled_ms), bins)
    medians = [np.nanmedian(found) if len(found := _known(ttft_ms[bin_of == one])) else np.nan for one in range(bins)]
    return np.array(medians, dtype=np.float64)


def output_throughput_over_time(columns: RecordColumns, bins: int) -> npt.NDArray[np.float64]:
    """[bins] output tokens per second of completed requests, by the arrival of their events; an event of a request
    counts for its tokens / its events.
    """
    completed = ~columns.warmup & columns.ended_with(Outcome.OK)
    events = np.diff(columns.token_offsets)
    weights = np.where(completed, columns.integers("output_tokens") / np.maximum(events, 1), 0.0)
    event_ms = columns.token_ns / 1e6
    of_event = np.repeat(weights, events)
    counted = of_event > 0
    end_ms = _last(event_ms[counted])
    tokens = np.bincount(_bins(event_ms[counted], end_ms, bins), weights=of_event[counted], minlength=bins)
    per_second: npt.NDArray[np.float64] = tokens / (end_ms / bins / 1e3) if end_ms > 0 else np.full(bins, np.nan)
    return per_second


def in_flight_over_time(columns: RecordColumns, bins: int) -> npt.NDArray[np.float64]:
    """[bins] measured requests issued and not ended, on average over each bin."""
    issued_ms = columns.instants_ms("issued_ns")[~columns.warmup]
    ended_ms = columns.instants_ms("ended_ns")[~columns.warmup]
    flown = ~np.isnan(issued_ms) & ~np.isnan(ended_ms)
    edges = np.linspace(0, _last(ended_ms[flown]), bins + 1)[:, None]
    # Time flown before each edge, summed over the requests; its steps are the time flown in each bin.
    before = np.clip(edges, issued_ms[flown], np.maximum(ended_ms, issued_ms)[flown]) - issued_ms[flown]
    width_ms = float(edges[1, 0])
    counts: npt.NDArray[np.float64] = np.diff(before.sum(axis=1)) / width_ms if width_ms > 0 else np.full(bins, np.nan)
    return counts


def _bins(instants_ms: npt.NDArray[np.float64], end_ms: float, bins: int) -> npt.NDArray[np.int64]:
    share = instants_ms / end_ms if end_ms > 0 else np.zeros_like(instants_ms)
    return np.clip((share * bins).astype(np.int64), 0, bins - 1)


def _last(instants_ms: npt.NDArray[np.float64]) -> float:
    return float(instants_ms.max()) if len(instants_ms) else 0.0


def _known(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values[~np.isnan(values)]
