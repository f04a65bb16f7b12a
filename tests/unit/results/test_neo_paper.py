from __future__ import annotations

import pytest

from neobench.results.columns import RecordColumns
from neobench.results.neo_paper import per_token_latencies_s, window_throughput
from neobench.results.record import Outcome, RequestRecord


def record(
    index: int, arrived_s: float, ended_s: float, tokens: int = 10, outcome: Outcome = Outcome.OK
) -> RequestRecord:
    return RequestRecord(
        index=index,
        prompt_tokens=5,
        requested_output_tokens=tokens,
        output_tokens=tokens,
        scheduled_ns=round(arrived_s * 1e9),
        ended_ns=round(ended_s * 1e9),
        outcome=outcome,
    )


def test_latency_leaves_out_the_first_quarter_to_arrive() -> None:
    # The first to arrive is the last in the file, and would be 10 s a token.
    columns = RecordColumns(
        [record(1, 1, 3), record(2, 2, 6), record(3, 3, 9), record(0, 0, 100), record(4, 4, 9, outcome=Outcome.TIMEOUT)]
    )
    assert per_token_latencies_s(columns).tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_the_window_is_from_30_to_70_percent_of_the_completions() -> None:
    # 10 completions: the gaps from the 4th to the 8th are 1, 2, 3 and 4 s, those outside 100 s.
    ends_s = [100, 200, 300, 400, 401, 403, 406, 410, 510, 610]
    columns = RecordColumns([record(index, 0, end_s) for index, end_s in enumerate(ends_s)])
    assert window_throughput(columns) == pytest.approx(4 / 10)


@pytest.mark.parametrize("ends_s", [[], [1.0], [2.0] * 8])
def test_no_time_in_the_window_is_no_throughput(ends_s: list[float]) -> None:
    assert window_throughput(RecordColumns([record(i, 0, end_s) for i, end_s in enumerate(ends_s)])) is None
