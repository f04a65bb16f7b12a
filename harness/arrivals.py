"""When requests arrive: pure functions that draw a whole schedule before the run starts.

Each returns int64 [num_requests] of nanoseconds since the start of the schedule, never decreasing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neobench.harness.request import PromptRequest
from neobench.harness.spec import ArrivalSpec

Offsets = npt.NDArray[np.int64]


def poisson(rate: float, num_requests: int, rng: np.random.Generator) -> Offsets:
    """A true Poisson process of `rate` requests per second: independent exponential gaps, one before request 0.

    It is not rescaled to last num_requests / rate exactly, which would make the gaps depend on each other.
    """
    return _to_ns(np.cumsum(rng.exponential(1 / rate, num_requests)))


def constant(rate: float, num_requests: int) -> Offsets:
    """One request every 1 / rate seconds, the first at once; each rounded from its exact instant: no drift."""
    return _to_ns(np.arange(num_requests) / rate)


def gamma(rate: float, burstiness: float, num_requests: int, rng: np.random.Generator) -> Offsets:
    """Independent gaps of a gamma distribution with shape `burstiness` and mean 1 / rate; shape 1 is Poisson.

    Gaps vary by 1 / sqrt(burstiness) of their mean. Not rescaled either.
    """
    return _to_ns(np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), num_requests)))


def ramp(offsets_ns: Offsets, rate: float, end_rate: float) -> Offsets:
    """A schedule drawn at the mean of both rates, warped so that its rate goes linearly from `rate` to `end_rate`.

    Time change of a point process: with the cumulative rate L(t) = rate t + (end_rate - rate) t^2 / 2T, each instant of
    the steady schedule moves to where L has the count that was expected at it. T is when all requests are expected;
    from there on `end_rate` stays.
    """
    mean_rate = (rate + end_rate) / 2
    expected = offsets_ns * (mean_rate / 1e9)
    ramp_s = len(offsets_ns) / mean_rate
    slope = (end_rate - rate) / ramp_s
    inside = np.minimum(expected, len(offsets_ns))
    ramped_s = 2 * inside / (rate + np.sqrt(np.maximum(0.0, rate**2 + 2 * slope * inside)))
    return _to_ns(ramped_s + (expected - inside) / end_rate)


def all_at_once(num_requests: int) -> Offsets:
    return np.zeros(num_requests, dtype=np.int64)


def trace(arrival_ns: Sequence[int | None], speed: float) -> Offsets:
    """The recorded arrivals, `speed` times as fast. Raises ValueError when a request has none."""
    if any(instant is None for instant in arrival_ns):
        raise ValueError("arrival.kind 'trace' needs requests of a workload that knows when they arrived")
    return np.rint(np.array(arrival_ns, dtype=np.int64) / speed).astype(np.int64)


def offsets_of_ns(arrival: ArrivalSpec, requests: Sequence[PromptRequest], seed: int) -> Offsets:
    """The schedule of these requests: their own arrivals for kind trace, else drawn. Raises ValueError, see trace().

    Sessions are what arrives: a later turn has the offset of its first, before which it cannot be due.
    """
    if arrival.kind == "trace":
        return trace([request.arrival_ns for request in requests], arrival.speed or 1.0)
    arrives = np.array([request.turn == 0 for request in requests], dtype=np.bool_)
    return np.take(draw_offsets_ns(arrival, int(arrives.sum()), seed), np.cumsum(arrives) - 1)


def draw_offsets_ns(arrival: ArrivalSpec, num_requests: int, seed: int) -> Offsets:
    """The schedule of a spec of any kind but trace; the same seed gives the same one on every machine."""
    if arrival.rate is None:
        return all_at_once(num_requests)
    if arrival.end_rate is None:
        return _draw_steady(arrival, arrival.rate, num_requests, seed)
    steady_ns = _draw_steady(arrival, (arrival.rate + arrival.end_rate) / 2, num_requests, seed)
    return ramp(steady_ns, arrival.rate, arrival.end_rate)


def _draw_steady(arrival: ArrivalSpec, rate: float, num_requests: int, seed: int) -> Offsets:
    if arrival.kind == "constant":
        return constant(rate, num_requests)
    rng = np.random.default_rng(seed)
    if arrival.burstiness is not None:
        return gamma(rate, arrival.burstiness, num_requests, rng)
    return poisson(rate, num_requests, rng)


def _to_ns(seconds: npt.NDArray[np.float64]) -> Offsets:
    return np.rint(seconds * 1e9).astype(np.int64)
