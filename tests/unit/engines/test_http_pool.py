"""Connections against a server that writes each byte by hand: what is kept, what is tried again, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from neobench.engines.openai_http import CompletionsClient
from neobench.harness.engine import EngineError
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

from .conftest import Arrivals

EVENTS = (
    b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS)
Answer = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


class ByHand:
    """Reads whole requests; `answer` writes what comes back to the n-th of a connection."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answer = answer

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        count = 0
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                count += 1
                await self._answer(writer, count)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[ByHand, CompletionsClient]]:
    by_hand = ByHand(answer)
    server = await asyncio.start_server(by_hand.connected, "127.0.0.1", 0)
    client = CompletionsClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base", "m", headers={"X-Y": "z"})
    try:
        await client.open()
        yield by_hand, client
    finally:
        await client.close()
        server.close()


def writes(*parts: bytes, then_close: bool = False) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _count: int) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.001)
        if then_close:
            writer.close()

    return answer


@pytest.fixture
def request_of_one() -> PromptRequest:
    return PromptRequest.of([5, 6, 7, 8], index=0, output_tokens=1)


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (writes(GOOD), 1),
        (writes(*[GOOD[i : i + 1] for i in range(len(GOOD))]), 1),
        (writes(b"HTTP/1.1 100 Continue\r\n\r\n", GOOD), 1),
        (writes(b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD), 1),
        (writes(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), then_close=True), 3),
        (writes(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS, then_close=True), 3),
        (writes(b"HTTP/1.0 200 OK\r\n\r\n", EVENTS, then_close=True), 3),
        (writes(GOOD + GOOD), 3),
    ],
    ids=["length", "bytes", "100", "100 in one", "close", "until the end", "HTTP 1.0", "two answers"],
)
async def test_a_connection_is_used_again_if_its_answer_ended_well(
    request_of_one: PromptRequest, answer: Answer, connections: int
) -> None:
    async with serving(answer) as (server, client):
        for _ in range(3):
            sink = Arrivals()
            completion = await client.generate(request_of_one, sink)
            assert (completion.outcome, completion.output_tokens) == (Outcome.OK, 1), completion.error
            assert len(sink) == 1
    assert server.connections == connections


async def test_what_is_sent_is_one_whole_request(request_of_one: PromptRequest) -> None:
    async with serving(writes(GOOD)) as (server, client):
        await client.generate(request_of_one, Arrivals())
    head, body = server.requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Y: z\r\n" in head
    assert body.endswith(b'"prompt":[5,6,7,8],"max_tokens":1}')


async def test_a_connection_closed_while_idle_is_replaced_unseen(request_of_one: PromptRequest) -> None:
    """The server drops the second request of each connection without a byte, as if it had closed it before."""

    async def answer(writer: asyncio.StreamWriter, count: int) -> None:
        writer.write(GOOD) if count == 1 else writer.close()

    async with serving(answer) as (server, client):
        completions = [await client.generate(request_of_one, Arrivals()) for _ in range(3)]
    assert {completion.outcome for completion in completions} == {Outcome.OK}
    assert server.connections == 3


async def test_no_other_loss_is_tried_again(request_of_one: PromptRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new connection, after a byte of the answer, long after the sending: the request has failed."""

    async def half(writer: asyncio.StreamWriter, count: int) -> None:
        writer.write(GOOD if count == 1 else b"H")
        if count > 1:
            writer.close()

    async def late(writer: asyncio.StreamWriter, count: int) -> None:
        if count > 1:
            await asyncio.sleep(0.2)
            writer.close()
        writer.write(GOOD)

    async with serving(writes(then_close=True)) as (server, client):
        lost = await client.generate(request_of_one, Arrivals())
        assert (lost.outcome, len(server.requests)) == (Outcome.CONNECTION_ERROR, 1)
        assert "before it answered" in (lost.error or "")
    monkeypatch.setattr("neobench.engines.http_pool.STALE_WITHIN_S", 0.1)
    for answer, moment in ((half, "in the middle"), (late, "before it answered")):
        async with serving(answer) as (server, client):
            assert (await client.generate(request_of_one, Arrivals())).outcome is Outcome.OK
            lost = await client.generate(request_of_one, Arrivals())
            assert (lost.outcome, len(server.requests)) == (Outcome.CONNECTION_ERROR, 2)
            assert moment in (lost.error or "")


@pytest.mark.parametrize(
    ("answer", "outcome", "said"),
    [
        (b"HTTP/1.1 307 T\r\nLocation: http://there/\r\nContent-Length: 0\r\n\r\n", "http_error", "to http://there/"),
        (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "protocol_error", "change the protocol"),
        (b"220 mail.example.com\r\n\r\n", "protocol_error", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol_error", "not HTTP"),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", "http_error", ""),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            "protocol_error",
            "application/json, not an event stream",
        ),
    ],
    ids=["redirect", "upgrade", "no HTTP", "bad chunk", "no content", "JSON"],
)
async def test_answers_that_fail_a_request(
    request_of_one: PromptRequest, answer: bytes, outcome: str, said: str
) -> None:
    async with serving(writes(answer)) as (_, client):
        completion = await asyncio.wait_for(client.generate(request_of_one, Arrivals()), 5)
    assert completion.outcome == outcome
    assert said in (completion.error or "")


async def test_tokens_before_bytes_that_are_not_http_are_kept(request_of_one: PromptRequest) -> None:
    chunk = b"%x\r\n%b\r\n" % (len(EVENTS), EVENTS)
    async with serving(writes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"zz\r\n")) as (
        _,
        client,
    ):
        sink = Arrivals()
        completion = await client.generate(request_of_one, sink)
    assert completion.outcome is Outcome.PROTOCOL_ERROR
    assert len(sink) == 1


async def test_an_event_without_an_end_does_not_fill_the_memory(
    request_of_one: PromptRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neobench.engines.sse.MAX_EVENT_BYTES", 1000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    async with serving(writes(head, b"data: " + b"x" * 2000)) as (_, client):
        completion = await asyncio.wait_for(client.generate(request_of_one, Arrivals()), 5)
    assert "more than 1000 bytes" in (completion.error or "")


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(EngineError, match="printable ASCII"):
        CompletionsClient("http://localhost", "m", headers={"X-Key": "a\r\nHost: evil"})
    with pytest.raises(EngineError, match="must not hold 'stream'"):
        CompletionsClient("http://localhost", "m", extra_body={"stream": False})
