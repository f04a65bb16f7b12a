"""JSON of answers: whole ones, and server-sent events assembled from fragments encoded once per request."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from neobench.neo_engine.server.streaming import Choice, Delta

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def error_event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    prompt_tokens = sum(len(choice.prompt_token_ids) for choice in choices)
    completion_tokens = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class AnswerFormat:
    """The text-completion shape of an answer; ChatFormat has the other one."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, model: str, *, include_usage: bool = False, continuous_usage: bool = False, token_ids: bool = False
    ) -> None:
        self._head = {"id": f"{self.id_prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._token_ids = token_ids
        self._event_start = b"data: " + _encode(self._head | {"object": self.chunk_object})[:-1] + b',"choices":['

    def event(self, choice: Choice, delta: Delta) -> bytes:
        """The event of one delta; `choice` has counted its tokens already."""
        first = choice.num_tokens == len(delta.token_ids)
        reason = b"null" if delta.finish_reason is None else _encode(delta.finish_reason.value)
        parts = [
            self._event_start,
            b'{"index":%d,' % choice.index,
            self._content(_encode(delta.text), first),
            b',"logprobs":null,"finish_reason":',
            reason,
        ]
        if self._token_ids:
            parts += (b',"token_ids":', _encode(delta.token_ids))
            if first:
                parts += (b',"prompt_token_ids":', _encode(choice.prompt_token_ids))
        parts.append(b"}]")
        if self._continuous_usage:
            parts += (b',"usage":', _encode(usage([choice])))
        elif self._include_usage:
            parts.append(b',"usage":null')
        parts.append(b"}\n\n")
        return b"".join(parts)

    def last_events(self, choices: Sequence[Choice]) -> bytes:
        """The usage, if asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return self._event_start + b'],"usage":' + _encode(usage(choices)) + b"}\n\n" + DONE

    def whole(self, choices: Sequence[Choice], answers: Sequence[Delta]) -> bytes:
        """The body of an answer that is not streamed."""
        bodies = []
        for choice, answer in zip(choices, answers, strict=True):
            reason = None if answer.finish_reason is None else answer.finish_reason.value
            body = {
                "index": choice.index,
                **self._whole_content(answer.text),
                "logprobs": None,
                "finish_reason": reason,
            }
            if self._token_ids:
                body |= {"token_ids": answer.token_ids, "prompt_token_ids": choice.prompt_token_ids}
            bodies.append(body)
        return _encode(self._head | {"object": self.whole_object, "choices": bodies, "usage": usage(choices)})

    def _content(self, text: bytes, first: bool) -> bytes:  # noqa: ARG002 - chat tells the role in its first event
        return b'"text":' + text

    def _whole_content(self, text: str) -> dict[str, Any]:
        return {"text": text}


class ChatFormat(AnswerFormat):
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _content(self, text: bytes, first: bool) -> bytes:
        role = b'"role":"assistant",' if first else b""
        return b'"delta":{' + role + b'"content":' + text + b"}"

    def _whole_content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}
