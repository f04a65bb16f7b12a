import asyncio
from collections.abc import Callable

import pytest

from neobench.harness.engine import Completion, EngineError
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome


class ScriptedEngine:
    """Serves each request with real delays of `gap_s`; `script` maps a request's index to what goes wrong with it."""

    name = "scripted"

    def __init__(self, gap_s: float = 0.002, script: dict[int, Callable] | None = None) -> None:
        self.gap_s = gap_s
        self.script = script or {}
        self.dead: str | None = None
        self.served = 0
        self.order: list[int] = []
        self.in_flight = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def describe(self):
        return {"name": self.name}

    async def stats(self):
        return {"served": self.served, "share": self.served / 16}

    async def check_alive(self) -> None:
        if self.dead:
            raise EngineError(self.dead)

    async def generate(self, request, sink) -> Completion:
        self.order.append(request.index)
        self.in_flight += 1
        try:
            if request.index in self.script:
                return await self.script[request.index](self, request, sink)
            return await self.stream(request.output_tokens, sink)
        finally:
            self.in_flight -= 1

    async def stream(self, num_tokens, sink) -> Completion:
        for _ in range(num_tokens):
            await asyncio.sleep(self.gap_s)
            sink.tokens_arrived()
        self.served += 1
        return Completion(outcome=Outcome.OK, output_tokens=num_tokens)


@pytest.fixture
def engine_class() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture
def make_requests():
    def make(count: int, *, output_tokens: int = 3, first_index: int = 0) -> list[PromptRequest]:
        return [
            PromptRequest.of([index, 1, 2], index=index, output_tokens=output_tokens)
            for index in range(first_index, first_index + count)
        ]

    return make
