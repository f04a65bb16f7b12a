"""How long the requests of the modelled queue are served."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import repeat

EXPONENTIAL = "exponential"
DETERMINISTIC = "deterministic"
LAWS = (EXPONENTIAL, DETERMINISTIC)
DEFAULT_MEAN_MS = 10.0


def service_times_ns(law: str, mean_ms: float, seed: int) -> Iterator[int]:
    """One request after another, without end; the same seed gives the same ones. `law` is one of LAWS."""
    mean_ns = mean_ms * 1e6
    if law == DETERMINISTIC:
        return repeat(round(mean_ns))
    draws = random.Random(seed)
    return (round(draws.expovariate(1 / mean_ns)) for _ in repeat(None))
