import math

import numpy as np
import pytest

from neobench.reports.over_time import (
    in_flight_over_time,
    output_throughput_over_time,
    sparkline,
    ttft_over_time_ms,
)
from neobench.results.columns import RecordColumns
from neobench.results.record import Outcome, RequestRecord

MS = 1_000_000


def record(index, scheduled, tokens_at, outcome=Outcome.OK):
    return RequestRecord(
        index=index,
        prompt_tokens=1,
        requested_output_tokens=len(tokens_at),
        output_tokens=len(tokens_at),
        scheduled_ns=scheduled * MS,
        issued_ns=scheduled * MS,
        first_token_ns=tokens_at[0] * MS,
        token_ns=[instant * MS for instant in tokens_at],
        ended_ns=tokens_at[-1] * MS,
        outcome=outcome,
    )


def test_sparkline_goes_from_nothing_to_the_highest_and_leaves_gaps():
    assert sparkline([0, 4, 8, math.nan, 2]) == "▁▅█ ▃"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([math.nan]) == " "
    assert sparkline([-5, 10]) == "▁█"


def test_ttft_is_the_median_by_arrival():
    columns = RecordColumns([record(0, 0, [10]), record(1, 10, [40]), record(2, 20, [30]), record(3, 100, [105])])
    series = ttft_over_time_ms(columns, 2)
    assert series == pytest.approx([10, 5])


def test_throughput_counts_tokens_when_they_arrive_and_failed_requests_not():
    failed = record(2, 0, [50, 60], Outcome.TIMEOUT)
    columns = RecordColumns([record(0, 0, [100, 150, 190]), record(1, 0, [900, 1000]), failed])
    # Bins of half a second.
    assert output_throughput_over_time(columns, 2) == pytest.approx([6, 4])


def test_requests_in_flight_are_an_average_over_each_bin():
    columns = RecordColumns([record(0, 0, [50, 100]), record(1, 50, [60, 200])])
    assert in_flight_over_time(columns, 2) == pytest.approx([1.5, 1.0])
    # Little's law: time flown / time.
    assert in_flight_over_time(columns, 5).mean() == pytest.approx((100 + 150) / 200)


def test_nothing_recorded_is_no_series():
    assert np.isnan(in_flight_over_time(RecordColumns(), 3)).all()
    assert np.isnan(output_throughput_over_time(RecordColumns(), 3)).all()
    assert np.isnan(ttft_over_time_ms(RecordColumns(), 3)).all()
