"""The bridge between the engine's thread and asyncio, without HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from neobench.neo_engine.async_engine import AsyncEngine, EngineUnavailableError
from neobench.neo_engine.request import FinishReason, RequestRejectedError, SamplingParams


def params(max_tokens: int = 4) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0)


@pytest.fixture
async def running(engine: Any) -> AsyncIterator[AsyncEngine]:
    async_engine = AsyncEngine(engine)
    async_engine.start()
    yield async_engine
    engine.script.gate.set()
    await async_engine.shutdown()


async def settle(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never came true")


async def test_tokens_come_in_order_and_end_with_a_reason(running: AsyncEngine, engine: Any) -> None:
    streams = [running.submit([10 + i, 20 + i], params(5)) for i in range(6)]
    for number, stream in enumerate(streams):
        outputs = [output async for output in stream]
        assert [output.token_id for output in outputs] == [(10, 20)[i % 2] + number for i in range(5)]
        assert [output.finish_reason for output in outputs] == [None] * 4 + [FinishReason.LENGTH]
    assert running.num_active == 0
    assert threading.get_ident() not in engine.threads
    assert len(engine.threads) == 1


async def test_idle_engine_takes_no_steps_and_wakes_up(running: AsyncEngine, engine: Any) -> None:
    assert len([output async for output in running.submit([10], params(3))]) == 3
    steps = engine.steps
    await asyncio.sleep(0.1)
    assert engine.steps == steps == 3
    assert len([output async for output in running.submit([10], params(2))]) == 2


async def test_what_cannot_fit_is_rejected_by_submit(running: AsyncEngine) -> None:
    for prompt, max_tokens in (([], 4), ([4096], 4), ([-1], 4), ([1] * 1000, 25)):
        with pytest.raises(RequestRejectedError):
            running.submit(prompt, params(max_tokens))
    assert running.num_active == 0


async def test_what_only_the_engine_sees_is_raised_by_the_stream(running: AsyncEngine) -> None:
    stream = running.submit([4000], params())
    with pytest.raises(RequestRejectedError, match="the engine alone knows"):
        await anext(stream)
    assert running.num_active == 0


async def test_abort_frees_the_request_at_any_time(running: AsyncEngine, engine: Any) -> None:
    engine.script.gate.clear()
    queued = running.submit([10], params(1000))
    queued.abort()
    queued.abort()
    started = running.submit([11], params(1000))
    await settle(lambda: started.request_id is not None)
    waiting = asyncio.create_task(anext(started, None))
    await asyncio.sleep(0)
    started.abort()
    assert await waiting is None
    assert await queued.next_batch() == []
    engine.script.gate.set()
    await settle(lambda: not engine.live)
    assert running.num_active == 0


async def test_failing_step_ends_all_streams_and_the_engine(running: AsyncEngine, engine: Any) -> None:
    engine.script.gate.clear()
    engine.script.fail_at_step = 1
    streams = [running.submit([10], params()) for _ in range(3)]
    engine.script.gate.set()
    for stream in streams:
        [output] = [output async for output in stream]
        assert output.finish_reason is FinishReason.ERROR
        assert output.token_id is None
        assert "scripted failure" in str(output.error)
    assert running.unavailable_reason == "the engine failed: RuntimeError: scripted failure"
    with pytest.raises(EngineUnavailableError, match="scripted failure"):
        running.submit([10], params())
    assert await running.stats() == {"steps": 1, "num_running": 3, "error": 0.5}
    assert await running.drain(5.0)


async def test_questions_are_answered_between_steps_and_pass_on_errors(
    running: AsyncEngine, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    monkeypatch.setattr(engine, "info", lambda: threads.append(threading.get_ident()) or {"a": 1})
    assert await running.info() == {"a": 1}
    assert threads != [threading.get_ident()]
    monkeypatch.setattr(engine, "stats", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await running.stats()
    assert running.unavailable_reason is None


async def test_drain_lets_running_requests_finish(running: AsyncEngine, engine: Any) -> None:
    engine.script.gate.clear()
    stream = running.submit([10], params(3))
    drain = asyncio.create_task(running.drain(10.0))
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        running.submit([10], params())
    assert not drain.done()
    engine.script.gate.set()
    assert await drain
    assert len([output async for output in stream]) == 3


async def test_shutdown_ends_what_did_not_drain_in_time(engine: Any) -> None:
    async_engine = AsyncEngine(engine)
    async_engine.start()
    engine.script.gate.clear()
    stream = async_engine.submit([10], params(1000))
    assert not await async_engine.drain(0.05)
    threading.Timer(0.1, engine.script.gate.set).start()
    await async_engine.shutdown()
    [output] = [output async for output in stream]
    assert output.finish_reason is FinishReason.ABORT
    assert engine.closed
    assert not engine.live
    await async_engine.shutdown()


async def test_not_started(engine: Any) -> None:
    async_engine = AsyncEngine(engine)
    with pytest.raises(EngineUnavailableError, match="not been started"):
        async_engine.submit([10], params())
    assert await async_engine.stats() == {"steps": 0, "num_running": 0, "error": 0.5}
    await async_engine.shutdown()
