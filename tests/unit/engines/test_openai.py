"""The adapter for servers that run already: which model, which errors, what is sent and what is never stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from neobench.cli import main
from neobench.engines.launch import Launch
from neobench.engines.openai import OpenAIEngine
from neobench.engines.process import free_port
from neobench.engines.registry import prompt_limits
from neobench.harness.engine import EngineError
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome
from neobench.workloads.text import WORDS, as_text

from .conftest import Arrivals


class Service:
    """Answers with one token less than asked for, and remembers what it was sent."""

    def __init__(self, models: tuple[str, ...] = ("small",), *, key: str | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self._models = models
        self._key = key

    async def models(self, request: web.Request) -> web.Response:
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        return web.json_response({"data": [{"id": model, "max_model_len": 99} for model in self._models]})

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "1.2.3"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        response = web.StreamResponse()
        await response.prepare(request)
        chat = request.path.endswith("chat/completions")
        if chat:
            await response.write(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
        choice = {"delta": {"content": "x"}} if chat else {"text": "x"}
        wanted = body["max_tokens"] - 1
        for _ in range(wanted):
            await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        usage = {"choices": [], "usage": {"completion_tokens": wanted, "prompt_tokens": 41}}
        await response.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
        return response


@asynccontextmanager
async def serving(service: Service, *, prefix: str = "") -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(f"{prefix}/v1/models", service.models)
    app.router.add_get(f"{prefix}/version", service.version)
    app.router.add_post(f"{prefix}/v1/completions", service.answer)
    app.router.add_post(f"{prefix}/v1/chat/completions", service.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{prefix}"
    finally:
        await runner.cleanup()


def engine_at(url: str, tmp_path: Path, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(Launch(model="", options={"base_url": url, **options}, log_path=tmp_path / "log"))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_end_with_v1(tmp_path: Path, suffix: str) -> None:
    async with serving(Service()) as url:
        engine = engine_at(url + suffix, tmp_path)
        await engine.start()
        facts = await engine.describe()
        assert facts["served_model"] == "small"
        assert facts["served_model_facts"]["max_model_len"] == 99
        assert facts["version"] == {"version": "1.2.3"}
        await engine.stop()
        await engine.stop()


async def test_a_chat_is_sent_text_and_may_end_early(tmp_path: Path, sink: Arrivals) -> None:
    service = Service()
    [request] = as_text(
        [PromptRequest.of([7, 900, 5], index=0, output_tokens=6, exact_output=False)], vocab_size=32_000
    )
    async with serving(service) as url:
        extra = {"top_k": 1}
        engine = engine_at(url, tmp_path, api="chat", exact_output=False, extra_body=extra, header=(("X-Team", "a"),))
        await engine.start()
        completion = await engine.generate(request, sink)
        await engine.stop()
    assert (completion.outcome, completion.output_tokens, completion.prompt_tokens) == (Outcome.OK, 5, 41)
    assert len(sink) == 5
    [body] = service.bodies
    [message] = body["messages"]
    assert len(message["content"].split()) == 3
    assert set(message["content"].split()) <= set(WORDS)
    assert body["top_k"] == 1
    assert "ignore_eos" not in body
    assert service.headers[0]["X-Team"] == "a"


async def test_the_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Service(key="open sesame")) as url:
        with pytest.raises(EngineError, match=r"wants an API key: put it into .* OPENAI_API_KEY .* who are you"):
            await engine_at(url, tmp_path).start()
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(EngineError, match="refuses the key in the environment variable OPENAI_API_KEY"):
            await engine_at(url, tmp_path).start()
        with pytest.raises(EngineError, match="MY_KEY, named by --api-key-env, is not set"):
            await engine_at(url, tmp_path, api_key_env="MY_KEY").start()
        monkeypatch.setenv("MY_KEY", "open sesame")
        engine = engine_at(url, tmp_path, api_key_env="MY_KEY")
        await engine.start()
        assert "sesame" not in json.dumps(await engine.describe())
        await engine.stop()


async def test_errors_of_a_start_say_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot reach .* Is the server up, and --base-url right"):
        await engine_at(f"http://127.0.0.1:{free_port()}", tmp_path).start()
    async with serving(Service(), prefix="/llm") as url:
        root = url.removesuffix("/llm")
        with pytest.raises(EngineError, match=r"does not exist \(404\). --base-url is the address before /v1"):
            await engine_at(root, tmp_path).start()
        nameless = engine_at(root, tmp_path, served_model="any")
        await nameless.start()
        assert (await nameless.describe())["served_model"] == "any"
        await nameless.stop()
    async with serving(Service(("small", "large"))) as url:
        with pytest.raises(EngineError, match="choose with --served-model: small, large"):
            await engine_at(url, tmp_path).start()
        with pytest.raises(EngineError, match="does not serve 'smal'; it serves small, large"):
            await engine_at(url, tmp_path, served_model="smal").start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --base-url"),
        ({"base_url": "localhost:8000"}, "write it like http://localhost:8000"),
        ({"base_url": "http://localhost:port"}, "is no address"),
        ({"base_url": "http://me:secret@host"}, "must not hold a password"),
        ({"base_url": "http://host", "api": "chat", "prompt": "ids"}, "a chat takes text"),
    ],
)
def test_impossible_options_are_refused_before_the_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message) as refused:
        prompt_limits("openai", "", options)
    assert "secret" not in str(refused.value)


def test_a_header_without_a_name_and_a_body_that_is_no_object_are_usage_errors() -> None:
    for words, message in (
        (["--header", "oops"], "NAME=VALUE"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--extra-body", "{"], "it is no JSON"),
        (["--model", "x"], "--served-model names it"),
        (["--base-url", "http://x", "--engine", "null"], "engines that take it: openai"),
    ):
        result = CliRunner().invoke(main, ["run", "--engine", "openai", "--base-url", "http://x", *words, "--dry-run"])
        assert result.exit_code == 2, words
        assert message in result.output


def test_different_ids_make_different_beginnings() -> None:
    requests = [PromptRequest.of([first, 1, 1, 1], index=first, output_tokens=1) for first in range(5000)]
    texts = {tuple(json.loads(request.prompt_json).split()[:2]) for request in as_text(requests, vocab_size=32_000)}
    assert len(texts) == 5000
