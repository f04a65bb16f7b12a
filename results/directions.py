"""Which figures of a summary may be compared, in which unit they are, and which way is better."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

LATENCIES = ("ttft", "tpot", "itl", "e2el", "normalized_latency", "ttft_from_issue", "e2el_from_issue")
_LATENCY = re.compile(rf"(mean|median|p\d+(\.\d+)?)_({'|'.join(LATENCIES)})_ms")
_RATES = {
    "request_throughput": "requests/s",
    "request_goodput": "requests/s",
    "output_throughput": "tokens/s",
    "total_token_throughput": "tokens/s",
    "steady_request_throughput": "requests/s",
    "steady_output_throughput": "tokens/s",
}
COMPARED = (
    "request_throughput",
    "output_throughput",
    "request_goodput",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "p99_itl_ms",
    "mean_e2el_ms",
)
"""By `neobench compare`, where no others are asked for."""
GATED = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
"""By `neobench gate`, where no others are asked for: means, whose noise a threshold of few percent can stand."""


class Direction(NamedTuple):
    unit: str
    bigger_is_better: bool


def find_direction(metric: str) -> Direction | None:
    """None for a figure that has no better and worse."""
    if metric in _RATES:
        return Direction(_RATES[metric], True)
    return Direction("ms", False) if _LATENCY.fullmatch(metric) else None


def direction_of(metric: str) -> Direction:
    """Raises ValueError with the nearest known name."""
    found = find_direction(metric)
    if found is None:
        known = [*_RATES, *(f"{kind}_{name}_ms" for name in LATENCIES for kind in ("mean", "median", "p99"))]
        nearest = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{metric!r} is no metric that has a better and a worse; the nearest one is {nearest!r}")
    return found
