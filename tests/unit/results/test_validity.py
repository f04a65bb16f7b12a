import pytest

from neobench.results.columns import RecordColumns
from neobench.results.metrics import summarise
from neobench.results.record import Outcome
from neobench.results.validity import judge


def verdict(records, **options):
    return judge(summarise(RecordColumns(records), request_rate=1.0), **options)


def test_a_clean_run_is_valid(make_record):
    records = [make_record(i, scheduled=100 * i, lag=1, tokens_at=(100 * i + 20,)) for i in range(20)]
    judged = verdict(records)
    assert (judged["valid"], judged["reasons"]) == (True, [])


def test_lag_is_held_against_five_milliseconds_or_one_percent_of_ttft(make_record):
    def lagging(ttft_ms):
        return [make_record(i, scheduled=100 * i, lag=8, tokens_at=(100 * i + ttft_ms,)) for i in range(20)]

    assert not verdict(lagging(700))["valid"]
    assert verdict(lagging(900))["valid"]
    (reason,) = verdict(lagging(50))["reasons"]
    assert "8.0 ms" in reason
    assert "5.0 ms" in reason


def test_load_that_was_not_delivered(make_record):
    records = [make_record(i, scheduled=10 * i, lag=i, tokens_at=(10 * i + 1_985,)) for i in range(21)]
    (reason,) = (reason for reason in verdict(records)["reasons"] if "did not deliver" in reason)
    assert "90.91 of 100.00 requests/s (90.9%" in reason
    assert "slipped by 20.0 ms" in reason


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_requests_is_not_condemned_by_a_ratio(make_record, count):
    records = [make_record(i, scheduled=2 * i, lag=2 * i, tokens_at=(50,)) for i in range(count)]
    assert not any("did not deliver" in reason for reason in verdict(records)["reasons"])


def test_a_window_shorter_than_a_request_stays(make_record):
    def staying(stay_ms):
        return [make_record(i, scheduled=100 * i, tokens_at=(100 * i + stay_ms,)) for i in range(21)]

    assert verdict(staying(1_499))["valid"]
    (reason,) = verdict(staying(1_501))["reasons"]
    assert "it lasts 1.5 s" in reason


def test_a_percentile_asked_for_needs_its_requests_and_a_default_one_only_warns(make_record):
    columns = RecordColumns([make_record(i, scheduled=100 * i, tokens_at=(100 * i + 20,)) for i in range(44)])
    assert judge(summarise(columns, request_rate=1.0, percentiles=(90,)))["valid"]
    judged = judge(summarise(columns, request_rate=1.0, percentiles=(90, 95)))
    assert judged["reasons"] == [
        "Too few requests for the percentiles: p95 needs 90; 44 completed (see --num-requests)."
    ]
    assert "p99 needs 459" in judged["warnings"][0]


@pytest.mark.parametrize(
    ("machine", "num_reasons", "num_warnings"),
    [
        ({}, 0, 0),
        ({"cpu_steal_percent": None, "gpu_throttle_reasons": []}, 0, 0),
        ({"cpu_steal_percent": 3.0, "other_cpu_percent": 12.0, "cpu_throttled_ms": 40.0}, 0, 3),
        ({"cpu_steal_percent": 6.0, "other_cpu_percent": 30.0}, 2, 0),
        ({"gpu_throttle_reasons": ["sw_power_cap"]}, 0, 1),
        ({"gpu_throttle_reasons": ["hw_thermal_slowdown", "sw_power_cap"]}, 1, 1),
    ],
)
def test_a_disturbed_machine(make_record, machine, num_reasons, num_warnings):
    records = [make_record(i, scheduled=100 * i, tokens_at=(100 * i + 20,)) for i in range(460)]
    judged = verdict(records, machine=machine)
    assert (len(judged["reasons"]), len(judged["warnings"])) == (num_reasons, num_warnings)


def test_requests_in_flight_are_counted_over_time_by_quarters_of_the_arrivals(make_record):
    # Arrivals at 0, 100, ..., 400 ms: quarters (100, 200] and (300, 400].
    records = [make_record(i, scheduled=100 * i, tokens_at=(100 * i + 250,)) for i in range(5)]
    metrics = summarise(RecordColumns(records), request_rate=10.0)
    assert metrics["mean_in_flight_early"] == pytest.approx(2)
    assert metrics["mean_in_flight_late"] == pytest.approx(2.5)
    together = summarise(RecordColumns([make_record(0), make_record(1)]), request_rate=None)
    assert together["mean_in_flight_early"] is together["mean_in_flight_late"] is None


def test_a_growing_backlog_is_warned_of(make_record):
    def served_every(milliseconds):
        return [make_record(i, scheduled=10 * i, tokens_at=(milliseconds * (i + 1) + 1,)) for i in range(460)]

    assert not verdict(served_every(10))["warnings"]
    judged = verdict(served_every(15))
    assert judged["valid"]
    # Of what has arrived in the middle of the two quarters, 172 and 402 requests, a third waits; and one is served.
    expected = "Requests piled up: 58.4 were in flight in the second quarter of the arrivals and 135 in the last"
    assert expected in judged["warnings"][0]


@pytest.mark.parametrize(("num_failed", "valid"), [(1, True), (2, False)])
def test_failures_beyond_one_percent(make_record, num_failed, valid):
    outcomes = [Outcome.SHORT_OUTPUT] * num_failed + [Outcome.OK] * (100 - num_failed)
    records = [make_record(i, scheduled=10 * i, tokens_at=(10 * i + 5,), outcome=o) for i, o in enumerate(outcomes)]
    judged = verdict(records)
    assert judged["valid"] is valid
    if not valid:
        assert "2 of 100" in judged["reasons"][0]
        assert "2 short_output" in judged["reasons"][0]


def test_nothing_completed_interrupted_and_incidents(make_record):
    record = make_record(tokens_at=(), issued=False, outcome=Outcome.INTERRUPTED)
    reasons = verdict([record], incidents=["The engine died: gone"])["reasons"]
    assert reasons[0] == "The engine died: gone"
    assert "1 of 1" in reasons[1]
    assert "Nothing completed" in reasons[2]
    assert not verdict([])["valid"]


@pytest.mark.parametrize(
    ("busy_share", "window_s", "valid"),
    [(0.95, 2.0, False), (0.9, 2.0, True), (0.95, 0.9, True), (None, None, True)],
)
def test_a_saturated_event_loop(make_record, busy_share, window_s, valid):
    records = [make_record(i, scheduled=100 * i, tokens_at=(100 * i + 20,)) for i in range(20)]
    metrics = summarise(RecordColumns(records), request_rate=1.0)
    judged = judge({**metrics, "client_loop_busy_share": busy_share, "client_window_s": window_s})
    assert judged["valid"] is valid
    if not valid:
        (reason,) = judged["reasons"]
        assert "busy 95% of 2.0 s (at most 90%)" in reason
        assert "--client-processes" in reason
