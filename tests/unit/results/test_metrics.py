import itertools
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobench.results.columns import RecordColumns
from neobench.results.metrics import required_requests, summarise
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import build_summary

METRICS_DOC = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture
def three_requests(make_record):
    """Two completed and one failed request, and a warm-up that would spoil every figure if it were counted."""
    return [
        make_record(99, warmup=True, tokens_at=(5_000,), ended=90_000),
        make_record(0, scheduled=0, lag=1, tokens_at=(100, 120, 160), ended=170, prompt_tokens=7),
        make_record(1, scheduled=200, lag=3, tokens_at=(400, 430), ended=430, output_tokens=5, prompt_tokens=11),
        make_record(2, scheduled=1_000, lag=2, tokens_at=(1_100,), ended=2_000, outcome=Outcome.TIMEOUT),
    ]


def test_hand_computed(three_requests):
    metrics = summarise(RecordColumns(three_requests), request_rate=5.0)
    assert (metrics["num_prompts"], metrics["completed"], metrics["failed"]) == (3, 2, 1)
    assert metrics["outcomes"]["timeout"] == 1
    assert metrics["request_rate"] == 5.0
    assert metrics["duration"] == pytest.approx(2.0)
    assert metrics["request_throughput"] == pytest.approx(1.0)
    assert metrics["output_throughput"] == pytest.approx((3 + 5) / 2)
    assert metrics["total_token_throughput"] == pytest.approx((3 + 5 + 7 + 11) / 2)
    assert (metrics["total_input_tokens"], metrics["total_output_tokens"]) == (18, 8)

    assert metrics["mean_ttft_ms"] == pytest.approx((100 + 200) / 2)
    assert metrics["median_ttft_ms"] == pytest.approx(150)
    assert metrics["p99_ttft_ms"] == pytest.approx(199)
    assert metrics["std_ttft_ms"] == pytest.approx(50)
    assert metrics["mean_ttft_from_issue_ms"] == pytest.approx((99 + 197) / 2)
    assert metrics["mean_e2el_ms"] == pytest.approx((170 + 230) / 2)
    assert metrics["mean_e2el_from_issue_ms"] == pytest.approx((169 + 227) / 2)
    assert metrics["mean_tpot_ms"] == pytest.approx((70 / 2 + 30 / 4) / 2)
    assert metrics["mean_itl_ms"] == pytest.approx((20 + 40 + 30) / 3)
    assert metrics["mean_normalized_latency_ms"] == pytest.approx((170 / 3 + 230 / 5) / 2)


def test_client_lag_counts_every_issued_request(three_requests, make_record):
    never_issued = make_record(3, scheduled=9_000, tokens_at=(), issued=False, outcome=Outcome.INTERRUPTED)
    metrics = summarise(RecordColumns([*three_requests, never_issued]), request_rate=5.0)
    assert metrics["issued_requests"] == 3
    assert metrics["lag_p50_ms"] == pytest.approx(2)
    assert metrics["lag_p99_ms"] == pytest.approx(2.98)
    assert metrics["lag_max_ms"] == pytest.approx(3)
    assert metrics["offered_request_rate"] == pytest.approx(2 / 1.0)
    assert metrics["achieved_request_rate"] == pytest.approx(2 / 1.001)


def test_steady_window_weighs_events_by_their_tokens(make_record):
    records = [
        make_record(0, scheduled=0, tokens_at=(50, 150), output_tokens=6),
        make_record(1, scheduled=100, tokens_at=(150, 250, 350, 450), ended=460),
        make_record(2, scheduled=400, tokens_at=(450,)),
    ]
    metrics = summarise(RecordColumns(records), request_rate=5.0)
    assert (metrics["steady_window_start_s"], metrics["steady_window_end_s"]) == (0.1, 0.4)
    assert metrics["steady_completed"] == 1
    assert metrics["steady_request_throughput"] == pytest.approx(1 / 0.3)
    assert metrics["steady_output_throughput"] == pytest.approx((3 + 3) / 0.3)


