import asyncio
import gc
import time

import numpy as np
import pytest

from neobench.harness import driver
from neobench.harness.arrivals import all_at_once, constant
from neobench.harness.clock import MonotonicClock
from neobench.harness.driver import DriveOptions, drive
from neobench.harness.engine import Completion, EngineError
from neobench.results.columns import RecordColumns
from neobench.results.metrics import summarise
from neobench.results.record import Outcome
from neobench.results.validity import judge


async def driven(
    engine, requests, offsets_ns=None, *, timeout_s=5.0, warmup=(), on_schedule_start=None, concurrency=None, **options
):
    """(records by index, result) of one drive; all at once unless offsets are given."""
    records = []
    offsets_ns = all_at_once(len(requests)) if offsets_ns is None else offsets_ns
    result = await drive(
        requests,
        offsets_ns,
        engine,
        records.append,
        timeout_s=timeout_s,
        concurrency=concurrency,
        warmup=warmup,
        on_schedule_start=on_schedule_start,
        options=DriveOptions(**options),
    )
    by_index = {record.index: record for record in records}
    assert len(by_index) == len(records) == len(requests) + len(warmup)
    return by_index, result


async def test_stamps_every_instant_in_order(engine_class, make_requests):
    offsets_ns = constant(100, 10)
    records, result = await driven(engine_class(), make_requests(10), offsets_ns)
    assert (result.interrupted, result.engine_error) == (False, None)
    for index, record in records.items():
        assert record.outcome is Outcome.OK
        assert record.scheduled_ns == offsets_ns[index]
        assert record.scheduled_ns <= record.issued_ns < record.first_token_ns == record.token_ns[0]
        assert record.token_ns == sorted(record.token_ns)
        assert record.token_ns[-1] <= record.ended_ns
        assert (record.prompt_tokens, record.output_tokens, len(record.token_ns)) == (3, 3, 3)
        assert record.first_token_ns - record.issued_ns >= 2e6


async def test_open_loop_does_not_wait_for_slow_answers(engine_class, make_requests):
    engine = engine_class(gap_s=0.1)
    records, _ = await driven(engine, make_requests(20, output_tokens=1), constant(400, 20))
    assert max(record.issued_ns for record in records.values()) < min(record.ended_ns for record in records.values())


async def test_what_exceeds_the_concurrency_waits_in_the_client_and_says_so(engine_class, make_requests):
    engine = engine_class(gap_s=0.02)
    records, _ = await driven(engine, make_requests(9, output_tokens=1), constant(1000, 9), concurrency=3)
    instants = [(record.issued_ns, 1) for record in records.values()]
    instants += [(record.ended_ns, -1) for record in records.values()]
    in_flight = np.cumsum([change for _, change in sorted(instants)])
    assert in_flight.max() == 3
    assert engine.order == sorted(engine.order)
    assert all(records[index].ready_ns is None for index in range(3))
    for index in range(3, 9):
        assert records[index].scheduled_ns < records[index].ready_ns <= records[index].issued_ns
    metrics = summarise(RecordColumns(records.values()), request_rate=1000)
    assert metrics["max_client_queue_ms"] > 20
    assert metrics["lag_max_ms"] < metrics["max_client_queue_ms"]
    assert metrics["mean_ttft_ms"] == pytest.approx(
        metrics["mean_ttft_from_issue_ms"] + metrics["mean_client_queue_ms"], abs=metrics["lag_max_ms"] + 1e-6
    )


async def test_in_a_closed_loop_a_request_is_due_when_the_slot_that_it_takes_got_free(engine_class, make_requests):
    records = []
    await drive(
        make_requests(30, output_tokens=1),
        all_at_once(30),
        engine_class(gap_s=0.003),
        records.append,
        timeout_s=5.0,
        concurrency=4,
        closed_loop=True,
    )
    landings_ns = [record.ended_ns for record in records]
    by_index = sorted(records, key=lambda record: record.index)
    assert [record.scheduled_ns for record in by_index] == [0] * 4 + landings_ns[: 30 - 4]
    assert all(record.issued_ns >= record.scheduled_ns for record in by_index)


