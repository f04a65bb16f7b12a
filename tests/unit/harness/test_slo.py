"""Objectives: what is understood, what is refused, and when a measurement may end early."""

from __future__ import annotations

import math
import random

import pytest

from neobench.harness.slo import SloError, parse_slo, parse_slos, unmet_in_summary
from neobench.harness.slo_watch import SloWatch, look_sizes
from neobench.results.columns import RecordColumns
from neobench.results.metrics import summarise
from neobench.results.record import Outcome, RequestRecord


def record(index: int, ttft_ms: float, outcome: Outcome = Outcome.OK, *, warmup: bool = False) -> RequestRecord:
    return RequestRecord(
        index=index,
        warmup=warmup,
        prompt_tokens=4,
        requested_output_tokens=3,
        output_tokens=3,
        scheduled_ns=index * 1_000_000,
        issued_ns=index * 1_000_000,
        first_token_ns=index * 1_000_000 + round(ttft_ms * 1e6),
        token_ns=[],
        ended_ns=index * 1_000_000 + round((ttft_ms + 20) * 1e6),
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("text", "key", "limit", "percentile"),
    [
        ("p99_ttft<2s", "p99_ttft_ms", 2000.0, 99.0),
        (" p99_tpot_ms <= 100 ", "p99_tpot_ms", 100.0, 99.0),
        ("p99.9_e2el<1.5s", "p99.9_e2el_ms", 1500.0, 99.9),
        ("median_ttft<200ms", "median_ttft_ms", 200.0, 50.0),
        ("mean_itl<30ms", "mean_itl_ms", 30.0, None),
        ("p99_itl<30ms", "p99_itl_ms", 30.0, None),
        ("request_throughput>=95%", "request_throughput", 0.95, None),
        ("output_throughput>1e3", "output_throughput", 1000.0, None),
    ],
)
def test_syntax(text: str, key: str, limit: float, percentile: float | None) -> None:
    slo = parse_slo(text)
    assert (slo.key, slo.limit, slo.percentile) == (key, pytest.approx(limit), percentile)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast please", "write e.g. p99_ttft<2s"),
        ("p99_tft<2s", "did you mean p99_ttft"),
        ("p99_ttft<2", "say the unit"),
        ("p99_ttft>2s", "bounded from above; write p99_ttft<2s"),
        ("p99_ttft<0s", "no time"),
        ("p100_ttft<1s", "unknown figure"),
        ("request_throughput<4", "bounded from below"),
        ("request_throughput>4s", "per second"),
        ("output_throughput>90%", "share"),
        ("p99_ttft<95%", "say the unit"),
    ],
)
def test_what_cannot_be_understood(text: str, message: str) -> None:
    with pytest.raises(SloError, match=message):
        parse_slo(text)


def test_lists() -> None:
    with pytest.raises(SloError, match="say what has to be met"):
        parse_slos([])
    with pytest.raises(SloError, match="two limits"):
        parse_slos(["p99_ttft<2s", "p99_ttft_ms<3000"])


def test_every_known_figure_is_in_a_summary() -> None:
    from neobench.harness.slo import LOWER_BOUNDED, known_keys

    summary = summarise(RecordColumns([record(0, 5)]), request_rate=1.0)
    assert set(known_keys()) - set(summary) <= {"request_goodput"}
    assert set(LOWER_BOUNDED) - set(summary) <= {"request_goodput"}


def test_figures_of_a_whole_run() -> None:
    slos = parse_slos(["mean_ttft<10ms", "request_throughput>=95%"])
    summary = {"mean_ttft_ms": 12.0, "request_throughput": 9.0, "offered_request_rate": 10.0}
    assert unmet_in_summary(slos, summary) == [
        "mean_ttft<10ms: mean_ttft_ms is 12",
        "request_throughput>=95%: request_throughput is 9",
    ]
    assert not unmet_in_summary(slos, {**summary, "mean_ttft_ms": 9.0, "request_throughput": 9.5})
    assert unmet_in_summary(slos, {**summary, "mean_ttft_ms": None})[0].endswith("is absent")


