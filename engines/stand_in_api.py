"""What a stand-in server reads out of a request of the OpenAI API, and the bytes that it answers with.

A request is searched, not parsed: the prompt is by far the longest part of it, and of that only its length matters.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from neobench.engines.instant_log import PROMPT_START_BYTES

DEFAULT_MAX_TOKENS = 16
"""Of the API, where a request does not say."""
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_INCLUDE_USAGE = re.compile(rb'"include_usage": ?true')
_PROMPT = re.compile(rb'"(?:prompt|messages)": ?')
_IDS = b'"prompt":['
"""As msgspec and neobench write it; with a space it is a request like any other."""
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]*)", re.IGNORECASE)
_EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class BadRequestError(Exception):
    """Answered with status 400 and this message."""


class Asked(NamedTuple):
    chat: bool
    stream: bool
    usage: bool
    """Whether a stream ends with a usage report; a body always has one."""
    prompt_tokens: int
    """Of token ids their number, of text its words."""
    output_tokens: int


def read_request(body: bytes, *, chat: bool) -> Asked:
    """Raises BadRequestError."""
    start = body.find(_IDS)
    if start < 0 or not body[start + len(_IDS) : start + len(_IDS) + 1].isdigit():
        return _read(body, chat, None)
    # But for the ids, the requests of a client are the same again and again.
    end = body.find(b"]", start)
    return _read(body[:start] + body[end:], chat, body.count(b",", start, end) + 1)


@lru_cache(maxsize=64)
def _read(body: bytes, chat: bool, prompt_tokens: int | None) -> Asked:
    """`prompt_tokens` is that of a prompt that was cut out; None: it is in there."""
    asked = _MAX_TOKENS.search(body)
    output_tokens = int(asked[1]) if asked else DEFAULT_MAX_TOKENS
    if output_tokens < 1:
        raise BadRequestError("max_tokens must be at least 1")
    return Asked(
        chat=chat,
        stream=_STREAM.search(body) is not None,
        usage=_INCLUDE_USAGE.search(body) is not None,
        prompt_tokens=_prompt_tokens(body, chat) if prompt_tokens is None else prompt_tokens,
        output_tokens=output_tokens,
    )


def _prompt_tokens(body: bytes, chat: bool) -> int:
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadRequestError(f"the request is no JSON object: {error}") from None
    name = "messages" if chat else "prompt"
    if name not in request:
        raise BadRequestError(f"the request has no {name}")
    return _words(request[name])


def prompt_start(body: bytes) -> str:
    found = _PROMPT.search(body)
    assert found is not None, "read_request has found one"
    return body[found.end() : found.end() + PROMPT_START_BYTES].decode(errors="replace")


def _words(prompt: Any) -> int:
    """Of a text, of the texts in a list, of a message or a part of one; a token id is one."""
    if isinstance(prompt, str):
        return len(prompt.split())
    if isinstance(prompt, list):
        return sum(_words(part) for part in prompt)
    if isinstance(prompt, dict):
        return _words([prompt.get("content"), prompt.get("text")])
    return int(isinstance(prompt, int))


def request_id(head: bytes) -> str | None:
    found = _REQUEST_ID.search(head)
    return found[1].decode(errors="replace") if found else None


def json_answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def refusal(status: bytes, message: str) -> bytes:
    return json_answer(status, msgspec.json.encode({"error": {"message": message}}))


@lru_cache(maxsize=64)
def whole_stream(asked: Asked) -> bytes:
    """All of an answer: one server-sent event a token, the usage report, the end."""
    tokens = token_event(asked.chat, last=False) * (asked.output_tokens - 1) + token_event(asked.chat, last=True)
    return _EVENT_STREAM + tokens + stream_end(asked)


def stream_start() -> bytes:
    return _EVENT_STREAM


@lru_cache
def token_event(chat: bool, *, last: bool) -> bytes:
    text = b'"delta":{"content":"x"}' if chat else b'"text":"x"'
    return _chunk(
        b'data: {"choices":[{"index":0,%b,"finish_reason":%b}]}\n\n' % (text, b'"length"' if last else b"null")
    )


def stream_end(asked: Asked) -> bytes:
    done = _chunk(b"data: [DONE]\n\n") + _LAST_CHUNK
    return _chunk(b'data: {"choices":[],%b}\n\n' % _usage(asked)) + done if asked.usage else done


def whole_body(asked: Asked) -> bytes:
    """For a request that wants no stream."""
    text = b"x" * asked.output_tokens
    said = b'"message":{"role":"assistant","content":"%b"}' % text if asked.chat else b'"text":"%b"' % text
    body = b'{"choices":[{"index":0,%b,"finish_reason":"length"}],%b}' % (said, _usage(asked))
    return json_answer(b"200 OK", body)


def _usage(asked: Asked) -> bytes:
    return b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
        asked.prompt_tokens,
        asked.output_tokens,
        asked.prompt_tokens + asked.output_tokens,
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
