import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.harness.arrivals import all_at_once, constant, draw_offsets_ns, gamma, offsets_of_ns, poisson
from neobench.harness.request import PromptRequest
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


@settings(deadline=None)
@given(rates, st.floats(0.1, 50), seeds)
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(rate, burstiness, seed):
    count = 20_000
    gaps_s = np.diff(gamma(rate, burstiness, count, np.random.default_rng(seed)), prepend=0) / 1e9
    variation = 1 / math.sqrt(burstiness)
    assert gaps_s.mean() * rate == pytest.approx(1, abs=6 * variation / math.sqrt(count))
    # The error of an estimated variation grows with the kurtosis of the gaps, 6 / burstiness.
    error = variation * math.sqrt((0.5 + 2 / burstiness) / count)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(variation, abs=8 * error)


def test_a_constant_schedule_ramped_by_hand():
    """From 1 to 3 requests/s over 8 of them, 4 s: L(t) = t + t^2 / 4, so the k-th comes at 2 (sqrt(1 + k) - 1)."""
    arrival = ArrivalSpec(kind="constant", rate=1, end_rate=3)
    expected_s = [2 * (math.sqrt(1 + k) - 1) for k in range(8)]
    assert draw_offsets_ns(arrival, 8, seed=0) / 1e9 == pytest.approx(expected_s, abs=1e-8)
    assert arrival.expected_span_s(8) == 4


@given(rates, rates, counts, seeds)
def test_a_ramp_is_ordered(rate, end_rate, count, seed):
    offsets_ns = draw_offsets_ns(ArrivalSpec(rate=rate, end_rate=end_rate), count, seed)
    assert offsets_ns[0] >= 0
    assert (np.diff(offsets_ns) >= 0).all()


@pytest.mark.parametrize(("rate", "end_rate"), [(2, 20), (20, 2)])
def test_the_rate_of_a_ramp_at_both_ends(rate, end_rate):
    offsets_s = draw_offsets_ns(ArrivalSpec(rate=rate, end_rate=end_rate), 40_000, seed=3) / 1e9
    span_s = 2 * 40_000 / (rate + end_rate)
    tenth_s = span_s / 10
    near_start = np.count_nonzero(offsets_s < tenth_s) / tenth_s
    near_end = np.count_nonzero((offsets_s >= span_s - tenth_s) & (offsets_s < span_s)) / tenth_s
    assert near_start == pytest.approx(rate + (end_rate - rate) / 20, rel=0.1)
    assert near_end == pytest.approx(end_rate - (end_rate - rate) / 20, rel=0.1)


def test_a_trace_keeps_its_own_arrivals_and_is_played_faster():
    requests = [
        PromptRequest.of([1], index=index, output_tokens=1, arrival_ns=arrival_ns)
        for index, arrival_ns in enumerate([0, 500, 500, 2_001])
    ]
    assert offsets_of_ns(ArrivalSpec(kind="trace"), requests, seed=1).tolist() == [0, 500, 500, 2_001]
    assert offsets_of_ns(ArrivalSpec(kind="trace", speed=2), requests, seed=1).tolist() == [0, 250, 250, 1_000]
    assert offsets_of_ns(ArrivalSpec(kind="trace", speed=0.5), requests, seed=1).tolist() == [0, 1_000, 1_000, 4_002]
    drawn = offsets_of_ns(ArrivalSpec(rate=4), requests, seed=7)
    assert (drawn == draw_offsets_ns(ArrivalSpec(rate=4), 4, seed=7)).all()
    with pytest.raises(ValueError, match="knows when they arrived"):
        offsets_of_ns(ArrivalSpec(kind="trace"), [PromptRequest.of([1], index=0, output_tokens=1)], seed=1)