def watch(ttfts_ms: list[float], *slos: str, total: int | None = None) -> tuple[SloWatch, int | None]:
    """The watch, and after how many records it decided."""
    decided: list[int] = []
    number = 0
    watching = SloWatch(parse_slos(slos), total or len(ttfts_ms), lambda: decided.append(number))
    for index, ttft_ms in enumerate(ttfts_ms):
        number = index + 1
        watching.see(record(index, ttft_ms))
    assert len(decided) <= 1
    return watching, decided[0] if decided else None


def test_a_hopeless_measurement_ends_at_the_first_look() -> None:
    watching, after = watch([3000.0] * 1000, "p99_ttft<2s")
    assert after == 11, "of 1000, 10 may be over"
    assert watching.decision is not None
    assert (watching.decision.meets, watching.decision.basis) == (False, "certain")
    watching, after = watch([3000.0, *[5.0] * 9] * 1000, "p99_ttft<2s")
    assert after == 39, "4 of the first 39 = 10000 / 2^8 refute it: their chance is 0.0006, less than 0.01 / 9"
    assert watching.decision is not None
    assert watching.decision.basis == "binomial"


def test_enough_that_met_it_end_it_too() -> None:
    watching, after = watch([5.0 + index % 7 for index in range(4000)], "p99_ttft<2s")
    assert after == 1000
    assert watching.decision is not None
    assert watching.decision.meets
    assert watch([5.0] * 4000, "p99_ttft<2s", "mean_ttft<1s")[1] is None, "a mean is known at the end alone"


def test_latency_that_grows_towards_the_limit_is_no_proof() -> None:
    assert watch([index * 0.9 for index in range(4000)], "p99_ttft<2s")[1] == 2264, "the 41st over 2 s"
    assert watch([index * 0.1 for index in range(4000)], "p99_ttft<2s")[1] == 1000


def test_a_short_measurement_is_counted_to_its_end() -> None:
    watching, after = watch([3000.0, *[5.0] * 99], "p99_ttft<2s")
    assert after is None
    assert watching.unmet() == []
    assert watching.percentiles_ms() == {"p99_ttft_ms": 5.0}
    watching, after = watch([3000.0, *[5.0] * 98, 2000.0], "p99_ttft<2s")
    assert after == 100
    assert watching.unmet() == ["p99_ttft<2s: 2 of 100 requests are over"]


def test_failures_are_infinitely_late_and_warmup_and_interruption_do_not_count() -> None:
    watching = SloWatch(parse_slos(["p99_ttft<2s"]), 10, lambda: None)
    watching.see(record(0, 5, warmup=True))
    watching.see(record(0, 5, Outcome.INTERRUPTED))
    watching.see(record(12, 5))
    assert math.isnan(watching.percentiles_ms()["p99_ttft_ms"])
    watching.see(record(3, 5, Outcome.HTTP_ERROR))
    assert watching.percentiles_ms()["p99_ttft_ms"] == math.inf
    assert watching.decision is not None


@pytest.mark.parametrize(("share_over", "may_meet"), [(0.01, False), (0.0099, True)])
def test_wrong_early_ends_are_as_rare_as_claimed(share_over: float, may_meet: bool) -> None:
    """At the edge itself, where they are most frequent: at most 1 % of measurements, of each kind."""
    rng = random.Random(7)
    wrong = 0
    for _ in range(300):
        values = [3000.0 if rng.random() < share_over else 5.0 for _ in range(2000)]
        decision = watch(values, "p99_ttft<2s")[0].decision
        wrong += decision is not None and decision.basis == "binomial" and decision.meets is not may_meet
    assert wrong <= 9, "0.01 of 300 are 3; 9 or more would come once in 250"


def test_look_sizes() -> None:
    assert look_sizes(1000) == [31, 62, 125, 250, 500]
    assert look_sizes(20) == []


@pytest.mark.parametrize(("independent", "needed"), [(True, 31), (False, 51)])
def test_turns_of_sessions_end_a_measurement_only_when_it_is_certain(independent: bool, needed: int) -> None:
    """50 of 500 may be over; of independent requests the first 31 tell."""
    watch = SloWatch(parse_slos(["p90_ttft<1s"]), 500, lambda: None, independent=independent)
    seen = 0
    while watch.decision is None:
        watch.see(record(seen, 2000.0))
        seen += 1
    assert (seen, watch.decision.meets) == (needed, False)
