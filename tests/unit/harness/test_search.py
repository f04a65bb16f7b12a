"""The search against simulated systems."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.harness.search import SearchEndedError, SearchResult, SearchSettings, find_highest_rate


@dataclass(frozen=True)
class Met:
    meets: bool


def search(meets: Callable[[float, int], bool], **changes: float | int) -> SearchResult:
    asked: set[tuple[float, int]] = set()

    async def measure(rate: float, repeat: int) -> Met:
        assert (rate, repeat) not in asked, "nothing is measured twice"
        asked.add((rate, repeat))
        return Met(meets(rate, repeat))

    fields = {"start_rate": 1.0, "min_rate": 0.01, "max_rate": 1000.0, **changes}
    return asyncio.run(find_highest_rate(measure, SearchSettings(**fields)))  # type: ignore[arg-type]


@given(st.floats(0.02, 900), st.floats(0.01, 1000), st.sampled_from([0.02, 0.05, 0.2]))
def test_a_sharp_threshold_lies_in_the_bracket(threshold: float, start_rate: float, tolerance: float) -> None:
    result = search(lambda rate, _: rate <= threshold, start_rate=start_rate, tolerance=tolerance)
    assert result.status == "found"
    assert result.low is not None
    assert result.high is not None
    assert result.low.rate <= threshold < result.high.rate
    # Rates have four digits.
    assert result.high.rate <= result.low.rate * (1 + tolerance) * 1.001
    assert (result.low.met, result.low.measured) == (3, 3)
    assert (result.high.met, result.high.measured) == (0, 3)
    assert not result.contradictions
    assert len(result.rates) < 40


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 100), st.sampled_from([0.02, 0.1, 0.4]), st.sampled_from([3, 5]), st.integers(0, 10**6))
def test_a_noisy_threshold_lies_in_the_bracket_as_often_as_claimed(
    threshold: float, noise: float, repeats: int, seed: int
) -> None:
    """Rates near the threshold meet the objectives now and then: with probability 1/2 at the threshold itself."""
    rng = random.Random(seed)

    def meets(rate: float, _: int) -> bool:
        return rng.random() < 1 / (1 + math.exp(min(50.0, math.log(rate / threshold) / noise)))

    results = [search(meets, repeats=repeats, start_rate=threshold * rng.uniform(0.3, 3)) for _ in range(120)]
    wrong = [
        (result.low is not None and result.low.rate > threshold)
        + (result.high is not None and result.high.rate < threshold)
        for result in results
    ]
    claimed = sum(result.error_bound for result in results) / len(results)
    assert sum(wrong) / len(results) <= claimed + 0.05
    for result in results:
        assert result.low is None or result.low.met == result.low.measured == repeats
        assert result.high is None or (result.high.met, result.high.measured) == (0, repeats)


def test_repeats_that_disagree_move_the_ends_apart() -> None:
    # Between 9 and 11 requests/s every second repeat is lost.
    result = search(lambda rate, repeat: rate < 9 or (rate < 11 and repeat % 2 == 0), tolerance=0.02)
    assert result.low is not None
    assert result.high is not None
    assert result.low.rate < 9
    assert result.high.rate >= 11
    assert any(0 < entry.met < entry.measured for entry in result.rates), "what disagreed is shown"
    assert not result.contradictions


def test_nothing_fails() -> None:
    result = search(lambda _rate, _repeat: True, max_rate=50)
    assert (result.status, result.high) == ("above_max", None)
    assert result.low is not None
    assert (result.low.rate, result.low.met) == (50, 3)


def test_nothing_passes() -> None:
    result = search(lambda _rate, _repeat: False)
    assert (result.status, result.low) == ("below_min", None)
    assert result.high is not None
    assert (result.high.rate, result.high.measured) == (0.01, 3)


def test_a_rate_that_fails_below_the_answer_is_told_of() -> None:
    result = search(lambda rate, _: 4 < rate < 7, start_rate=6.9)
    assert result.contradictions == ["missed at 3.45 req/s in 1 of 1, met above it at 6.9"]


def test_a_rate_that_passes_above_the_answer_is_told_of() -> None:
    result = search(lambda rate, _: rate < 3 or 7 < rate < 9, start_rate=4.0)
    assert result.high is not None
    assert result.high.rate <= 4
    assert result.contradictions == [f"met at 8 req/s in 1 of 1, missed below it at {result.high.rate:g}"]


@pytest.mark.parametrize("status", ["client_limit", "engine_failed", "interrupted"])
def test_an_end_before_its_time_tells_what_is_known(status: str) -> None:
    def meets(rate: float, _: int) -> bool:
        if 4 < rate < 8:
            raise SearchEndedError(status, "enough")  # type: ignore[arg-type]
        return rate < 6

    result = search(meets)
    assert (result.status, result.reason) == (status, "enough")
    assert result.low is not None
    assert result.high is not None
    assert (result.low.rate, result.low.measured) == (4, 1)
    assert (result.high.rate, result.high.measured) == (8, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"start_rate": 2000.0}, "must ascend"), ({"factor": 1.0}, "factor"), ({"repeats": 0}, "repeats at least 1")],
)
def test_settings_that_cannot_work(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(lambda _rate, _repeat: True, **changes)
