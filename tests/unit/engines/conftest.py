"""A small OpenAI-compatible server whose answer each test writes itself."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiohttp import web

from neobench.engines.openai_http import CompletionsClient
from neobench.harness.request import PromptRequest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], AbstractAsyncContextManager[CompletionsClient]]


class Arrivals:
    """A TokenSink that keeps the instants of what it is told, in seconds of time.perf_counter."""

    def __init__(self) -> None:
        self.instants_s: list[float] = []

    def tokens_arrived(self, at_ns: int | None = None) -> None:
        self.instants_s.append((time.perf_counter_ns() if at_ns is None else at_ns) / 1e9)

    def __len__(self) -> int:
        return len(self.instants_s)


async def models(_request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "served-model"}]})


@pytest.fixture
def serve() -> Serve:
    """`async with serve(handler) as client`: the handler answers POST /v1/completions."""

    @asynccontextmanager
    async def serving(handler: Handler) -> AsyncIterator[CompletionsClient]:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/completions", handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = CompletionsClient(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            await client.open()
            yield client
        finally:
            await client.close()
            await runner.cleanup()

    return serving


@pytest.fixture
def sink() -> Arrivals:
    return Arrivals()


@pytest.fixture
def request_of_three() -> PromptRequest:
    return PromptRequest.of([5, 6, 7, 8], index=0, output_tokens=3)
