"""The client against a real HTTP server: every way in which a stream may arrive or fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp import web

from neobench.engines.openai_http import CompletionsClient
from neobench.harness.engine import EngineError
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

from .conftest import Arrivals, Handler, Serve

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"


def token(text: str = "t", finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "c", "object": "text_completion", "choices": [choice]}).encode() + b"\n\n"


def stream_of(chunks: Iterable[bytes], *, gap_s: float = 0.0, then_drop: bool = False) -> Handler:
    """Sends each chunk as one write, then ends the stream, or cuts the connection."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(gap_s)
        if then_drop:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


async def test_a_stream_is_counted_by_its_usage(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    asked: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        return await stream_of([token(), token(""), token("c", "length"), USAGE, DONE])(request)

    async with serve(handler) as client:
        completion = await client.generate(request_of_three, sink)

    assert completion.outcome is Outcome.OK, completion.error
    assert completion.output_tokens == 3
    assert len(sink) == 3
    assert asked == [
        {
            "model": "served-model",
            "prompt": [5, 6, 7, 8],
            "max_tokens": 3,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


async def test_what_the_usage_says_of_the_prompt_is_kept(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest
) -> None:
    usage = (
        b'data: {"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens": 4, '
        b'"prompt_tokens_details": {"cached_tokens": 3}}}\n\n'
    )
    async with serve(stream_of([token(), usage, DONE])) as client:
        completion = await client.generate(request_of_three, sink)
    assert (completion.prompt_tokens, completion.cached_tokens) == (4, 3)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), (None, None)])
async def test_a_refusal_that_asks_for_a_pause(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest, header: str | None, seconds: float | None
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        pause = {} if header is None else {"Retry-After": header}
        return web.json_response({"error": {"message": "busy"}}, status=429, headers=pause)

    async with serve(handler) as client:
        completion = await client.generate(request_of_three, sink)
    assert (completion.outcome, completion.http_status) == (Outcome.HTTP_ERROR, 429)
    assert completion.retry_after_s == seconds


BODY = token() + b": keep-alive\n\n" + token() + token("é") + USAGE + DONE


@pytest.mark.parametrize(
    "chunks",
    [
        [BODY],
        [BODY[i : i + 7] for i in range(0, len(BODY), 7)],
        [BODY.replace(b"\n", b"\r\n")],
        [BODY[: len(DONE) * -1]],
        [BODY[:-1]],
    ],
    ids=["one chunk", "split events", "carriage returns", "without DONE", "without the last newline"],
)
async def test_how_bytes_are_cut_changes_nothing(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest, chunks: list[bytes]
) -> None:
    async with serve(stream_of(chunks)) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.outcome is Outcome.OK, completion.error
    assert completion.output_tokens == 3
    assert len(sink) == 3


async def test_an_event_with_several_tokens_is_one_arrival(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest
) -> None:
    async with serve(stream_of([token("a b c", "length"), USAGE, DONE])) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.output_tokens == 3
    assert len(sink) == 1


@pytest.mark.parametrize("num_tokens_before", [2, 3])
async def test_an_end_without_text_is_a_token_only_if_the_usage_says_so(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest, num_tokens_before: int
) -> None:
    async with serve(stream_of([token()] * num_tokens_before + [token("", "length"), USAGE, DONE])) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.output_tokens == 3
    assert len(sink) == 3


async def test_tokens_are_stamped_as_they_come(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    async with serve(stream_of([token(), token(), token(), USAGE, DONE], gap_s=0.05)) as client:
        await client.generate(request_of_three, sink)
    gaps_s = [later - earlier for earlier, later in zip(sink.instants_s, sink.instants_s[1:], strict=False)]
    assert all(gap_s > 0.02 for gap_s in gaps_s), gaps_s


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([token(), b'data: {"choices":[{"te\n\n'], "not a completion"),
        ([token(), b'data: {"error":{"message":"the engine ran out of blocks"}}\n\n', DONE], "ran out of blocks"),
        ([token(), token(), DONE], "without a usage report"),
        ([], "without a usage report"),
    ],
    ids=["garbage", "error event", "no usage", "empty"],
)
async def test_a_stream_that_cannot_be_understood(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest, chunks: list[bytes], message: str
) -> None:
    async with serve(stream_of(chunks)) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.outcome is Outcome.PROTOCOL_ERROR
    assert message in (completion.error or "")


async def test_a_body_that_is_no_stream_is_a_protocol_error(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": "abc"}], "usage": {"completion_tokens": 3}})

    async with serve(handler) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.outcome is Outcome.PROTOCOL_ERROR
    assert not len(sink)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_http_error_keeps_status_and_message(
    serve: Serve, sink: Arrivals, request_of_three: PromptRequest, status: int
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "the prompt is too long", "code": status}}, status=status)

    async with serve(handler) as client:
        completion = await client.generate(request_of_three, sink)
    assert (completion.outcome, completion.http_status) == (Outcome.HTTP_ERROR, status)
    assert completion.error == "the prompt is too long"


async def test_a_huge_error_body_is_cut(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=500, body=b"x" * 10_000_000)

    async with serve(handler) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.http_status == 500
    assert len(completion.error or "") < 300


async def test_a_dropped_connection(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    async with serve(stream_of([token()], gap_s=0.02, then_drop=True)) as client:
        completion = await client.generate(request_of_three, sink)
    assert completion.outcome is Outcome.CONNECTION_ERROR
    assert completion.error
    assert len(sink) == 1


async def test_a_server_that_is_gone(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    async with serve(stream_of([])) as client:
        nameless = CompletionsClient("http://127.0.0.1:1")
        with pytest.raises(EngineError, match=r"cannot reach http://127\.0\.0\.1:1/v1/models"):
            await nameless.open()
        await nameless.close()
        with pytest.raises(EngineError, match="is not open"):
            await nameless.generate(request_of_three, sink)
        other = CompletionsClient("http://127.0.0.1:1", "some-model")
        await other.open()
        completion = await other.generate(request_of_three, sink)
        await other.close()
        assert completion.outcome is Outcome.CONNECTION_ERROR
        with pytest.raises(EngineError, match="/nothing answered 404"):
            await client.get_json("/nothing")


async def test_cancelling_is_seen_by_the_server(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    aborted = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await stream_of([token()] * 1_000, gap_s=0.01)(request)
        except (asyncio.CancelledError, ConnectionResetError):
            aborted.set()
            raise

    async with serve(handler) as client:
        task = asyncio.create_task(client.generate(request_of_three, sink))
        while len(sink) < 2:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(aborted.wait(), 5)


async def test_many_requests_at_once_all_have_a_connection(serve: Serve, request_of_three: PromptRequest) -> None:
    """More than aiohttp's default limit of 100: all of them must be in flight before the first is answered."""
    waiting = 0
    everybody_is_here = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == 150:
            everybody_is_here.set()
        await everybody_is_here.wait()
        return await stream_of([BODY])(request)

    async with serve(handler) as client:
        pending = [client.generate(request_of_three, Arrivals()) for _ in range(150)]
        completions = await asyncio.wait_for(asyncio.gather(*pending), 20)
    assert {completion.outcome for completion in completions} == {Outcome.OK}


async def test_connections_are_used_again(serve: Serve, sink: Arrivals, request_of_three: PromptRequest) -> None:
    peers = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return await stream_of([BODY])(request)

    async with serve(handler) as client:
        for _ in range(5):
            await client.generate(request_of_three, sink)
    assert len(peers) == 1
