from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.harness.arrivals import offsets_of_ns
from neobench.harness.driver import DriveOptions, DriveResult, drive
from neobench.harness.engine import Completion, TokenSink
from neobench.harness.request import PromptRequest
from neobench.harness.sessions import Sessions, of_client
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, SessionSpec, SpecError, WorkloadSpec
from neobench.harness.virtual_time import VirtualClock, run_in_virtual_time
from neobench.results.record import Outcome, RequestRecord

MS = 1_000_000
ORIGIN_NS = 1_000 * MS


class TimedEngine:
    """Each request takes 10 ms, in virtual time; those of `failing` then fail, those of `hanging` never end."""

    def __init__(self, failing: Sequence[int] = (), hanging: Sequence[int] = ()) -> None:
        self._failing, self._hanging = failing, hanging
        self.in_flight = self.most_in_flight = 0

    async def check_alive(self) -> None: ...

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(10_000 if request.index in self._hanging else 0.01)
            if request.index in self._failing:
                return Completion(outcome=Outcome.HTTP_ERROR, http_status=500, error="no")
            sink.tokens_arrived()
            return Completion(outcome=Outcome.OK, output_tokens=1)
        finally:
            self.in_flight -= 1


def turns(*counts: int, think_ms: int = 5) -> list[PromptRequest]:
    """Sessions of so many turns, each later one after `think_ms`."""
    places = [(session, turn) for session, count in enumerate(counts) for turn in range(count)]
    return [
        PromptRequest.of(
            [1], index=index, output_tokens=1, session=session, turn=turn, think_ns=bool(turn) * think_ms * MS
        )
        for index, (session, turn) in enumerate(places)
    ]


def driven(
    requests: Sequence[PromptRequest],
    offsets_ms: Sequence[int],
    engine: TimedEngine | None = None,
    *,
    concurrency: int | None = None,
    closed_loop: bool = False,
    stop_ms: int | None = None,
    warmup: Sequence[PromptRequest] = (),
) -> tuple[dict[int, RequestRecord], DriveResult]:
    """One record of each request, by index; `offsets_ms` of the sessions."""
    records: list[RequestRecord] = []

    async def main() -> DriveResult:
        stop = asyncio.Event()
        if stop_ms is not None:
            asyncio.get_running_loop().call_at((ORIGIN_NS + stop_ms * MS) / 1e9, stop.set)

        async def start() -> int:
            return ORIGIN_NS

        return await drive(
            requests,
            np.array([offsets_ms[request.session or 0] * MS for request in requests], dtype=np.int64),
            engine or TimedEngine(),
            records.append,
            timeout_s=1.0,
            concurrency=concurrency,
            closed_loop=closed_loop,
            warmup=warmup,
            on_schedule_start=start,
            options=DriveOptions(clock=VirtualClock(), stop=stop),
        )

    result = run_in_virtual_time(main())
    measured = {record.index: record for record in records if not record.warmup}
    assert sorted(measured) == [request.index for request in requests]
    assert len(records) == len(requests) + len(warmup)
    return measured, result


def ms(records: dict[int, RequestRecord], field: str) -> list[float | None]:
    values = [getattr(records[index], field) for index in sorted(records)]
    return [None if value is None else value / MS for value in values]


def test_a_later_turn_is_due_a_time_to_think_after_the_end_of_the_one_before() -> None:
    records, result = driven(turns(3, 2), [0, 4])
    assert ms(records, "scheduled_ns") == [0, 15, 30, 4, 19]
    assert ms(records, "issued_ns") == [0, 15, 30, 4, 19]
    assert ms(records, "ended_ns") == [10, 25, 40, 14, 29]
    assert [(records[index].session, records[index].turn) for index in range(5)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
    ]
    assert not result.interrupted
    assert all(record.outcome is Outcome.OK for record in records.values())


def test_a_warm_up_belongs_to_no_session() -> None:
    warmup = [PromptRequest.of([1], index=index, output_tokens=1) for index in (2, 3)]
    records, _ = driven(turns(2), [0], warmup=warmup)
    assert ms(records, "scheduled_ns") == [0, 15]


def test_a_failed_turn_ends_its_session_and_the_rest_of_it_says_so() -> None:
    records, result = driven(turns(4, 2), [0, 0], TimedEngine(failing=[1]))
    assert [records[index].outcome for index in range(4)] == [
        Outcome.OK,
        Outcome.HTTP_ERROR,
        Outcome.SESSION_ENDED,
        Outcome.SESSION_ENDED,
    ]
    assert ms(records, "issued_ns")[2:] == [None, None, 0, 15]
    assert ms(records, "scheduled_ns")[2:4] == [25, 25]
    assert records[3].error == "never due: an earlier turn of its session ended as http_error"
    assert not result.interrupted


def test_a_turn_without_an_end_times_out_and_ends_its_session() -> None:
    records, _ = driven(turns(3), [0], TimedEngine(hanging=[1]))
    assert [records[index].outcome for index in range(3)] == [Outcome.OK, Outcome.TIMEOUT, Outcome.SESSION_ENDED]


