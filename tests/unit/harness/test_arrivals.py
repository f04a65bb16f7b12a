import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobench.harness.arrivals import all_at_once, constant, draw_offsets_ns, poisson
from neobench.harness.spec import ArrivalSpec

rates = st.floats(0.01, 10_000)
counts = st.integers(1, 2_000)
seeds = st.integers(0, 2**64 - 1)


@given(rates, counts, seeds)
def test_poisson_is_ordered_integer_and_deterministic(rate, count, seed):
    offsets_ns = poisson(rate, count, np.random.default_rng(seed))
    assert offsets_ns.dtype == np.int64
    assert offsets_ns.shape == (count,)
    assert offsets_ns[0] >= 0
    assert (np.diff(offsets_ns) >= 0).all()
    assert (offsets_ns == poisson(rate, count, np.random.default_rng(seed))).all()


@given(rates, seeds)
def test_poisson_gaps_have_the_mean_and_the_variation_of_an_exponential(rate, seed):
    count = 20_000
    gaps_s = np.diff(poisson(rate, count, np.random.default_rng(seed)), prepend=0) / 1e9
    # Six standard errors: false alarms are rarer than one in 10^8 draws.
    assert gaps_s.mean() * rate == pytest.approx(1, abs=6 / math.sqrt(count))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1, abs=6 / math.sqrt(count))


def test_poisson_is_not_rescaled_to_a_fixed_length():
    lengths_s = [poisson(10, 100, np.random.default_rng(seed))[-1] / 1e9 for seed in range(2_000)]
    # The last arrival of a Poisson process is Gamma(n, 1 / rate): here 10 s with a standard deviation of 1 s.
    assert np.mean(lengths_s) == pytest.approx(10, abs=0.15)
    assert np.std(lengths_s) == pytest.approx(1, abs=0.1)


@given(rates, counts)
def test_constant_does_not_drift(rate, count):
    offsets_ns = constant(rate, count)
    assert offsets_ns[0] == 0
    assert np.abs(offsets_ns - np.arange(count) * 1e9 / rate).max() <= 0.5 + count / rate * 1e-6


def test_all_at_once():
    assert all_at_once(3).tolist() == [0, 0, 0]


def test_a_spec_chooses_its_process():
    assert draw_offsets_ns(ArrivalSpec(kind="constant", rate=4), 3, seed=0).tolist() == [0, 250_000_000, 500_000_000]
    assert draw_offsets_ns(ArrivalSpec(kind="all_at_once"), 2, seed=0).tolist() == [0, 0]
    drawn = draw_offsets_ns(ArrivalSpec(rate=4), 3, seed=7)
    assert (drawn == poisson(4, 3, np.random.default_rng(7))).all()
    assert (drawn != draw_offsets_ns(ArrivalSpec(rate=4), 3, seed=8)).all()