async def test_a_stop_while_requests_wait_for_a_slot_records_them_all(engine_class, make_requests):
    stop = asyncio.Event()
    engine = engine_class(gap_s=10)

    async def stop_when_full():
        while engine.in_flight < 2:
            await asyncio.sleep(0.001)
        stop.set()

    stopping = asyncio.create_task(stop_when_full())
    records, result = await driven(engine, make_requests(5), concurrency=2, stop=stop)
    await stopping
    assert result.interrupted
    assert [record.outcome for record in records.values()] == [Outcome.INTERRUPTED] * 5
    assert sum(record.issued_ns is None for record in records.values()) == 3


async def test_warmup_ends_before_the_schedule_starts(engine_class, make_requests):
    engine = engine_class()
    seen_at_start = []

    async def on_schedule_start():
        seen_at_start.append((engine.served, engine.in_flight))

    warmup = make_requests(2, first_index=100)
    records, _ = await driven(engine, make_requests(3), warmup=warmup, on_schedule_start=on_schedule_start)
    assert seen_at_start == [(2, 0)]
    assert engine.order[:2] == [100, 101]
    assert [index for index, record in records.items() if record.warmup] == [100, 101]


def answering(**completion):
    async def answer(_engine, _request, sink):
        sink.tokens_arrived()
        return Completion(**{"outcome": Outcome.OK, "output_tokens": 3, **completion})

    return answer


def raising(error):
    async def answer(_engine, _request, _sink):
        raise error

    return answer


async def silent(_engine, request, _sink):
    return Completion(outcome=Outcome.OK, output_tokens=request.output_tokens)


async def babbling(_engine, request, sink):
    for _ in range(9):
        sink.tokens_arrived()
    return Completion(outcome=Outcome.OK, output_tokens=request.output_tokens)


@pytest.mark.parametrize(
    ("behaviour", "outcome", "error"),
    [
        (answering(), Outcome.OK, None),
        (answering(output_tokens=2), Outcome.SHORT_OUTPUT, "2 of 3"),
        (answering(output_tokens=4), Outcome.LONG_OUTPUT, "4 output tokens where 3"),
        (silent, Outcome.PROTOCOL_ERROR, "0 events"),
        (babbling, Outcome.PROTOCOL_ERROR, "9 events"),
        (answering(outcome=Outcome.HTTP_ERROR, http_status=503, error="busy"), Outcome.HTTP_ERROR, "busy"),
        (raising(ConnectionResetError("reset")), Outcome.CONNECTION_ERROR, "ConnectionResetError: reset"),
        (raising(EngineError("gone")), Outcome.CONNECTION_ERROR, "gone"),
        (raising(KeyError("choices")), Outcome.PROTOCOL_ERROR, "KeyError: 'choices'"),
        (raising(asyncio.CancelledError()), Outcome.PROTOCOL_ERROR, "cancelled"),
    ],
)
async def test_outcomes(engine_class, make_requests, behaviour, outcome, error):
    records, result = await driven(engine_class(script={1: behaviour}), make_requests(3))
    assert records[1].outcome is outcome
    assert records[1].error is error if error is None else error in records[1].error
    assert records[1].http_status == (503 if outcome is Outcome.HTTP_ERROR else None)
    assert {records[0].outcome, records[2].outcome} == {Outcome.OK}
    assert not result.interrupted


async def test_timeout_aborts_the_request_and_keeps_what_arrived(engine_class, make_requests):
    async def stall(_engine, _request, sink):
        sink.tokens_arrived()
        await asyncio.sleep(60)

    engine = engine_class(script={0: stall})
    records, _ = await driven(engine, make_requests(2), timeout_s=0.05)
    assert records[0].outcome is Outcome.TIMEOUT
    assert "0.05 s" in records[0].error
    assert len(records[0].token_ns) == 1
    assert 50e6 <= records[0].ended_ns - records[0].issued_ns < 500e6
    assert records[1].outcome is Outcome.OK
    assert engine.in_flight == 0


