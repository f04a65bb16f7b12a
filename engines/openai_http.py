"""Client of an OpenAI-compatible server: a prompt in, a stream of events out. Knows no server process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from neobench.engines.sse import DONE, EventSplitter, StreamError, Usage, decode_event, error_message
from neobench.harness.engine import Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

READ_BUFFER_BYTES = 2**20
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn drops an idle connection: a request sent into that would fail."""
CONNECT_TIMEOUT_S = 30.0
CONTROL_TIMEOUT_S = 10.0
MAX_ERROR_BODY_BYTES = 16_384


_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class CompletionsClient:
    """One HTTP session without a limit on connections; a request that must wait for one would be measured wrongly."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api: str = "completions",
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        exact_output: bool = True,
    ) -> None:
        """`model` is the name in the API; None: the first one that the server lists.

        `exact_output` forces the number of output tokens (ignore_eos); without it the answer may be shorter.
        """
        self._base_url = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._served_model = model
        self._api = api
        self._headers = dict(headers or {})
        self._extra_body = dict(extra_body or {})
        self._exact_output = exact_output

    async def open(self) -> None:
        """Connect and take the served model's name. Raises EngineError."""
        assert self._session is None, "the client is open already"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            read_bufsize=READ_BUFFER_BYTES,
            headers=self._headers,
        )
        if self._served_model is not None:
            return
        models = await self.get_json("/v1/models")
        try:
            self._served_model = str(models["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{self._base_url}/v1/models names no model: {models!r:.200}") from error

    async def close(self) -> None:
        """Safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_json(self, path: str) -> Any:
        """Raises EngineError that names the URL."""
        url = self._base_url + path
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        try:
            async with self._open_session().get(url, timeout=timeout) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise EngineError(f"cannot reach {url}: {_reason(error)}") from error
        if response.status != 200:
            raise EngineError(f"{url} answered {response.status}: {error_message(body)}")
        try:
            return msgspec.json.decode(body)
        except msgspec.MsgspecError as error:
            raise EngineError(f"{url} did not answer with JSON: {error}") from error

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        """Serve one request to the end of its stream; cancelling closes its connection, so that the server stops too.

        Tokens are counted from the usage report at the end, never from events, which may carry several.
        """
        body = msgspec.json.encode(self._body(request))
        url = self._base_url + _PATHS[self._api]
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            async with self._open_session().post(url, data=body, headers=headers) as response:
                return await _read_completion(response, sink)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            return Completion(outcome=Outcome.CONNECTION_ERROR, error=_reason(error))
        except (aiohttp.ClientError, StreamError) as error:
            return Completion(outcome=Outcome.PROTOCOL_ERROR, error=_reason(error))

    def _body(self, request: PromptRequest) -> dict[str, Any]:
        prompt = msgspec.Raw(request.prompt_json)
        asked = {"messages": [{"role": "user", "content": prompt}]} if self._api == "chat" else {"prompt": prompt}
        return {
            "model": self._served_model,
            **asked,
            "max_tokens": request.output_tokens,
            "temperature": 0,
            **({"ignore_eos": True} if self._exact_output else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra_body,
        }

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineError(f"the client of {self._base_url} is not open")
        return self._session


async def _read_completion(response: aiohttp.ClientResponse, sink: TokenSink) -> Completion:
    """Leaving before the end of the body makes aiohttp close the connection instead of using it again."""
    if response.status != 200:
        message = error_message(await _read_bounded(response))
        return Completion(
            outcome=Outcome.HTTP_ERROR,
            http_status=response.status,
            retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
            error=message,
        )
    splitter = EventSplitter()
    tally = _Tally(sink)
    async for chunk in response.content.iter_any():
        tally.take(splitter.feed(chunk))
    tally.take(splitter.finish())
    usage = tally.usage
    if usage is None:
        raise StreamError("the stream ended without a usage report, so its tokens cannot be counted")
    return Completion(
        outcome=Outcome.OK,
        http_status=response.status,
        output_tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _retry_after_s(header: str | None) -> float | None:
    """Of the two forms of RFC 9110 only seconds are read: a date would be by the server's wall clock."""
    return float(header) if header is not None and header.strip().isdecimal() else None


class _Tally:
    """Tells the sink of every event that carries tokens, and keeps the last usage report."""

    __slots__ = ("_arrivals", "_sink", "_undecided", "usage")

    def __init__(self, sink: TokenSink) -> None:
        self.usage: Usage | None = None
        self._sink = sink
        self._arrivals = 0
        self._undecided = False

    def take(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if payload == DONE:
                continue
            event = decode_event(payload)
            if event.carries_tokens:
                self._arrived()
            elif event.choices:
                # The end of an answer, without text: of a token that has none, or of no token at all, as some servers
                # send it. The usage report, which follows at once, tells.
                self._undecided = True
            if event.usage is not None:
                self.usage = event.usage
                if self._undecided and self._arrivals < event.usage.completion_tokens:
                    self._arrived()
                self._undecided = False

    def _arrived(self) -> None:
        self._arrivals += 1
        self._sink.tokens_arrived()


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= MAX_ERROR_BODY_BYTES:
            break
    return body[:MAX_ERROR_BODY_BYTES]


def _reason(error: BaseException) -> str:
    """Some exceptions of aiohttp and asyncio have no text."""
    return str(error) or type(error).__name__
