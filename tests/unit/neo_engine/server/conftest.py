"""A scripted engine behind the seam, and a server around it on a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from neobench.neo_engine.async_engine import AsyncEngine
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.request import FinishReason, RequestRejectedError, SamplingParams, TokenOutput
from neobench.neo_engine.server import create_app
from neobench.neo_engine.tokenizer import IdTokenizer, TextTokenizer

EOS = 2


@dataclass
class Script:
    """What the scripted engine does beyond echoing; tests change it while it runs."""

    fail_at_step: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    """Steps wait for it: a test that clears it stops the engine between two tokens."""
    permits: threading.Semaphore | None = None
    """If set, each step takes one: a test that gives one after each event sees each token alone."""


class EchoEngine:
    """Answers each request with its own prompt, token by token, over and over; ends at EOS as a model would."""

    def __init__(self, script: Script | None = None, *, device_blocks: int = 64) -> None:
        self.config = EngineConfig(model="tiny", device_blocks=device_blocks, host_memory_bytes=1, policy="gpu_only")
        self.script = script or Script()
        self.script.gate.set()
        self.live: dict[int, tuple[list[int], SamplingParams, int]] = {}
        self.aborted: list[int] = []
        self.seen_params: list[SamplingParams] = []
        self.steps = 0
        self.closed = False
        self.threads: set[int] = set()

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams) -> int:
        if prompt_token_ids == [4000]:
            raise RequestRejectedError("the engine alone knows that this one cannot run")
        request_id = len(self.seen_params)
        self.seen_params.append(params)
        self.live[request_id] = (prompt_token_ids, params, 0)
        return request_id

    def abort(self, request_id: int) -> None:
        if self.live.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    def step(self) -> list[TokenOutput]:
        self.threads.add(threading.get_ident())
        assert self.script.gate.wait(20)
        time.sleep(0.001)  # a request of hundreds of tokens must not end before an abort can reach it
        if self.script.permits is not None:
            assert self.script.permits.acquire(timeout=20)
        self.steps += 1
        if self.steps == self.script.fail_at_step:
            raise RuntimeError("scripted failure")
        outputs = []
        for request_id, (prompt, params, count) in list(self.live.items()):
            token = prompt[count % len(prompt)]
            reason = FinishReason.LENGTH if count + 1 == params.max_tokens else None
            if token in params.stop_token_ids or (token == EOS and not params.ignore_eos):
                reason = FinishReason.STOP
            outputs.append(TokenOutput(request_id=request_id, token_id=token, finish_reason=reason))
            if reason is None:
                self.live[request_id] = (prompt, params, count + 1)
            else:
                del self.live[request_id]
        return outputs

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def stats(self) -> dict[str, int | float]:
        return {"steps": self.steps, "num_running": len(self.live), "error": 0.5}

    def info(self) -> dict[str, Any]:
        return {"policy": self.config.policy}

    def close(self) -> None:
        self.closed = True


@dataclass
class Server:
    """A running server, its engine, and a client that speaks to it over HTTP."""

    engine: EchoEngine
    async_engine: AsyncEngine
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.post(path, **({"data": body} if isinstance(body, bytes) else {"json": body})) as reply:
            return reply.status, await reply.json()

    async def complete(self, **body: Any) -> tuple[int, dict[str, Any]]:
        return await self.post("/v1/completions", body)

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.session.get(path) as reply:
            return reply.status, await reply.json()

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        for _ in range(int(seconds / 0.005)):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the condition never came true")


@asynccontextmanager
async def running_server(engine: EchoEngine, tokenizer: TextTokenizer | None = None) -> AsyncIterator[Server]:
    async_engine = AsyncEngine(engine)
    async_engine.start()
    app = create_app(async_engine, served_model_name="tiny", tokenizer=tokenizer or IdTokenizer())
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield Server(engine, async_engine, session)
    finally:
        engine.script.gate.set()
        await runner.cleanup()
        await async_engine.shutdown()


@pytest.fixture
def engine() -> Iterator[EchoEngine]:
    engine = EchoEngine()
    yield engine
    engine.script.gate.set()


@pytest.fixture
async def server(engine: EchoEngine) -> AsyncIterator[Server]:
    async with running_server(engine) as server:
        yield server


@pytest.fixture
def make_server() -> Callable[..., Any]:
    return running_server


@pytest.fixture
def make_engine() -> type[EchoEngine]:
    return EchoEngine
