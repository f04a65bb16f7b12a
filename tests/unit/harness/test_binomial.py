"""Exact binomial bounds against sums of fractions and published numbers."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobench.harness.binomial import fewest_that_refute, most_that_prove
from neobench.results.metrics import required_requests


def at_most(m: int, n: int, share: Fraction) -> Fraction:
    return sum((comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(m + 1)), Fraction(0))


@given(st.integers(1, 80), st.sampled_from(["3/200", "1/21", "3/25", "1/2"]), st.sampled_from(["1/100", "1/1000"]))
def test_bounds_are_the_exact_ones(n: int, share_text: str, error_text: str) -> None:
    share, error = Fraction(share_text), Fraction(error_text)
    refuting = fewest_that_refute(n, float(share), float(error))
    assert refuting == n + 1 or 1 - at_most(refuting - 1, n, share) <= error
    assert 1 - at_most(refuting - 2, n, share) > error
    proving = most_that_prove(n, float(share), float(error))
    assert proving == -1 or at_most(proving, n, share) <= error
    assert at_most(proving + 1, n, share) > error


@pytest.mark.parametrize(("num_over", "num_requests"), [(0, 459), (1, 662), (2, 838), (10, 2010)])
def test_a_p99_needs_as_many_requests_as_loadgen_asks_for(num_over: int, num_requests: int) -> None:
    assert most_that_prove(num_requests, 0.01, 0.01) == num_over
    assert most_that_prove(num_requests - 1, 0.01, 0.01) == num_over - 1


def test_agrees_with_percentile_support() -> None:
    assert most_that_prove(required_requests(99), 0.01, 0.01) == 0


def test_large_samples_do_not_underflow() -> None:
    assert 1000 < fewest_that_refute(100_000, 0.01, 0.01) < 1100
    assert 900 < most_that_prove(100_000, 0.01, 0.01) < 1000