@pytest.mark.parametrize("during_warmup", [False, True])
async def test_a_dying_engine_ends_the_run_and_every_request_is_recorded(engine_class, make_requests, during_warmup):
    async def die(engine, _request, _sink):
        engine.dead = "exit code 9"
        raise ConnectionResetError("reset")

    engine = engine_class(gap_s=0.5, script={100 if during_warmup else 1: die})
    warmup = make_requests(2, first_index=100)[: 2 if during_warmup else 0]
    records, result = await driven(
        engine, make_requests(5, output_tokens=1), constant(50, 5), warmup=warmup, liveness_interval_s=60
    )
    assert str(result.engine_error) == "exit code 9"
    assert result.interrupted
    assert {record.outcome for record in records.values()} == {Outcome.CONNECTION_ERROR, Outcome.INTERRUPTED}
    assert records[4].issued_ns is None
    assert "before the request was issued" in records[4].error
    assert engine.in_flight == 0


async def test_a_silent_death_is_noticed_by_polling(engine_class, make_requests):
    async def die_quietly(engine, _request, _sink):
        engine.dead = "killed"
        await asyncio.sleep(60)

    started = time.monotonic()
    _, result = await driven(engine_class(script={0: die_quietly}), make_requests(1), liveness_interval_s=0.02)
    assert str(result.engine_error) == "killed"
    assert time.monotonic() - started < 5


async def test_an_engine_that_dies_with_the_last_request_is_noticed(engine_class, make_requests):
    async def die(engine, _request, _sink):
        engine.dead = "killed"
        return Completion(outcome=Outcome.CONNECTION_ERROR)

    _, result = await driven(engine_class(script={0: die}), make_requests(1))
    assert str(result.engine_error) == "killed"
    assert not result.interrupted


async def test_a_liveness_check_that_breaks_is_an_engine_error(engine_class, make_requests):
    engine = engine_class()
    engine.check_alive = lambda: asyncio.sleep(0, result=1 / 0)
    _, result = await driven(engine, make_requests(1))
    assert "ZeroDivisionError" in str(result.engine_error)


async def test_stop_ends_issuing_and_records_the_rest(engine_class, make_requests):
    stop = asyncio.Event()

    async def stop_then_stream(engine, request, sink):
        stop.set()
        return await engine.stream(request.output_tokens, sink)

    engine = engine_class(gap_s=0.03, script={20: stop_then_stream})
    records, result = await driven(engine, make_requests(100, output_tokens=2), constant(100, 100), stop=stop)
    assert 20 < sum(record.issued_ns is not None for record in records.values()) < 100
    assert result.interrupted
    assert result.engine_error is None
    outcomes = [record.outcome for record in records.values()]
    in_flight = [r for r in records.values() if r.outcome is Outcome.INTERRUPTED and r.issued_ns is not None]
    assert outcomes.count(Outcome.OK) > 0
    assert len(in_flight) > 0
    assert all(record.ended_ns is not None for record in in_flight)
    assert set(outcomes) == {Outcome.OK, Outcome.INTERRUPTED}
    assert engine.in_flight == 0


async def test_a_failure_after_the_stop_is_an_interruption(engine_class, make_requests):
    stop = asyncio.Event()

    async def disguise(_engine, _request, _sink):
        stop.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return Completion(outcome=Outcome.CONNECTION_ERROR, error="closed")

    records, _ = await driven(engine_class(script={0: disguise}), make_requests(1), stop=stop)
    assert records[0].outcome is Outcome.INTERRUPTED


async def test_stop_before_the_start_issues_nothing(engine_class, make_requests):
    stop = asyncio.Event()
    stop.set()
    engine = engine_class()
    records, result = await driven(engine, make_requests(3), stop=stop)
    assert result.interrupted
    assert engine.served == 0
    assert {record.outcome for record in records.values()} == {Outcome.INTERRUPTED}


