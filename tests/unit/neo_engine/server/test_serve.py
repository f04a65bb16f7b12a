"""Starting and stopping: the address, the signals, the drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import aiohttp
import pytest

from neobench.neo_engine.async_engine import AsyncEngine
from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.server import serve
from neobench.neo_engine.tokenizer import IdTokenizer


async def start(engine: Any, drain_seconds: float) -> tuple[asyncio.Task[None], str]:
    """The task that serves, and its URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            AsyncEngine(engine),
            host="127.0.0.1",
            port=0,
            served_model_name="tiny",
            tokenizer=IdTokenizer(),
            drain_seconds=drain_seconds,
            on_ready=ready.set_result,
        )
    )
    return task, await asyncio.wait_for(ready, 10)


async def post(session: aiohttp.ClientSession, url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        return reply.status, await reply.json()


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/health") as reply:
        return reply.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains(engine: Any, number: signal.Signals) -> None:
    task, url = await start(engine, drain_seconds=10)
    async with aiohttp.ClientSession() as session:
        assert await status_of(session, url) == 200
        engine.script.gate.clear()
        running = asyncio.create_task(post(session, url, prompt=[10], max_tokens=3))
        while not engine.live:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), number)
        while await status_of(session, url) != 503:
            await asyncio.sleep(0.005)
        assert (await post(session, url, prompt=[10]))[0] == 503
        engine.script.gate.set()
        status, body = await running
        assert (status, body["choices"][0]["text"]) == (200, " 10 10 10")
        await asyncio.wait_for(task, 10)
    assert engine.closed


@pytest.mark.parametrize("second_signal", [False, True])
async def test_requests_that_do_not_finish_in_time_end_with_an_error(engine: Any, second_signal: bool) -> None:
    task, url = await start(engine, drain_seconds=60 if second_signal else 0.05)
    async with aiohttp.ClientSession() as session:
        engine.script.gate.clear()
        running = asyncio.create_task(post(session, url, prompt=[10], max_tokens=900))
        while not engine.live:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
        if second_signal:
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
        status, body = await asyncio.wait_for(running, 10)
        assert status == 503
        assert "shut down before this request finished" in body["error"]["message"]
        engine.script.gate.set()
        await asyncio.wait_for(task, 10)
    assert engine.closed
    assert not engine.live


async def test_port_in_use_is_said_and_the_engine_closed(engine: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            await serve(
                AsyncEngine(engine),
                host="127.0.0.1",
                port=port,
                served_model_name="tiny",
                tokenizer=IdTokenizer(),
                drain_seconds=1,
            )
    assert engine.closed
