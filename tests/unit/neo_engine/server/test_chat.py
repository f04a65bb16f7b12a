"""Chat and text prompts over HTTP, with a real tokenizer; the scripted engine says the prompt back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from neobench.neo_engine.tokenizer import Tokenizer

TEMPLATE = "{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}"


@pytest.fixture
async def server(engine: Any, make_server: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Every byte is a token, so that characters outside ASCII span several; ids start above the model's end token.
    backend = HfTokenizer(models.BPE(vocab={letter: 3 + i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    async with make_server(engine, Tokenizer(tmp_path)) as server:
        yield server


async def test_whole_answer(server: Any) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "né😀"}]}]
    prompt = "system:be;user:né😀;"
    size = len(prompt.encode())
    status, body = await server.post("/v1/chat/completions", {"messages": messages, "max_tokens": size})
    assert status == 200
    assert body["object"] == "chat.completion"
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": prompt}
    assert choice["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": size, "completion_tokens": size, "total_tokens": 2 * size}


async def test_stream_has_whole_characters_and_the_role_once(server: Any) -> None:
    body = {"messages": [{"role": "user", "content": "é😀"}], "max_tokens": 12, "stream": True}
    async with server.session.post("/v1/chat/completions", json=body) as reply:
        *parts, done = [part.removeprefix("data: ") for part in (await reply.text()).split("\n\n") if part]
    events = [json.loads(part) for part in parts]
    assert done == "[DONE]"
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta["content"] for delta in deltas) == "user:é😀;"
    assert not any("\ufffd" in delta["content"] for delta in deltas)
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert events[-1]["choices"][0]["finish_reason"] == "length"


async def test_without_a_maximum_the_answer_may_fill_the_context(server: Any) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stop": "zzz"}
    _, answer = await server.post("/v1/chat/completions", body)
    assert answer["usage"]["total_tokens"] == server.engine.config.max_request_tokens


async def test_text_prompts(server: Any) -> None:
    _, body = await server.complete(prompt=["abc", "d"], max_tokens=3)
    assert [choice["text"] for choice in body["choices"]] == ["abc", "ddd"]


async def test_stop_string(server: Any) -> None:
    _, body = await server.complete(prompt="hello world ", max_tokens=90, stop="o w")
    assert body["choices"][0]["text"] == "hell"
    assert body["choices"][0]["finish_reason"] == "stop"
