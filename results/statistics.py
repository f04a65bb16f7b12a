"""How far two sets of repeated runs differ, and how sure that is. docs/compare-and-gate.md has the reasoning.

Everything works on natural logarithms of one figure a run, because noise of speeds and latencies multiplies.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

NUM_RESAMPLES = 4_000
MAX_EXACT_RUNS = 24
"""Both sides together; the exact distribution of the rank test is counted up to here."""


@dataclass(frozen=True)
class Difference:
    """The mean log of one side minus that of the other, with a two-sided interval."""

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: int


def difference(base: Float64Array, current: Float64Array, *, error: float, seed: int) -> Difference | None:
    """Of [n] and [m] logs, n and m at least 2; None with fewer, since one run says nothing of its noise.

    Each end is wrong with probability `error` at most, and is the wider of two: Student's t with pooled variance, and
    the percentile bootstrap over runs. The bootstrap alone is too narrow for few runs (Hesterberg 2015, The American
    Statistician 69:4), Student's t alone takes skewed noise for symmetric.
    """
    if min(len(base), len(current)) < 2:
        return None
    freedom = len(base) + len(current) - 2
    squares = float(((base - base.mean()) ** 2).sum() + ((current - current.mean()) ** 2).sum())
    standard_error = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(current)))
    rng = np.random.default_rng(seed)
    resampled = _resampled_means(current, rng) - _resampled_means(base, rng)
    return _difference(float(current.mean() - base.mean()), standard_error, freedom, resampled, error)


def paired_difference(base: Float64Array, current: Float64Array, *, error: float, seed: int) -> Difference | None:
    """As `difference`, of runs that belong together turn by turn ([n] and [n]): what both share cancels."""
    steps = current - base
    if len(steps) < 2:
        return None
    standard_error = float(steps.std(ddof=1)) / math.sqrt(len(steps))
    resampled = _resampled_means(steps, np.random.default_rng(seed))
    return _difference(float(steps.mean()), standard_error, len(steps) - 1, resampled, error)


def _resampled_means(logs: Float64Array, rng: np.random.Generator) -> Float64Array:
    chosen = rng.integers(len(logs), size=(NUM_RESAMPLES, len(logs)))
    means: Float64Array = logs[chosen].mean(axis=1)
    return means


def _difference(
    estimate: float, standard_error: float, freedom: int, resampled: Float64Array, error: float
) -> Difference:
    reach = student_t_quantile(1 - error, freedom) * standard_error
    low, high = np.quantile(resampled, (error, 1 - error))
    return Difference(
        estimate, min(estimate - reach, float(low)), max(estimate + reach, float(high)), standard_error, freedom
    )


def detectable(standard_error: float, freedom: int, *, error: float, power: float) -> float:
    """The smallest true difference of logs that this noise lets tell from none with probability `power`.

    (t(1 - error) + t(power)) SE: the interval then excludes no change.
    """
    return (student_t_quantile(1 - error, freedom) + student_t_quantile(power, freedom)) * standard_error


def student_t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t with a whole number of degrees of freedom, for probabilities from 0.5 to below 1."""
    assert 0.5 <= probability < 1, probability
    return _student_t_quantile(probability, freedom)


@functools.lru_cache(maxsize=1024)
def _student_t_quantile(probability: float, freedom: int) -> float:
    low, high = 0.0, 1.0
    while _student_t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if _student_t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_t_cdf(t: float, freedom: int) -> float:
    """For t >= 0, by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for index in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * index / (index + 1)
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return (1 + inside) / 2


def mann_whitney(base: Float64Array, current: Float64Array) -> float:
    """P of ranks as high as those of `current` or higher, were both sides the same; one-sided.

    Exact by counting rank sums without ties up to 24 runs, the normal approximation with its correction for
    continuity and ties otherwise.
    """
    above = (current[:, None] > base[None, :]).sum() + 0.5 * (current[:, None] == base[None, :]).sum()
    n, m = len(base), len(current)
    both = np.concatenate((base, current))
    _, ties = np.unique(both, return_counts=True)
    if n + m <= MAX_EXACT_RUNS and len(ties) == n + m:
        return _share_of_rank_sums(n, m, round(float(above)))
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return 0.5 * math.erfc((float(above) - n * m / 2 - 0.5) / math.sqrt(2 * variance))


@functools.lru_cache(maxsize=4096)
def _share_of_rank_sums(n: int, m: int, above: int) -> float:
    """P(U >= above), U being how many of the n m pairs have the current run above the base run."""
    counts = _rank_sum_counts(n, m)
    return sum(counts[above:]) / sum(counts)


@functools.lru_cache(maxsize=1024)
def _rank_sum_counts(n: int, m: int) -> tuple[int, ...]:
    """[n m + 1] orders of n and m runs for each U, by Mann and Whitney's recurrence (1947)."""
    if n == 0 or m == 0:
        return (1,)
    # The highest run is one of the current side, which is above all n, or one of the base side.
    with_current = [0] * n + list(_rank_sum_counts(n, m - 1))
    with_base = _rank_sum_counts(n - 1, m)
    return tuple(one + other for one, other in itertools.zip_longest(with_current, with_base, fillvalue=0))


def sign_flips(steps: Float64Array) -> float:
    """P of paired steps that add up to as much or more, were each as likely of the other sign; one-sided.

    Exact up to 16 pairs; beyond, of 65,536 signs drawn with a fixed seed.
    """
    if len(steps) <= 16:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(steps))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(2**16, len(steps)))
    return float((signs @ steps >= steps.sum() - 1e-12).mean())