async def test_cancelling_the_drive_still_records_everything(engine_class, make_requests):
    records = []
    task = asyncio.create_task(
        drive(make_requests(3), constant(10, 3), engine_class(gap_s=60), records.append, timeout_s=5)
    )
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.outcome for record in records] == [Outcome.INTERRUPTED] * 3


async def test_an_engine_that_ignores_cancellation_cannot_hold_the_run(
    engine_class, make_requests, monkeypatch, caplog
):
    monkeypatch.setattr(driver, "ABORT_GRACE_S", 0.05)
    release, stop = asyncio.Event(), asyncio.Event()

    async def stubborn(_engine, _request, sink):
        stop.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        sink.tokens_arrived()
        return Completion(outcome=Outcome.OK, output_tokens=3)

    records, result = await driven(engine_class(script={0: stubborn}), make_requests(1), stop=stop)
    assert result.interrupted
    assert records[0].outcome is Outcome.INTERRUPTED
    assert records[0].token_ns == []
    assert "ignored their cancellation" in caplog.text
    release.set()
    await asyncio.sleep(0.01)


async def test_a_store_that_fails_ends_the_run_with_its_error(engine_class, make_requests):
    kept = []

    def store(record):
        if kept:
            raise OSError("the disk is full")
        kept.append(record)

    with pytest.raises(OSError, match="the disk is full"):
        await drive(make_requests(50), constant(100, 50), engine_class(), store, timeout_s=5)
    assert len(kept) == 1


async def test_a_blocked_loop_makes_the_run_invalid(engine_class, make_requests):
    async def block(engine, request, sink):
        time.sleep(0.08)
        return await engine.stream(request.output_tokens, sink)

    engine = engine_class(script={5: block})
    records, _ = await driven(engine, make_requests(40), constant(200, 40))
    metrics = summarise(RecordColumns(records.values()), request_rate=200.0)
    assert metrics["lag_max_ms"] > 50
    assert metrics["mean_ttft_ms"] > metrics["mean_ttft_from_issue_ms"] + 8
    verdict = judge(metrics)
    assert not verdict["valid"]
    assert "fell behind its schedule" in verdict["reasons"][0]


async def test_an_undisturbed_run_keeps_its_schedule(engine_class, make_requests):
    records, _ = await driven(engine_class(), make_requests(100), constant(500, 100))
    lag_ms = [(record.issued_ns - record.scheduled_ns) / 1e6 for record in records.values()]
    # The median: on a shared machine single wake-ups may be late by any amount.
    assert np.median(lag_ms) < 5


async def test_progress_is_reported_while_running_and_at_the_end(engine_class, make_requests):
    shown = []
    await driven(
        engine_class(script={3: answering(output_tokens=1)}),
        make_requests(10),
        constant(100, 10),
        warmup=make_requests(2, first_index=100),
        on_progress=lambda counts: shown.append((counts.issued, counts.completed, counts.failed, counts.tokens)),
        progress_interval_s=0.02,
    )
    assert len(shown) > 2
    assert shown == sorted(shown)
    assert shown[-1] == (10, 9, 1, 28)


async def test_garbage_collection_rests_during_the_run_and_returns(engine_class, make_requests):
    states = []

    async def look(engine, request, sink):
        states.append(gc.isenabled())
        return await engine.stream(request.output_tokens, sink)

    await driven(engine_class(script={0: look}), make_requests(1))
    assert states == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


async def test_schedule_and_requests_must_match(engine_class, make_requests):
    with pytest.raises(ValueError, match="2 requests but 3 arrivals"):
        await driven(engine_class(), make_requests(2), all_at_once(3))


async def test_clock_never_returns_early_and_yields_when_late():
    clock = MonotonicClock()
    for delay_ns in (0, 300_000, 2_000_000):
        deadline_ns = clock.now_ns() + delay_ns
        await clock.sleep_until_ns(deadline_ns)
        assert clock.now_ns() >= deadline_ns
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, True)
    await clock.sleep_until_ns(0)
    assert ran
