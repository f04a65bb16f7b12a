"""HTTP/1.1 as a load generator needs it: a request's bytes out, the answer's bytes in, stamped as they arrive.

A connection whose answer was read to its end is used again. Nothing waits for a connection, for it would be measured
wrongly: where the limit on open files allows no more of them the request fails, and says so.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from neobench.harness.descriptors import connections_that_fit

KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn drops an idle connection: a request sent into that would fail."""
CONNECT_TIMEOUT_S = 30.0
STALE_WITHIN_S = 1.0
"""An end of the connection that was on its way before the request was is seen within a round trip."""


class ConnectionLostError(Exception):
    """There is no connection, or it ended before the answer did."""


class BadReplyError(Exception):
    """What came back is not HTTP, or not the answer to what was asked."""


class Receiver(Protocol):
    """Takes one answer. Both methods say whether they want more; if not, the exchange ends well and its connection is
    closed. What they raise ends the exchange and is raised there."""

    def headed(self, status: int, headers: Mapping[bytes, bytes]) -> bool:
        """Names of headers are in small letters."""

    def arrived(self, body: bytes, at_ns: int) -> bool:
        """More of the body; `at_ns` is time.perf_counter_ns of the moment at which the bytes were read."""


class HttpPool:
    """Connections to the server of one URL. Its name is looked up once: a run measures one place."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._addresses: list[str] = []
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._taken: set[object] = set()
        """One for each connection that is open or being opened."""

    async def exchange(self, request: bytes, receiver: Receiver) -> int:
        """Returns the instant at which the end of the answer arrived; cancelling closes the connection.

        Raises ConnectionLostError, BadReplyError, and what the receiver raises.
        """
        while True:
            connection = self._take_idle()
            is_reused = connection is not None
            if connection is None:
                connection = await self._connect()
            sent_ns = time.perf_counter_ns()
            try:
                return await connection.exchange(request, receiver)
            except ConnectionLostError:
                # The server closed an idle connection just as it was used again and has not seen the request, which RFC
                # 9112, section 9.3.1, then lets a client send anew. Any other loss may be a failure of the server that
                # a second try would hide: on a new connection, after a byte of the answer, or long after the sending.
                is_recent = time.perf_counter_ns() - sent_ns < STALE_WITHIN_S * 1e9
                if not (is_reused and is_recent and not connection.has_heard):
                    raise

    def close(self) -> None:
        """Exchanges that are going on end with ConnectionLostError. Safe to call twice."""
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()

    def _take_idle(self) -> _Connection | None:
        """The one used last; those before it have been idle for longer."""
        oldest_s = time.monotonic() - KEEP_ALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s >= oldest_s and not connection.is_closing:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        if len(self._taken) >= (most := connections_that_fit()):
            raise ConnectionLostError(
                f"no connection to {self._host}:{self._port}: {len(self._taken)} are open, and the limit on open files "
                f"leaves room for {most} (raise it: `ulimit -n`; or keep --concurrency at {most} or less)"
            )
        place = object()
        self._taken.add(place)
        try:
            return await asyncio.wait_for(self._try_addresses(place), CONNECT_TIMEOUT_S)
        except BaseException as error:
            self._taken.discard(place)
            if isinstance(error, asyncio.TimeoutError):
                why = f" within {CONNECT_TIMEOUT_S:g} s"
            elif isinstance(error, OSError):
                why = f": {error}"
            else:
                raise
            raise ConnectionLostError(f"no connection to {self._host}:{self._port}{why}") from error

    async def _try_addresses(self, place: object) -> _Connection:
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._host, self._port, type=1)
            self._addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        server_name = None if self._tls is None else self._host
        for address in list(self._addresses):
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._all, self._idle, lambda: self._taken.discard(place)),
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=server_name,
                )
            except OSError as error:
                failure = error
            else:
                if address != self._addresses[0]:
                    self._addresses = [address]
                return connection
        raise failure


class _Connection(asyncio.Protocol):
    """One exchange at a time. When one ends well, the connection puts itself back among the idle ones."""

    def __init__(self, everyone: set[_Connection], idle: deque[_Connection], on_lost: Callable[[], None]) -> None:
        self.has_heard = False
        """A byte has come since the last request was sent."""
        self.idle_since_s = 0.0
        self._everyone = everyone
        self._idle = idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._end: asyncio.Future[int] | None = None
        self._begin_reply()

    def _begin_reply(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._is_headed = False
        self._body: list[bytes] = []
        self._is_complete = False
        self._keeps_alive = False

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    async def exchange(self, request: bytes, receiver: Receiver) -> int:
        assert self._end is None, "an exchange is going on"
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLostError("the server closed the connection")
        self.has_heard = False
        self._receiver = receiver
        self._end = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._end
        finally:
            if self._receiver is receiver:
                # Cancelled: only the end of the connection tells the server to stop.
                self.abort()

    def abort(self) -> None:
        self._fail(ConnectionLostError("the connection was given up"))
        if self._transport is not None:
            self._transport.abort()

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of uvloop's transports none is an asyncio.Transport, though all behave like one.
        self._transport = cast("asyncio.Transport", transport)
        self._everyone.add(self)

    def data_received(self, data: bytes) -> None:
        at_ns = time.perf_counter_ns()
        receiver, parser = self._receiver, self._parser
        if receiver is None or parser is None:
            # Nobody has asked: whatever this is, it must not be taken for the answer to the next request.
            self.abort()
            return
        self.has_heard = True
        refusal: Exception | None = None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            refusal = BadReplyError("the server wants to change the protocol")
        except httptools.HttpParserError as error:
            refusal = BadReplyError(f"the answer is not HTTP: {error}: {data[:80]!r}")
        try:
            wants_more = self._deliver(receiver, at_ns)
        except Exception as error:
            refusal = refusal or error
        if refusal is not None:
            self._fail(refusal)
            self.abort()
        elif not wants_more:
            self._keeps_alive = False
            self._succeed(at_ns)
        elif self._is_complete:
            self._succeed(at_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        self._everyone.discard(self)
        self._on_lost()
        # The parser holds methods of this object, and a run has no garbage collector to see the circle.
        self._parser = None
        if self._receiver is None:
            return
        if exc is None and self._is_headed and self._ends_with_connection():
            self._succeed(time.perf_counter_ns())
        else:
            self._fail(ConnectionLostError(_reason_of_loss(exc, self.has_heard)))

    # --- called by the parser

    def on_message_begin(self) -> None:
        if self._is_complete:
            # A second answer to one request. What it belongs to is anybody's guess.
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if not self._is_complete:
            self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._is_complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._is_complete:
            return
        if self._status < 200:
            # "100 Continue" and its like precede the answer.
            self._status = 0
            self._headers = {}
            return
        self._is_complete = True
        self._keeps_alive = self._parser.should_keep_alive()

    # ---

    def _deliver(self, receiver: Receiver, at_ns: int) -> bool:
        if not self._is_headed and self._status >= 200:
            self._is_headed = True
            if not receiver.headed(self._status, self._headers):
                return False
        if not self._body:
            return True
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return receiver.arrived(body, at_ns)

    def _ends_with_connection(self) -> bool:
        """The body has no other end (RFC 9112, section 6.3)."""
        return b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def _succeed(self, at_ns: int) -> None:
        end = self._end
        self._receiver = self._end = None
        if self._keeps_alive and self._transport is not None and not self._transport.is_closing():
            self.idle_since_s = time.monotonic()
            self._begin_reply()
            self._idle.append(self)
        elif self._transport is not None:
            self._transport.abort()
        if end is not None and not end.done():
            end.set_result(at_ns)

    def _fail(self, error: Exception) -> None:
        end = self._end
        self._receiver = self._end = None
        if end is not None and not end.done():
            end.set_exception(error)


def _reason_of_loss(error: Exception | None, has_heard: bool) -> str:
    moment = "in the middle of its answer" if has_heard else "before it answered"
    if error is None:
        return f"the server closed the connection {moment}"
    return f"the connection broke {moment}: {str(error) or type(error).__name__}"
