"""An OpenAI-compatible server that answers at once, in a process of its own: measures the client and its HTTP.

    python -m neobench.engines.null_server PORT        serves until it is killed

A reply's tokens leave in one write: a server that takes time for each would be what is measured.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from neobench.engines.launch import Launch, PromptLimits, nearest_names
from neobench.engines.openai_http import CompletionsClient
from neobench.engines.process import HOST, ServerProcess, free_port
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest

VOCAB_SIZE = 32_000
MODEL = "null"
START_TIMEOUT_S = 30.0
OPTIONS = ("max_model_tokens",)
_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')


def limits(_model: str, options: Mapping[str, Any]) -> PromptLimits:
    return PromptLimits(vocab_size=VOCAB_SIZE, max_model_tokens=options.get("max_model_tokens"))


class NullServerEngine:
    """Starts the server, and drives it as any other."""

    name = "null_server"

    def __init__(self, launch: Launch) -> None:
        for option in launch.options:
            if option not in OPTIONS:
                raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, OPTIONS)}?")
        self._launch = launch
        self._process: ServerProcess | None = None
        self._client: CompletionsClient | None = None

    @property
    def process_id(self) -> int | None:
        """Of the server while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        assert self._process is None, f"{self.name} is started already"
        port = free_port()
        command = [sys.executable, "-m", "neobench.engines.null_server", str(port)]
        self._process = ServerProcess(command, port=port, log_path=self._launch.log_path)
        await self._process.start(timeout_s=START_TIMEOUT_S, progress=self._launch.progress)
        self._client = CompletionsClient(self._process.url, MODEL)
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
        return {"name": self.name, "served_models": [MODEL]}

    async def stats(self) -> Mapping[str, int | float]:
        return {}

    def client_recipe(self) -> ClientRecipe:
        assert self._process is not None, f"{self.name} is not started"
        return ClientRecipe(
            factory="neobench.engines.openai_http:CompletionsClient",
            arguments={"base_url": self._process.url, "model": MODEL},
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process is not None:
            await self._process.stop()
            self._process = None


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=64)
def reply(tokens: int) -> bytes:
    """The whole answer: one server-sent event a token, a usage report, the end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = _chunk(b'data: {"choices":[{"index":0,"text":"x","finish_reason":null}]}\n\n')
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % tokens
    return head + event * tokens + _chunk(usage) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")


def _json(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class _Connection(asyncio.Protocol):
    """Requests one after another; as much of HTTP/1.1 as clients of the API send."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head_size := self._received.find(_HEAD_END)) >= 0:
            head = self._received[:head_size]
            length = _CONTENT_LENGTH.search(head)
            end = head_size + len(_HEAD_END) + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            body, self._received = self._received[head_size + len(_HEAD_END) : end], self._received[end:]
            self._transport.write(_answer(head, body))


def _answer(head: bytes, body: bytes) -> bytes:
    if head.startswith((b"POST /v1/completions ", b"POST /v1/chat/completions ")):
        asked = _MAX_TOKENS.search(body)
        return reply(int(asked[1])) if asked else _json(b"400 Bad Request", b'{"error":{"message":"no max_tokens"}}')
    if head.startswith(b"GET /health "):
        return _json(b"200 OK", b"{}")
    if head.startswith(b"GET /v1/models "):
        return _json(b"200 OK", b'{"object":"list","data":[{"id":"null","object":"model"}]}')
    return _json(b"404 Not Found", b'{"error":{"message":"not served here"}}')


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, HOST, port, backlog=16_384)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    from neobench.harness.descriptors import allow_connections
    from neobench.harness.runner import run_async

    allow_connections(1_000_000)
    run_async(serve(int(sys.argv[1])))
