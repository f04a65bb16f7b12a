"""Server-sent events of a streamed completion: bytes in chunks of any size -> what they say. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"[DONE]"
MAX_QUOTED_BYTES = 200
MAX_EVENT_BYTES = 2**24
"""A stream without an end of an event would fill the memory."""


class StreamError(Exception):
    """The stream cannot be understood, or says that the request has failed."""


class _Delta(msgspec.Struct):
    """Of a chat. Servers stream what a model thinks before it answers under one of two names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class CompletionEvent(msgspec.Struct):
    """One event of a streamed completion; fields that nobody here reads are skipped while decoding."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None

    @property
    def carries_tokens(self) -> bool:
        """Surely so. A token may have no text (half a character, say), so an end without text is left undecided."""
        return any(_carries_tokens(choice) for choice in self.choices)


def _carries_tokens(choice: _Choice) -> bool:
    if choice.delta is not None:
        # The first event of a chat names the role alone.
        return bool(choice.token_ids) or not choice.delta.is_empty
    return bool(choice.text or choice.token_ids or choice.finish_reason is None)


class EventSplitter:
    """Cuts a byte stream into the payloads of its events.

    On one 2.6 GHz core 128 events of 188 bytes cost 0.19 ms, split and decoded, when they come in one chunk and 0.29 ms
    when each has its own; line by line with the standard library's json they cost 0.40 ms.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that this chunk completes; events without data (comments, keep-alives) are left out.

        Raises StreamError for an event of more than MAX_EVENT_BYTES.
        """
        buffer = self._rest + chunk
        # JSON escapes its carriage returns, so one in the stream belongs to a line end; its newline may still come.
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        *events, self._rest = buffer.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise StreamError(f"an event has more than {MAX_EVENT_BYTES} bytes: {quoted(self._rest)}")
        return [payload for event in events if (payload := _payload(event))]

    def finish(self) -> list[bytes]:
        """The payloads of what a stream left without its blank line."""
        return self.feed(b"\n\n")


def decode_event(payload: bytes) -> CompletionEvent:
    """Raises StreamError for bad JSON and for an event that reports an error."""
    try:
        event = _DECODER.decode(payload)
    except msgspec.MsgspecError as error:
        raise StreamError(f"an event is not a completion: {error}: {quoted(payload)}") from error
    if event.error is not None:
        raise StreamError(f"the engine reported an error: {error_message(payload)}")
    return event


def error_message(body: bytes) -> str:
    """The message in an error body of an OpenAI-compatible server, else the beginning of the body itself."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return quoted(body)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return found[:MAX_QUOTED_BYTES] if isinstance(found, str) else quoted(body)


def quoted(raw: bytes) -> str:
    text = raw[:MAX_QUOTED_BYTES].decode("utf-8", errors="replace").strip()
    return text + "..." if len(raw) > MAX_QUOTED_BYTES else text


def _payload(event: bytes) -> bytes:
    # Nearly every event is this one line.
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    data = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(data)


_DECODER = msgspec.json.Decoder(CompletionEvent)