def test_all_at_once_has_no_steady_window_and_no_offered_rate(make_record):
    metrics = summarise(RecordColumns(make_record(index, lag=index) for index in range(3)), request_rate=None)
    assert metrics["request_rate"] == "inf"
    assert metrics["steady_request_throughput"] is None
    assert metrics["offered_request_rate"] is None
    assert metrics["achieved_request_rate"] == pytest.approx(1_000)


@pytest.mark.parametrize("num_failed", [0, 2])
def test_without_samples_figures_are_null_and_never_nan(make_record, num_failed):
    failed = (make_record(i, tokens_at=(), outcome=Outcome.HTTP_ERROR) for i in range(num_failed))
    metrics = summarise(RecordColumns(failed), request_rate=1.0)
    assert metrics["mean_ttft_ms"] is metrics["p99_itl_ms"] is metrics["median_tpot_ms"] is None
    assert metrics["failed"] == num_failed
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in metrics.values())


def test_single_token_answers_have_no_tpot_and_no_gaps(make_record):
    metrics = summarise(RecordColumns([make_record()]), request_rate=1.0)
    assert metrics["mean_tpot_ms"] is metrics["mean_itl_ms"] is None
    assert metrics["p99_ttft_ms"] == 10


@pytest.mark.parametrize(("percentile", "required"), [(50, 7), (90, 44), (95, 90), (99, 459), (99.9, 4603)])
def test_required_requests_match_loadgen(percentile, required):
    assert required_requests(percentile) == required
    assert (percentile / 100) ** required <= 0.01 < (percentile / 100) ** (required - 1)


def test_percentile_support_turns_true_at_the_exact_count(make_record):
    for count, supported in ((458, False), (459, True)):
        metrics = summarise(RecordColumns(make_record(index) for index in range(count)), request_rate=1.0)
        assert metrics["percentile_support"]["p99"] == {
            "required_requests": 459,
            "requests": count,
            "supported": supported,
        }


def test_every_key_of_the_summary_is_documented(run_info, make_record):
    summary = build_summary(run_info, RecordColumns([make_record(session=0, turn=0)]), engine_stats={})
    documented = set(re.findall(r"`([a-z0-9_]+)`", METRICS_DOC.read_text()))
    nested = [*summary["outcomes"], *summary["validity"], *summary["provenance"], *summary["percentile_support"]["p99"]]
    nested += [*summary["machine"], *summary["sessions"]]
    assert {*summary, *summary["percentile_support"], *nested} <= documented


@st.composite
def record_lists(draw):
    records = []
    for index in range(draw(st.integers(0, 6))):
        scheduled = draw(st.integers(0, 1_000))
        gaps = draw(st.lists(st.integers(0, 300), max_size=4))
        token_ns = [1_000_000 * (scheduled + sum(gaps[: count + 1])) for count in range(len(gaps))]
        records.append(
            RequestRecord(
                index=index,
                warmup=draw(st.booleans()),
                prompt_tokens=1,
                requested_output_tokens=1,
                output_tokens=len(gaps) * draw(st.integers(1, 3)),
                scheduled_ns=scheduled * 1_000_000,
                issued_ns=scheduled * 1_000_000,
                first_token_ns=token_ns[0] if token_ns else None,
                token_ns=token_ns,
                ended_ns=token_ns[-1] if token_ns else scheduled * 1_000_000,
                outcome=draw(st.sampled_from([Outcome.OK, Outcome.OK, Outcome.TIMEOUT])) if gaps else Outcome.TIMEOUT,
            )
        )
    return records


