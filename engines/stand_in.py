"""Engines that are a small server of neobench's own: started, asked and stopped as any other."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from neobench.engines.launch import Launch, PromptLimits, nearest_names
from neobench.engines.openai_http import CompletionsClient
from neobench.engines.process import ServerProcess, free_port
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest

VOCAB_SIZE = 32_000
START_TIMEOUT_S = 30.0
LOG_FLAG = "--log"


def limits(_model: str, options: Mapping[str, Any]) -> PromptLimits:
    return PromptLimits(vocab_size=VOCAB_SIZE, max_model_tokens=options.get("max_model_tokens"))


def check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises EngineError for one that is not known."""
    for option in options:
        if option not in known:
            raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, known)}?")


def number_of(options: Mapping[str, Any], name: str, default: float | None, *, above_zero: bool = False) -> Any:
    """A number of milliseconds or the like, or the default. Raises EngineError."""
    value = options.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
    if not is_number or not (value > 0 if above_zero else value >= 0):
        raise EngineError(f"{name} must be a number {'above 0' if above_zero else 'of at least 0'}, not {value!r}")
    return float(value)


class StandInEngine:
    """Starts the server, and drives it as any other."""

    def __init__(
        self, name: str, launch: Launch, *, module: str, model: str, flags: Sequence[str], facts: Mapping[str, Any]
    ) -> None:
        """`python -m module PORT flags` is the server, `facts` what a run tells of it."""
        self.name = name
        self._launch = launch
        self._module = module
        self._model = model
        self._flags = list(flags)
        self._facts = {"name": name, "served_models": [model], **facts}
        if launch.options.get("log_instants"):
            log_path = instants_path(launch.log_path)
            self._flags += [LOG_FLAG, str(log_path)]
            self._facts["instants"] = log_path.name
        self._process: ServerProcess | None = None
        self._client: CompletionsClient | None = None

    @property
    def process_id(self) -> int | None:
        """Of the server while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        assert self._process is None, f"{self.name} is started already"
        port = free_port()
        command = [sys.executable, "-m", self._module, str(port), *self._flags]
        self._process = ServerProcess(command, port=port, log_path=self._launch.log_path)
        await self._process.start(timeout_s=START_TIMEOUT_S, progress=self._launch.progress)
        self._client = CompletionsClient(self._process.url, self._model)
        await self._client.open()

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        if self._client is None:
            raise EngineError(f"{self.name} is not started")
        return await self._client.generate(request, sink)

    async def check_alive(self) -> None:
        if self._process is None:
            raise EngineError(f"{self.name} is not started")
        self._process.check_alive()

    async def describe(self) -> Mapping[str, Any]:
        return self._facts

    async def stats(self) -> Mapping[str, int | float]:
        """It counts nothing."""
        return {}

    def client_recipe(self) -> ClientRecipe:
        assert self._process is not None, f"{self.name} is not started"
        return ClientRecipe(
            factory="neobench.engines.openai_http:CompletionsClient",
            arguments={"base_url": self._process.url, "model": self._model},
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process is not None:
            await self._process.stop()
            self._process = None


def instants_path(log_path: Path) -> Path:
    """Beside the server's log."""
    return log_path.with_suffix(".instants.jsonl")
