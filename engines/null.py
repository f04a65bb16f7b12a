"""An engine that takes no time: what a run against it shows is the harness itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from neobench.engines.launch import Launch, PromptLimits, nearest_names
from neobench.harness.engine import Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

VOCAB_SIZE = 32_000
OPTIONS = ("max_model_tokens",)


def limits(_model: str, options: Mapping[str, Any]) -> PromptLimits:
    return PromptLimits(vocab_size=VOCAB_SIZE, max_model_tokens=options.get("max_model_tokens"))


class NullEngine:
    name = "null"

    def __init__(self, launch: Launch) -> None:
        for option in launch.options:
            if option not in OPTIONS:
                raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, OPTIONS)}?")
        self._max_model_tokens = launch.options.get("max_model_tokens")

    @property
    def process_id(self) -> int:
        return os.getpid()

    async def start(self) -> None:
        pass

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        for _ in range(request.output_tokens):
            sink.tokens_arrived()
        return Completion(outcome=Outcome.OK, output_tokens=request.output_tokens)

    async def check_alive(self) -> None:
        pass

    async def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "vocab_size": VOCAB_SIZE, "max_model_tokens": self._max_model_tokens}

    async def stats(self) -> Mapping[str, int | float]:
        return {}

    async def stop(self) -> None:
        pass
