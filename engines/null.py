"""An engine that takes no time: what a run against it shows is the harness itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neobench.engines.launch import Launch
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

VOCAB_SIZE = 32_000


class NullEngine:
    name = "null"

    def __init__(self, launch: Launch) -> None:
        if launch.options:
            raise EngineError(f"the null engine takes no options, but got {', '.join(launch.options)}")

    async def start(self) -> None:
        pass

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        for _ in range(request.output_tokens):
            sink.tokens_arrived()
        return Completion(outcome=Outcome.OK, output_tokens=request.output_tokens)

    async def check_alive(self) -> None:
        pass

    async def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "vocab_size": VOCAB_SIZE, "max_model_tokens": None}

    async def stats(self) -> Mapping[str, int | float]:
        return {}

    def client_recipe(self) -> ClientRecipe | None:
        return None

    async def stop(self) -> None:
        pass
