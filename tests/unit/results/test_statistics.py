import itertools
import math

import numpy as np
import pytest

from neobench.results import statistics


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    # Tables of Student's t.
    [(0.99, 8, 2.896), (0.975, 7, 2.365), (0.95, 1, 6.314), (0.99, 2, 6.965), (0.995, 30, 2.750), (0.5, 4, 0.0)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(probability, freedom, expected):
    assert statistics.student_t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


def test_rank_test_counts_every_order():
    base, current = np.array([1.0, 2.0, 4.0, 7.0, 9.0]), np.array([3.0, 5.0, 6.0, 8.0, 10.0])
    above = (current[:, None] > base).sum()
    sums = []
    for chosen in itertools.combinations(range(10), 5):
        ranks = np.array(chosen)
        others = np.setdiff1d(np.arange(10), ranks)
        sums.append((ranks[:, None] > others).sum())
    expected = np.mean(np.array(sums) >= above)
    assert statistics.mann_whitney(base, current) == pytest.approx(expected)
    assert statistics.mann_whitney(base, base + 100) == pytest.approx(1 / math.comb(10, 5))
    assert statistics.mann_whitney(np.ones(5), np.ones(5)) == 1.0


def test_rank_test_of_many_runs_is_close_to_the_exact_one():
    rng = np.random.default_rng(3)
    base, current = rng.normal(size=12), rng.normal(0.7, size=12)
    exact = statistics.mann_whitney(base, current)
    # One tie takes the exact way out.
    tied = np.concatenate((base, [5.0, 5.0]))
    assert statistics.mann_whitney(tied, np.concatenate((current, [6.0, 6.0]))) < 0.5
    assert 0 < exact < 0.2


def test_signs_of_all_pairs_alike_are_the_rarest_case():
    assert statistics.sign_flips(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 1 / 32
    assert statistics.sign_flips(-np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 1.0


def test_difference_of_runs_without_noise_is_a_point():
    found = statistics.difference(np.zeros(3), np.full(3, 0.1), error=0.01, seed=0)
    assert found is not None
    assert (found.low, found.estimate, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert statistics.difference(np.zeros(1), np.zeros(5), error=0.01, seed=0) is None


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_interval_covers_the_truth_as_often_as_it_says(runs):
    """Each end is wrong in no more than 1 % of the cases; of 2,000 that is 20 with a deviation of 4.5."""
    rng = np.random.default_rng(runs)
    over = 0
    for seed in range(2_000):
        found = statistics.difference(rng.normal(size=runs), rng.normal(size=runs), error=0.01, seed=seed)
        assert found is not None
        over += found.low > 0
    assert over <= 20 + 3 * 4.5


def test_pairs_cancel_what_both_sides_share():
    rng = np.random.default_rng(0)
    drift = np.linspace(0, 0.5, 6)
    base, current = drift + rng.normal(0, 0.001, 6), drift + 0.02 + rng.normal(0, 0.001, 6)
    paired = statistics.paired_difference(base, current, error=0.01, seed=0)
    apart = statistics.difference(base, current, error=0.01, seed=0)
    assert paired is not None
    assert apart is not None
    assert paired.low > 0.01
    assert apart.low < 0
