"""Adapters of neobench's own engine, one a policy: its server as a child process, driven over HTTP like any other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from neobench.engines.launch import Launch, nearest_names
from neobench.engines.openai_http import CompletionsClient
from neobench.engines.process import ServerProcess, free_port
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest

FLAGS: Mapping[str, str] = {
    "device": "--device",
    "device_blocks": "--device-blocks",
    "device_memory_fraction": "--device-memory-fraction",
    "host_memory": "--host-memory",
    "host_kv_dtype": "--host-kv-dtype",
    "dtype": "--dtype",
    "block_size": "--block-size",
    "device_threads": "--device-threads",
    "host_threads": "--host-threads",
    "profile": "--profile",
    "seed": "--seed",
    "max_model_tokens": "--max-model-tokens",
    "max_batch_tokens": "--max-batch-tokens",
    "emulate": "--emulate",
    "sms": "--sms",
}
"""Options of the adapter -> flags of `neobench serve`, which checks their values."""
START_TIMEOUT_OPTION = "start_timeout_s"
DEFAULT_START_TIMEOUT_S = 600.0
"""Enough to read 140 GB of weights from a slow disk."""


class NeoEngine:
    """`neobench serve` with one policy; may be started again after a stop. `fixed` options prevail over others."""

    def __init__(self, name: str, launch: Launch, *, policy: str, **fixed: Any) -> None:
        self.name = name
        self._launch = launch
        self._policy = policy
        self._flags = _flags({**launch.options, **fixed})
        self._start_timeout_s = _start_timeout_s(launch.options)
        self._process: ServerProcess | None = None
        self._client: CompletionsClient | None = None

    @property
    def process_id(self) -> int | None:
        """Of the server while it runs."""
        return None if self._process is None else self._process.pid

    def command(self, port: int) -> list[str]:
        serve = [sys.executable, "-m", "neobench", "serve", "--policy", self._policy, "--model", self._launch.model]
        return [*serve, "--port", str(port), *self._flags]

    async def start(self) -> None:
        assert self._process is None, f"{self.name} is started already"
        port = free_port()
        self._process = ServerProcess(self.command(port), port=port, log_path=self._launch.log_path)
        await self._process.start(timeout_s=self._start_timeout_s, progress=self._launch.progress)
        self._client = CompletionsClient(self._process.url)
        await self._client.open()

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        return await self._started_client().generate(request, sink)

    async def check_alive(self) -> None:
        if self._process is None:
            raise EngineError(f"{self.name} is not started")
        self._process.check_alive()

    async def describe(self) -> Mapping[str, Any]:
        """The server's own account (GET /info) with its models; "command" is how it was started."""
        client = self._started_client()
        assert self._process is not None
        info = await client.get_json("/info")
        models = await client.get_json("/v1/models")
        served = [model["id"] for model in models["data"]]
        return {**info, "name": self.name, "policy": self._policy, "served_models": served, "flags": self._flags}

    async def stats(self) -> Mapping[str, int | float]:
        """The numbers of GET /stats, a flat object; a boolean in it is a fact, not a counter."""
        answer = await self._started_client().get_json("/stats")
        return {key: value for key, value in answer.items() if type(value) in (int, float)}

    def client_recipe(self) -> ClientRecipe:
        assert self._process is not None, f"{self.name} is not started"
        return ClientRecipe(
            factory="neobench.engines.openai_http:CompletionsClient", arguments={"base_url": self._process.url}
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process is not None:
            await self._process.stop()
            self._process = None

    def _started_client(self) -> CompletionsClient:
        if self._client is None:
            raise EngineError(f"{self.name} is not started")
        return self._client


def _flags(options: Mapping[str, Any]) -> list[str]:
    known = {**FLAGS, START_TIMEOUT_OPTION: ""}
    for option in options:
        if option not in known:
            raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, known)}?")
    given = [(flag, options.get(option)) for option, flag in FLAGS.items()]
    return [word for flag, value in given if value is not None for word in (flag, str(value))]


def _start_timeout_s(options: Mapping[str, Any]) -> float:
    value = options.get(START_TIMEOUT_OPTION)
    if value is None:
        return DEFAULT_START_TIMEOUT_S
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise EngineError(f"{START_TIMEOUT_OPTION} must be a number of seconds, not {value!r}") from error
