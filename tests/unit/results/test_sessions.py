from __future__ import annotations

from typing import Any

import pytest

from neobench.results.columns import RecordColumns
from neobench.results.metrics import summarise
from neobench.results.prefix_cache import prefix_cache
from neobench.results.record import Outcome
from neobench.results.validity import judge


def summary(records: list[Any], rate: float | None = 1.0) -> dict[str, Any]:
    return summarise(RecordColumns(records), request_rate=rate)


def talk(make_record: Any, session: int, *, at_ms: float, gap_ms: float = 1_000, turns: int = 3) -> list[Any]:
    """Turns that answer within 10 ms, `gap_ms` apart."""
    return [
        make_record(
            10 * session + turn,
            scheduled=at_ms + turn * gap_ms,
            tokens_at=(at_ms + turn * gap_ms + 5 + turn, at_ms + turn * gap_ms + 10),
            session=session,
            turn=turn,
        )
        for turn in range(turns)
    ]


def test_the_figures_of_sessions(make_record: Any) -> None:
    records = [*talk(make_record, 0, at_ms=0), *talk(make_record, 1, at_ms=500, turns=1)]
    records.append(
        make_record(30, scheduled=900, tokens_at=(), outcome=Outcome.TIMEOUT, ended=1_000, session=3, turn=0)
    )
    records.append(
        make_record(31, scheduled=1_000, tokens_at=(), outcome=Outcome.SESSION_ENDED, issued=False, session=3, turn=1)
    )
    records.append(make_record(99, warmup=True))
    figures = summary(records)
    assert figures["sessions"] == {
        "num_sessions": 3,
        "completed_sessions": 2,
        "session_throughput": pytest.approx(2 / 2.01),
        "mean_turns": 2.0,
        "median_session_s": pytest.approx((2.01 + 0.01) / 2),
        "median_first_turn_ttft_ms": pytest.approx(5.0),
        "median_later_turn_ttft_ms": pytest.approx(6.5),
    }
    assert (figures["completed"], figures["failed"], figures["outcomes"]["session_ended"]) == (4, 2, 1)
    # First turns are due at 0, 500 and 900 ms; what follows is not offered by the schedule.
    assert figures["arrival_span_s"] == pytest.approx(0.9)
    assert figures["steady_window_end_s"] == pytest.approx(0.9)


def test_requests_on_their_own_have_none(make_record: Any) -> None:
    assert summary([make_record(0)])["sessions"] is None


def test_a_window_must_outlast_the_median_session_and_not_just_its_turns(make_record: Any) -> None:
    records = [record for session in range(10) for record in talk(make_record, session, at_ms=100.0 * session)]
    (reason,) = [reason for reason in judge(summary(records))["reasons"] if "steady window" in reason]
    assert "the median session stays for 2.01 s" in reason
    records = [record for session in range(100) for record in talk(make_record, session, at_ms=100.0 * session)]
    assert judge(summary(records))["valid"]


def test_sessions_that_gather_are_no_backlog(make_record: Any) -> None:
    def overlapping(session_ms: float) -> list[str]:
        """60 sessions a second whose turns are answered for all of their time."""
        records = []
        for session in range(60):
            start = session * 1_000 / 60
            for turn in range(2):
                due = start + turn * session_ms / 2
                records.append(
                    make_record(
                        2 * session + turn, scheduled=due, tokens_at=(due + session_ms / 2,), session=session, turn=turn
                    )
                )
        return [warning for warning in judge(summary(records))["warnings"] if "piled up" in warning]

    assert overlapping(2_000) == []
    alone = [make_record(index, scheduled=index * 16, tokens_at=(index * 16 + 2_000,)) for index in range(60)]
    assert [warning for warning in judge(summary(alone))["warnings"] if "piled up" in warning]


def test_a_slow_answer_is_no_fault_of_the_client(make_record: Any) -> None:
    """One session asks for the next turn late because its answer was late: offered and achieved agree."""
    records = talk(make_record, 0, at_ms=0, gap_ms=60_000)
    figures = summary(records, rate=100.0)
    assert figures["offered_request_rate"] == pytest.approx(figures["achieved_request_rate"])
    assert not [reason for reason in judge(figures)["reasons"] if "did not deliver" in reason]


def test_the_prompt_before_is_no_unasked_hit(make_record: Any) -> None:
    def turn(number: int, prompt_tokens: int, cached: int, **fields: Any) -> Any:
        return make_record(number, session=0, turn=number, prompt_tokens=prompt_tokens, cached_tokens=cached, **fields)

    records = [turn(0, 100, 0), turn(1, 200, 96), turn(2, 300, 200)]
    assert prefix_cache(RecordColumns(records), {}) == {
        "reporting_requests": 3,
        "cached_tokens": 296,
        "unasked_cached_tokens": 0,
    }
    # The order of the rows is that of the ends, in which sessions mix.
    too_much = [turn(1, 200, 130), turn(0, 100, 16)]
    assert prefix_cache(RecordColumns(too_much), {"shared_prefixes": {"tokens": 10}}) == {
        "reporting_requests": 2,
        "cached_tokens": 146,
        "unasked_cached_tokens": 36,
    }
    with_template = [turn(0, 100, 0, reported_prompt_tokens=120), turn(1, 200, 120)]
    facts = prefix_cache(RecordColumns(with_template), {})
    assert facts is not None
    assert facts["unasked_cached_tokens"] == 0