@given(record_lists())
def test_columns_compute_what_plain_loops_compute(records):
    metrics = summarise(RecordColumns(records), request_rate=1.0)
    measured = [record for record in records if not record.warmup]
    completed = [record for record in measured if record.outcome is Outcome.OK]
    gaps_ms = [(b - a) / 1e6 for record in completed for a, b in itertools.pairwise(record.token_ns)]
    assert metrics["mean_itl_ms"] == (pytest.approx(statistics.fmean(gaps_ms)) if gaps_ms else None)
    assert metrics["median_itl_ms"] == (pytest.approx(statistics.median(gaps_ms)) if gaps_ms else None)

    end_ns = max((record.scheduled_ns for record in measured), default=0)
    window = range(end_ns // 4 + 1, end_ns + 1)
    if not any(record.ended_ns in window for record in completed):
        assert metrics["steady_output_throughput"] is None
        return
    tokens = sum(
        record.output_tokens * sum(instant in window for instant in record.token_ns) / len(record.token_ns)
        for record in completed
    )
    assert metrics["steady_output_throughput"] == pytest.approx(tokens / (0.75 * end_ns / 1e9))


def test_columns_survive_the_way_to_arrow(three_requests):
    table = RecordColumns(three_requests).to_arrow().to_pylist()
    assert [row["index"] for row in table] == [99, 0, 1, 2]
    assert table[1]["token_ns"] == [100_000_000, 120_000_000, 160_000_000]
    assert table[3]["outcome"] == "timeout"
    assert table[1]["http_status"] is None


def test_percentiles_asked_for_have_the_names_of_vllm(make_record):
    records = RecordColumns(make_record(i, tokens_at=(i + 1,)) for i in range(1, 101))
    metrics = summarise(records, request_rate=1.0, percentiles=(99.9, 25))
    assert metrics["p25_ttft_ms"] == pytest.approx(2 + 99 * 0.25)
    assert metrics["p99.9_ttft_ms"] == pytest.approx(2 + 99 * 0.999)
    assert metrics["percentile_support"]["p99.9"]["required_requests"] == 4603
    assert metrics["percentiles_asked_for"] == ["p25", "p99.9"]


def test_goodput_counts_requests_that_keep_to_all_limits(three_requests):
    def good(**limits):
        metrics = summarise(RecordColumns(three_requests), request_rate=5.0, goodput_ms=limits)
        return metrics["good_requests"], metrics["request_goodput"]

    assert good(ttft=100) == (1, pytest.approx(0.5))
    assert good(ttft=200, tpot=35) == (2, pytest.approx(1.0))
    assert good(ttft=200, tpot=34) == (1, pytest.approx(0.5))
    assert good(e2el=169) == (0, 0)
    assert good() == (None, None)


def test_a_single_server_queue_is_measured_within_its_confidence_interval(make_record):
    """M/M/1 at load 1/2: sojourn times are exponential with mean 1 / (mu - lambda) (Kleinrock, Queueing Systems I)."""
    rng = np.random.default_rng(5)
    num_requests, arrival_rate, service_rate = 40_000, 50.0, 100.0
    arrivals_ms = 1e3 * np.cumsum(rng.exponential(1 / arrival_rate, num_requests))
    services_ms = 1e3 * rng.exponential(1 / service_rate, num_requests)
    free_ms, records = 0.0, RecordColumns()
    for index, (arrival_ms, service_ms) in enumerate(zip(arrivals_ms, services_ms, strict=True)):
        free_ms = max(free_ms, arrival_ms) + service_ms
        records.append(make_record(index, scheduled=arrival_ms, tokens_at=(free_ms,)))
    metrics = summarise(records, request_rate=arrival_rate, percentiles=(90,), goodput_ms={"e2el": 20.0})
    mean_ms = 1e3 / (service_rate - arrival_rate)
    # Neighbouring requests share a queue: 40,000 of them are worth some 2,200 independent ones at this load.
    assert metrics["mean_e2el_ms"] == pytest.approx(mean_ms, rel=0.06)
    for name, percentile in (("median", 50), ("p90", 90), ("p99", 99)):
        assert metrics[f"{name}_e2el_ms"] == pytest.approx(-mean_ms * math.log(1 - percentile / 100), rel=0.1)
    assert metrics["request_goodput"] / metrics["request_throughput"] == pytest.approx(1 - math.exp(-1), abs=0.03)
    assert metrics["steady_request_throughput"] == pytest.approx(arrival_rate, rel=0.03)