@pytest.mark.parametrize(
    ("stop_ms", "outcomes"),
    [
        (12, [Outcome.OK, Outcome.INTERRUPTED, Outcome.INTERRUPTED]),  # it thinks
        (17, [Outcome.OK, Outcome.INTERRUPTED, Outcome.INTERRUPTED]),  # its second turn is in flight
    ],
)
def test_a_stop_in_mid_session_leaves_a_record_of_every_turn(stop_ms: int, outcomes: list[Outcome]) -> None:
    records, result = driven(turns(3, 2), [0, 50], stop_ms=stop_ms)
    assert [records[index].outcome for index in range(3)] == outcomes
    assert [records[index].outcome for index in (3, 4)] == [Outcome.INTERRUPTED] * 2
    assert (records[1].issued_ns is not None) == (stop_ms == 17)
    assert result.interrupted


def test_a_session_holds_its_place_in_a_closed_loop_while_it_thinks() -> None:
    records, _ = driven(turns(2, 1, 2), [0, 0, 0], concurrency=2, closed_loop=True)
    # Session 2 begins when session 1 has ended, at 10 ms, though session 0 thinks from 10 to 15 ms.
    assert ms(records, "scheduled_ns") == [0, 15, 0, 10, 25]
    assert ms(records, "ended_ns") == [10, 25, 10, 20, 35]


def test_a_session_beyond_the_concurrency_waits_for_the_end_of_another() -> None:
    records, _ = driven(turns(2, 1), [0, 1], concurrency=1)
    assert ms(records, "scheduled_ns") == [0, 15, 1]
    assert ms(records, "ready_ns") == [None, None, 25]


def test_a_failed_session_frees_its_place() -> None:
    records, _ = driven(turns(3, 2), [0, 0], TimedEngine(failing=[0]), concurrency=1, closed_loop=True)
    assert ms(records, "scheduled_ns") == [0, 10, 10, 10, 25]


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    failing=st.sets(st.integers(0, 20)),
    hanging=st.sets(st.integers(0, 20)),
    concurrency=st.none() | st.integers(1, 3),
    closed_loop=st.booleans(),
    stop_ms=st.none() | st.integers(0, 80),
)
@settings(max_examples=150, deadline=None)
def test_every_request_leaves_exactly_one_record(
    counts: list[int],
    failing: set[int],
    hanging: set[int],
    concurrency: int | None,
    closed_loop: bool,
    stop_ms: int | None,
) -> None:
    engine = TimedEngine(sorted(failing), sorted(hanging))
    records, result = driven(
        turns(*counts),
        [3 * session for session in range(len(counts))],
        engine,
        concurrency=concurrency,
        closed_loop=closed_loop and concurrency is not None,
        stop_ms=stop_ms,
    )
    if concurrency is not None:
        assert engine.most_in_flight <= concurrency
    if not result.interrupted:
        assert all(record.outcome is not Outcome.INTERRUPTED for record in records.values())
    for before, after in zip(list(records.values())[:-1], list(records.values())[1:], strict=True):
        if before.session == after.session and after.issued_ns is not None:
            assert before.outcome is Outcome.OK
            assert after.scheduled_ns == (before.ended_ns or 0) + 5 * MS


def test_sessions_arrive_and_their_turns_do_not() -> None:
    arrival = ArrivalSpec(kind="constant", rate=10)
    assert offsets_of_ns(arrival, turns(2, 1, 3), 0).tolist() == [0, 0, 100 * MS, 200 * MS, 200 * MS, 200 * MS]
    single = [PromptRequest.of([1], index=index, output_tokens=1) for index in range(3)]
    assert offsets_of_ns(arrival, single, 0).tolist() == [0, 100 * MS, 200 * MS]


def test_a_session_stays_with_one_client_process() -> None:
    requests = turns(2, 1, 3, 1)
    assert [of_client(requests, client, 2) for client in range(2)] == [[0, 1, 3, 4, 5], [2, 6]]
    single = [PromptRequest.of([1], index=index, output_tokens=1) for index in range(5)]
    assert of_client(single, 1, 2) == [1, 3]


def test_turns_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="turn 0 of session 0 is missing before 1"):
        Sessions(turns(2)[1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fewest_turns": 3, "most_turns": 2}, "fewest_turns <= most_turns"),
        ({"fewest_turns": 0, "most_turns": 2}, "1 <= fewest_turns"),
        ({"fewest_turns": 1, "most_turns": 2, "think_time_s": -1.0}, "at least 0"),
        ({"fewest_turns": 1, "most_turns": 2, "think_time_s": float("inf")}, "number of seconds"),
    ],
)
def test_impossible_sessions_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SessionSpec(**fields)  # type: ignore[arg-type]


def test_sessions_cannot_be_replayed() -> None:
    workload = WorkloadSpec(name="made", sessions=SessionSpec(fewest_turns=2, most_turns=2))
    with pytest.raises(SpecError, match="exclude each other"):
        RunSpec(
            engine=EngineSpec(name="null"),
            workload=workload,
            arrival=ArrivalSpec(kind="trace"),
            model="tiny",
            num_requests=2,
        )
