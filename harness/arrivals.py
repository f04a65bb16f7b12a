"""When requests arrive: pure functions that draw a whole schedule before the run starts.

Each returns int64 [num_requests] of nanoseconds since the start of the schedule, never decreasing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def all_at_once(num_requests: int) -> Offsets:
    return np.zeros(num_requests, dtype=np.int64)


def draw_offsets_ns(arrival: ArrivalSpec, num_requests: int, seed: int) -> Offsets:
    """The schedule of a spec; the same seed gives the same one on every machine."""
    if arrival.rate is None:
        return all_at_once(num_requests)
    if arrival.kind == "constant":
        return constant(arrival.rate, num_requests)
    return poisson(arrival.rate, num_requests, np.random.default_rng(seed))


def _to_ns(seconds: npt.NDArray[np.float64]) -> Offsets:
    return np.rint(seconds * 1e9).astype(np.int64)
