"""Client of an OpenAI-compatible server: a prompt in, a stream of events out. Knows no server process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from neobench.engines.http_pool import BadReplyError, ConnectionLostError, HttpPool
from neobench.engines.sse import DONE, EventSplitter, StreamError, Usage, decode_event, error_message
from neobench.harness.engine import Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

if TYPE_CHECKING:
    import aiohttp

CONTROL_TIMEOUT_S = 10.0
MAX_ERROR_BODY_BYTES = 16_384
FIXED_FIELDS = ("prompt", "messages", "max_tokens", "stream")
"""Of a request's body: the run says what they are."""

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class CompletionsClient:
    """Generation goes through connections of our own (http_pool), all other requests through aiohttp."""

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
        `extra_body` is put into every request, over what stands there. Raises EngineError for one of FIXED_FIELDS in it
        and for a header that cannot be sent.
        """
        for field in FIXED_FIELDS:
            if field in (extra_body or {}):
                raise EngineError(f"the extra body must not hold {field!r}: the run says what it is")
        self._base_url = base_url.rstrip("/")
        self._pool = HttpPool(self._base_url)
        self._session: aiohttp.ClientSession | None = None
        self._model = model
        self._api = api
        self._headers = dict(headers or {})
        self._extra_body = dict(extra_body or {})
        self._exact_output = exact_output
        self._head = self._request_head()
        self._body_start = b""

    async def open(self) -> None:
        """Take the served model's name, if it was not given. Raises EngineError."""
        assert not self._body_start, "the client is open already"
        if self._model is None:
            models = await self.get_json("/v1/models")
            try:
                self._model = str(models["data"][0]["id"])
            except (KeyError, IndexError, TypeError) as error:
                raise EngineError(f"{self._base_url}/v1/models names no model: {models!r:.200}") from error
        self._body_start = self._fixed_body()

    async def close(self) -> None:
        """Safe to call twice."""
        self._pool.close()
        self._body_start = b""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_json(self, path: str) -> Any:
        """Raises EngineError that names the URL."""
        import aiohttp

        url = self._base_url + path
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        try:
            async with self._session.get(url) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise EngineError(f"cannot reach {url}: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            raise EngineError(f"{url} answered {response.status}: {error_message(body)}")
        try:
            return msgspec.json.decode(body)
        except msgspec.MsgspecError as error:
            raise EngineError(f"{url} did not answer with JSON: {error}") from error

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        """Serve one request to the end of its stream; cancelling closes its connection, so that the server stops too.

        Tokens are counted from the usage report at the end, never from events, which may carry several. Instants given
        to the sink are of time.perf_counter_ns, read when the bytes came in.
        """
        reply = _Reply(sink)
        try:
            ended_ns = await self._pool.exchange(self._request(request), reply)
            return reply.completion(ended_ns)
        except ConnectionLostError as error:
            return Completion(outcome=Outcome.CONNECTION_ERROR, http_status=reply.status, error=str(error))
        except (BadReplyError, StreamError) as error:
            return Completion(outcome=Outcome.PROTOCOL_ERROR, http_status=reply.status, error=str(error))

    def _request(self, request: PromptRequest) -> bytes:
        """Every byte that goes out, for there is nothing to win by sending them in pieces."""
        if not self._body_start:
            raise EngineError(f"the client of {self._base_url} is not open")
        end = b',"max_tokens":%d}' % request.output_tokens
        if self._api == "chat":
            prompt = b',"messages":[{"role":"user","content":%b}]' % request.prompt_json
        else:
            prompt = b',"prompt":%b' % request.prompt_json
        length = len(self._body_start) + len(prompt) + len(end)
        return b"%b%d\r\n\r\n%b%b%b" % (self._head, length, self._body_start, prompt, end)

    def _fixed_body(self) -> bytes:
        """The JSON object of all requests, without its end."""
        fields = {
            "model": self._model,
            "temperature": 0,
            **({"ignore_eos": True} if self._exact_output else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra_body,
        }
        return msgspec.json.encode(fields)[:-1]

    def _request_head(self) -> bytes:
        """Up to the number of bytes in the body."""
        address = urlsplit(self._base_url)
        fields = {
            "Host": address.netloc,
            "User-Agent": "neobench",
            "Accept": "text/event-stream",
            "Content-Type": "application/json",
            **self._headers,
        }
        lines = [f"POST {address.path}{_PATHS[self._api]} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
        if any(not line.isprintable() or not line.isascii() for line in lines):
            raise EngineError(f"a header holds what cannot be sent (only printable ASCII can): {', '.join(fields)}")
        return "\r\n".join([*lines, "Content-Length: "]).encode()


class _Reply:
    """The answer to one request as it comes in. Tells the sink of every event that carries tokens."""

    __slots__ = (
        "_arrivals",
        "_content_type",
        "_refusal",
        "_retry_after_s",
        "_sink",
        "_splitter",
        "_undecided_ns",
        "_usage",
        "status",
    )

    def __init__(self, sink: TokenSink) -> None:
        self.status: int | None = None
        self._sink = sink
        self._splitter = EventSplitter()
        self._arrivals = 0
        self._undecided_ns: int | None = None
        self._usage: Usage | None = None
        self._refusal = b""
        self._retry_after_s: float | None = None
        self._content_type = b""

    def headed(self, status: int, headers: Mapping[bytes, bytes]) -> bool:
        self.status = status
        self._retry_after_s = _retry_after_s(headers.get(b"retry-after"))
        self._content_type = headers.get(b"content-type", b"")
        if 300 <= status < 400:
            self._refusal = b"redirected to %b; give that address" % headers.get(b"location", b"nowhere")
            return False
        return True

    def arrived(self, body: bytes, at_ns: int) -> bool:
        """Raises StreamError."""
        if self.status == 200:
            self._take(self._splitter.feed(body), at_ns)
            return True
        self._refusal += body
        return len(self._refusal) <= MAX_ERROR_BODY_BYTES

    def completion(self, ended_ns: int) -> Completion:
        """Raises StreamError where the stream does not say how many tokens there were."""
        if self.status != 200:
            return Completion(
                outcome=Outcome.HTTP_ERROR,
                http_status=self.status,
                retry_after_s=self._retry_after_s,
                error=error_message(self._refusal),
                ended_ns=ended_ns,
            )
        self._take(self._splitter.finish(), ended_ns)
        usage = self._usage
        if usage is None:
            if not self._content_type.startswith(b"text/event-stream"):
                kind = self._content_type.decode("latin-1") or "a body of no stated type"
                raise StreamError(f"the answer is {kind}, not an event stream")
            raise StreamError("the stream ended without a usage report, so its tokens cannot be counted")
        return Completion(
            outcome=Outcome.OK,
            http_status=self.status,
            output_tokens=usage.completion_tokens,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            ended_ns=ended_ns,
        )

    def _take(self, payloads: list[bytes], at_ns: int) -> None:
        for payload in payloads:
            if payload == DONE:
                continue
            event = decode_event(payload)
            if event.carries_tokens:
                self._arrived(at_ns)
            elif event.choices:
                # The end of an answer, without text: of a token that has none, or of no token at all, as some servers
                # send it. The usage report, which follows at once, tells.
                self._undecided_ns = at_ns
            if event.usage is not None:
                self._usage = event.usage
                if self._undecided_ns is not None and self._arrivals < event.usage.completion_tokens:
                    self._arrived(self._undecided_ns)
                self._undecided_ns = None

    def _arrived(self, at_ns: int) -> None:
        self._arrivals += 1
        self._sink.tokens_arrived(at_ns)


def _retry_after_s(header: bytes | None) -> float | None:
    """Of the two forms of RFC 9110 only seconds are read: a date would be by the server's wall clock."""
    return float(header) if header is not None and header.strip().isdigit() else None
