"""The HTTP of servers that stand in for an engine: nothing is computed, and when each token leaves is planned."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from neobench.engines.deadlines import Deadlines
from neobench.engines.instant_log import InstantLog, Instants
from neobench.engines.process import HOST
from neobench.engines.stand_in_api import (
    Asked,
    BadRequestError,
    json_answer,
    prompt_start,
    read_request,
    refusal,
    request_id,
    stream_end,
    stream_start,
    token_event,
    whole_body,
    whole_stream,
)
from neobench.harness.engine import EngineError

_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_COMPLETIONS = b"POST /v1/completions "
_CHAT = b"POST /v1/chat/completions "
MAX_CONNECTIONS = 1_000_000
BACKLOG = 16_384


class Plan(NamedTuple):
    """When the answer to one request leaves."""

    began_ns: int
    token_due_ns: list[int]
    """Of each token, ascending."""


Timing = Callable[[int, int], Plan]
"""(received_ns, output_tokens) -> the plan; called once a request, in the order in which they come in."""


class StandInServer:
    """Of one running event loop. Without `timing` an answer leaves at once, in one write."""

    def __init__(self, model: str, timing: Timing | None, log: InstantLog | None) -> None:
        self.model = model
        self.timing = timing
        self.log = log
        self.deadlines = Deadlines()

    def other_answer(self, head: bytes) -> bytes:
        """To anything but a request for tokens."""
        if head.startswith(b"GET /health "):
            return json_answer(b"200 OK", b"{}")
        if head.startswith(b"GET /v1/models "):
            model = b'{"id":"%b","object":"model","created":0,"owned_by":"neobench"}' % self.model.encode()
            return json_answer(b"200 OK", b'{"object":"list","data":[%b]}' % model)
        return refusal(b"404 Not Found", "not served here")


class _Connection(asyncio.Protocol):
    """Requests one after another; as much of HTTP/1.1 as clients of the API send."""

    def __init__(self, server: StandInServer) -> None:
        self._server = server
        self._received = b""
        self._answer: _Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.abandon()

    def data_received(self, data: bytes) -> None:
        received_ns = time.perf_counter_ns()
        self._received += data
        self._take(received_ns)

    def _take(self, received_ns: int) -> None:
        while self._answer is None and (head_size := self._received.find(_HEAD_END)) >= 0:
            head = self._received[:head_size]
            length = _CONTENT_LENGTH.search(head)
            end = head_size + len(_HEAD_END) + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            body, self._received = self._received[head_size + len(_HEAD_END) : end], self._received[end:]
            if head.startswith((_COMPLETIONS, _CHAT)):
                self._complete(head, body, received_ns)
            else:
                self._transport.write(self._server.other_answer(head))

    def _complete(self, head: bytes, body: bytes, received_ns: int) -> None:
        server = self._server
        try:
            asked = read_request(body, chat=head.startswith(_CHAT))
        except BadRequestError as error:
            self._transport.write(refusal(b"400 Bad Request", str(error)))
            return
        if server.timing is None:
            self._at_once(head, body, asked, received_ns)
            return
        plan = server.timing(received_ns, asked.output_tokens)
        instants = _instants(head, body, asked, received_ns, plan)
        self._answer = _Answer(server, self._transport, asked, plan, instants, self._answered)

    def _at_once(self, head: bytes, body: bytes, asked: Asked, received_ns: int) -> None:
        answer = whole_stream(asked) if asked.stream else whole_body(asked)
        log = self._server.log
        if log is not None:
            instants = _instants(head, body, asked, received_ns, Plan(received_ns, [received_ns]))
            instants.token_ns = [time.perf_counter_ns()] * asked.output_tokens
            instants.completed = True
            log.began()
            log.ended(instants)
        self._transport.write(answer)

    def _answered(self) -> None:
        self._answer = None
        # A client that sent its next request early has waited for this moment.
        self._take(time.perf_counter_ns())


def _instants(head: bytes, body: bytes, asked: Asked, received_ns: int, plan: Plan) -> Instants:
    return Instants(
        request_id=request_id(head),
        prompt_start=prompt_start(body),
        prompt_tokens=asked.prompt_tokens,
        output_tokens=asked.output_tokens,
        received_ns=received_ns,
        began_ns=plan.began_ns,
        last_due_ns=plan.token_due_ns[-1],
        token_ns=[],
    )


class _Answer:
    """One answer on its way, token by token; without a stream all of it when the last token is due."""

    def __init__(
        self,
        server: StandInServer,
        transport: asyncio.Transport,
        asked: Asked,
        plan: Plan,
        instants: Instants,
        done: Callable[[], None],
    ) -> None:
        self._server = server
        self._transport = transport
        self._asked = asked
        self._due_ns = plan.token_due_ns
        self._instants = instants
        self._done = done
        self._abandoned = False
        if server.log is not None:
            server.log.began()
        server.deadlines.at(self._due_ns[0 if asked.stream else -1], self._leave)

    def abandon(self) -> None:
        if not self._abandoned and not self._instants.completed:
            self._abandoned = True
            self._log()

    def _leave(self, now_ns: int) -> None:
        if self._abandoned:
            return
        asked, instants = self._asked, self._instants
        # Right before the socket has it: several may be due in one turn of the loop.
        now_ns = time.perf_counter_ns()
        if not asked.stream:
            self._transport.write(whole_body(asked))
            instants.token_ns = [now_ns] * asked.output_tokens
            self._end()
            return
        sent = len(instants.token_ns)
        last = sent + 1 == len(self._due_ns)
        token = token_event(asked.chat, last=last)
        self._transport.write((token if sent else stream_start() + token) + (stream_end(asked) if last else b""))
        instants.token_ns.append(now_ns)
        if last:
            self._end()
        else:
            self._server.deadlines.at(self._due_ns[sent + 1], self._leave)

    def _end(self) -> None:
        self._instants.completed = True
        self._log()
        self._done()

    def _log(self) -> None:
        if self._server.log is not None:
            self._server.log.ended(self._instants)


def argument_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Of a stand-in server's command line: PORT and --log."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("port", type=int, metavar="PORT", help="of 127.0.0.1; serves until it is ended by a signal")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="write when each request came in and each token left: a JSON line each"
    )
    return parser


def run_server(model: str, timing: Timing | None, *, port: int, log: Path | None) -> None:
    """Until SIGTERM or SIGINT, on which the log is written out. Exits with a sentence if it cannot listen or log."""
    from neobench.harness.descriptors import allow_connections
    from neobench.harness.runner import run_async

    allow_connections(MAX_CONNECTIONS)
    try:
        run_async(_serve(model, timing, port, None if log is None else InstantLog(log)))
    except EngineError as error:
        sys.exit(str(error))


async def _serve(model: str, timing: Timing | None, port: int, log: InstantLog | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = StandInServer(model, timing, log)
    try:
        listening = await loop.create_server(partial(_Connection, server), HOST, port, backlog=BACKLOG)
    except OSError as error:
        raise EngineError(f"cannot listen on port {port} of {HOST}: {error}") from error
    try:
        await stop.wait()
    finally:
        listening.close()
        server.deadlines.close()
        if log is not None:
            log.write()
