"""Exact binomial bounds on how many of n requests may be over a limit, as in Clopper and Pearson (1934)."""

from __future__ import annotations

import functools
import math


def fewest_that_refute(num_requests: int, share: float, error: float) -> int:
    """The smallest m with P(X >= m) <= error for X ~ Binomial(num_requests, share).

    m requests over the limit refute, at this error, that no more than `share` of all requests are. It may be
    num_requests + 1: then no outcome refutes it.
    """
    for m, at_most in enumerate(_cumulative(num_requests, share)):
        if 1 - at_most <= error:
            return min(m + 1, num_requests + 1)
    return num_requests + 1


def most_that_prove(num_requests: int, share: float, error: float) -> int:
    """The largest m with P(X <= m) <= error for X ~ Binomial(num_requests, share); -1: no outcome proves it.

    m requests over the limit or fewer prove, at this error, that less than `share` of all requests are.
    """
    return sum(at_most <= error for at_most in _cumulative(num_requests, share)) - 1


@functools.lru_cache(maxsize=256)
def _cumulative(n: int, share: float) -> tuple[float, ...]:
    """P(X <= k) for k = 0, 1, ... as far as it can be told from 1."""
    if not 0 < share < 1:
        raise ValueError(f"a share lies between 0 and 1, not at {share}")
    log_in, log_out, log_n = math.log(share), math.log1p(-share), math.lgamma(n + 1)
    last = min(n, math.ceil(n * share + 10 * math.sqrt(n * share) + 20))
    total, sums = 0.0, []
    for k in range(last + 1):
        log_ways = log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(log_ways + k * log_in + (n - k) * log_out)
        sums.append(min(total, 1.0))
    return tuple(sums)
