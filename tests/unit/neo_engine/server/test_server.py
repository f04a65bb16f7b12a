"""The HTTP interface over a scripted engine that echoes prompts: what clients send, and what they get."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import aiohttp
import pytest

from neobench.neo_engine.tokenizer import IdTokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


async def events_of(reply: aiohttp.ClientResponse) -> list[Any]:
    """The data of each server-sent event; the end mark as a string."""
    assert reply.status == 200, await reply.text()
    assert reply.content_type == "text/event-stream"
    text = await reply.text()
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in parts]


async def stream(server: Any, **body: Any) -> list[Any]:
    """All events, from an engine that is faster than the server: several tokens may share one."""
    async with server.session.post(COMPLETIONS, json={**body, "stream": True}) as reply:
        return await events_of(reply)


async def stream_stepwise(server: Any, path: str = COMPLETIONS, **body: Any) -> list[Any]:
    """All events, from an engine that takes its next step only when the event of the last one has arrived."""
    server.engine.script.permits = threading.Semaphore(1)
    events = []
    async with server.session.post(path, json={**body, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        while not events or not (events[-1] == "[DONE]" or "error" in events[-1]):
            data = (await reply.content.readuntil(b"\n\n")).decode().removeprefix("data: ")
            events.append("[DONE]" if "[DONE]" in data else json.loads(data))
            server.engine.script.permits.release()
    return events


class TestCompletions:
    async def test_whole_answer(self, server: Any) -> None:
        status, body = await server.complete(model="tiny", prompt=[10, 11, 12], max_tokens=4, user="someone")
        assert status == 200
        assert body["object"] == "text_completion"
        assert body["model"] == "tiny"
        assert body["choices"] == [{"index": 0, "text": " 10 11 12 10", "logprobs": None, "finish_reason": "length"}]
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    async def test_one_event_a_token(self, server: Any) -> None:
        *events, done = await stream_stepwise(server, prompt=[10, 11, 12], max_tokens=4)
        assert done == "[DONE]"
        assert [event["choices"][0]["text"] for event in events] == [" 10", " 11", " 12", " 10"]
        assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "length"]
        assert len({event["id"] for event in events}) == 1
        assert all("usage" not in event for event in events)

    async def test_tokens_that_queued_up_share_an_event_and_are_all_counted(self, server: Any) -> None:
        choices = [
            stream(server, prompt=[10 + i], max_tokens=500, stream_options={"include_usage": True}) for i in range(8)
        ]
        for number, events in enumerate(await asyncio.gather(*choices)):
            text = "".join(event["choices"][0]["text"] for event in events[:-2])
            assert text == f" {10 + number}" * 500
            assert events[-2]["usage"]["completion_tokens"] == 500

    async def test_usage_of_a_stream_comes_last_with_no_choices(self, server: Any) -> None:
        *events, last, done = await stream_stepwise(
            server, prompt=[10, 11], max_tokens=3, stream_options={"include_usage": True}
        )
        assert done == "[DONE]"
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        assert [event["usage"] for event in events] == [None] * 3

    async def test_continuous_usage(self, server: Any) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        *events, _, _ = await stream_stepwise(server, prompt=[10, 11], max_tokens=3, stream_options=options)
        assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3]

    async def test_return_token_ids(self, server: Any) -> None:
        _, body = await server.complete(prompt=[10, 11], max_tokens=3, return_token_ids=True)
        assert body["choices"][0]["token_ids"] == [10, 11, 10]
        assert body["choices"][0]["prompt_token_ids"] == [10, 11]
        *events, _ = await stream_stepwise(server, prompt=[10, 11], max_tokens=3, return_token_ids=True)
        assert [event["choices"][0]["token_ids"] for event in events] == [[10], [11], [10]]
        assert [event["choices"][0].get("prompt_token_ids") for event in events] == [[10, 11], None, None]

    async def test_several_prompts(self, server: Any) -> None:
        _, body = await server.complete(prompt=[[10, 11], [20]], max_tokens=2)
        assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, " 10 11"), (1, " 20 20")]
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        *events, last, _ = await stream(
            server, prompt=[[10, 11], [20]], max_tokens=2, stream_options={"include_usage": True}
        )
        texts = ["", ""]
        for event in events:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert texts == [" 10 11", " 20 20"]
        assert last["usage"]["completion_tokens"] == 4

    async def test_defaults_are_the_apis(self, server: Any, engine: Any) -> None:
        _, body = await server.complete(prompt=[10])
        assert body["usage"]["completion_tokens"] == 16
        params = engine.seen_params[0]
        assert (params.temperature, params.top_p, params.top_k, params.seed) == (1.0, 1.0, 0, None)

    async def test_sampling_fields_reach_the_engine(self, server: Any, engine: Any) -> None:
        await server.complete(
            prompt=[10],
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            seed=3,
            stop=["x", "y"],
            stop_token_ids=[9],
            ignore_eos=True,
        )
        params = engine.seen_params[0]
        assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (5, 0.5, 0.9, 7)
        assert (params.seed, params.stop, params.stop_token_ids, params.ignore_eos) == (3, ("x", "y"), (9,), True)

    async def test_nulls_and_neutral_values_ask_for_nothing(self, server: Any) -> None:
        status, _ = await server.complete(
            prompt=[10],
            max_tokens=None,
            temperature=None,
            stop=None,
            logprobs=None,
            n=1,
            best_of=1,
            echo=False,
            presence_penalty=0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            logit_bias={},
            top_k=-1,
        )
        assert status == 200


class TestStopping:
    async def test_end_token_of_the_model_is_counted_but_not_shown(self, server: Any) -> None:
        _, body = await server.complete(prompt=[10, 11, 2], max_tokens=9)
        assert body["choices"][0]["text"] == " 10 11"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 3

    async def test_ignore_eos_goes_on(self, server: Any) -> None:
        _, body = await server.complete(prompt=[10, 11, 2], max_tokens=9, ignore_eos=True)
        assert body["usage"]["completion_tokens"] == 9
        assert body["choices"][0]["finish_reason"] == "length"

    async def test_stop_token_ids(self, server: Any) -> None:
        _, body = await server.complete(prompt=[10, 11, 12], max_tokens=9, stop_token_ids=[12], ignore_eos=True)
        assert body["choices"][0]["text"] == " 10 11"
        assert body["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize("stop", ["1 12", ["zzz", "1 12"]])
    async def test_stop_string_across_tokens_ends_the_request_in_the_engine(
        self, server: Any, engine: Any, stop: Any
    ) -> None:
        _, body = await server.complete(prompt=[10, 11, 12, 13], max_tokens=900, stop=stop)
        assert body["choices"][0]["text"] == " 10 1"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 3
        await server.until(lambda: engine.aborted == [0])

    async def test_text_that_may_begin_a_stop_string_is_held_back(self, server: Any) -> None:
        *events, _ = await stream_stepwise(server, prompt=[10, 11, 12], max_tokens=4, stop=" 11 13")
        assert "".join(event["choices"][0]["text"] for event in events) == " 10 11 12 10"
        assert "".join(event["choices"][0]["text"] for event in events[:2]) == " 10"

    async def test_held_text_comes_out_at_the_end(self, server: Any) -> None:
        _, body = await server.complete(prompt=[10, 11], max_tokens=2, stop=" 11 13")
        assert body["choices"][0]["text"] == " 10 11"


class TestChat:
    async def test_refused_without_a_tokenizer(self, server: Any) -> None:
        status, body = await server.post(CHAT, {"messages": [{"role": "user", "content": "hello"}]})
        assert status == 400
        assert "no tokenizer" in body["error"]["message"]

    async def test_text_prompt_refused_without_a_tokenizer(self, server: Any) -> None:
        status, body = await server.complete(prompt="hello")
        assert status == 400
        assert body["error"]["message"] == "this model has no tokenizer: send the prompt as a list of token ids"


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": [10], "n": 2}, "n", "n is not supported"),
    ({"prompt": [10], "best_of": 3}, "best_of", "not supported"),
    ({"prompt": [10], "logprobs": 1}, "logprobs", "no log probabilities"),
    ({"prompt": [10], "logprobs": 0}, "logprobs", "no log probabilities"),
    ({"prompt": [10], "echo": True}, "echo", "not supported"),
    ({"prompt": [10], "suffix": "x"}, "suffix", "not supported"),
    ({"prompt": [10], "tools": [{}]}, "tools", "not supported"),
    ({"prompt": [10], "presence_penalty": 0.5}, "presence_penalty", "not supported"),
    ({"prompt": [10], "frequency_penalty": -1}, "frequency_penalty", "not supported"),
    ({"prompt": [10], "logit_bias": {"1": 2}}, "logit_bias", "not supported"),
    ({"prompt": [10], "temprature": 0}, "temprature", "unknown field"),
    ({"prompt": [10], "max_tokens": "many"}, "max_tokens", "Expected `int"),
    ({"prompt": [10], "max_tokens": 0}, "max_tokens", "at least 1"),
    ({"prompt": [10], "temperature": -1}, "temperature", "between 0 and 10"),
    ({"prompt": [10], "top_p": 0}, "top_p", "above 0"),
    ({"prompt": [10], "top_k": -2}, "top_k", "0 (off) or more"),
    ({"prompt": [10], "stop": ""}, "stop", "none of them empty"),
    ({"prompt": [10], "stop_token_ids": [5000]}, "stop_token_ids", "0 to 4095"),
    ({"prompt": [10], "stream_options": {"x": 1}}, "stream_options", "unknown field"),
    ({"prompt": [10], "stream": "yes"}, "stream", "Expected `bool"),
    ({}, "prompt", "missing required field `prompt`"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": [1, [2]]}, "prompt", "mixes"),
    ({"prompt": ["a", [2]]}, "prompt", "mixes"),
    ({"prompt": [10, 1.5]}, "prompt[1]", "got `float`"),
    ({"prompt": [10, -1]}, "prompt", "outside the vocabulary"),
    ({"prompt": [10, 4096]}, "prompt", "outside the vocabulary, which is 0 to 4095"),
    ({"prompt": [10] * 1020}, "prompt", "1020 prompt tokens and max_tokens 16 make 1036"),
    ({"prompt": [10], "max_tokens": 1024}, "prompt", "1024 at most"),
    ({"prompt": [4000]}, "prompt", "the engine alone knows"),
    ({"prompt": [4000], "stream": True}, "prompt", "the engine alone knows"),
]


class TestErrors:
    @pytest.mark.parametrize(("body", "parameter", "message"), REFUSED, ids=[str(case[0])[:50] for case in REFUSED])
    async def test_refused_with_a_sentence(
        self, server: Any, engine: Any, body: dict[str, Any], parameter: str | None, message: str
    ) -> None:
        status, reply = await server.post(COMPLETIONS, body)
        assert status == 400
        assert set(reply["error"]) == {"message", "type", "param", "code"}
        assert reply["error"]["type"] == "invalid_request_error"
        assert reply["error"]["param"] == parameter
        assert message in reply["error"]["message"]
        assert not engine.live

    @pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"", b"[1]", b'"text"'])
    async def test_bad_json(self, server: Any, body: bytes) -> None:
        status, reply = await server.post(COMPLETIONS, body)
        assert status == 400
        assert "JSON" in reply["error"]["message"]

    @pytest.mark.parametrize(
        ("body", "parameter"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user"}]}, "messages[0]"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}, "top_logprobs"),
            ({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "x"}}, "response_format"),
        ],
    )
    async def test_bad_chat(self, server: Any, body: dict[str, Any], parameter: str) -> None:
        status, reply = await server.post(CHAT, body)
        assert status == 400
        assert reply["error"]["param"] == parameter

    async def test_all_prompts_or_none(self, server: Any, engine: Any) -> None:
        status, _ = await server.complete(prompt=[[10], [9999]])
        assert status == 400
        assert engine.seen_params == []

    async def test_unknown_model(self, server: Any) -> None:
        status, reply = await server.complete(model="gpt-5", prompt=[10])
        assert status == 404
        assert reply["error"]["code"] == "model_not_found"
        assert reply["error"]["message"] == "the model 'gpt-5' does not exist; this server serves 'tiny'"

    async def test_body_too_large(self, server: Any) -> None:
        async with server.session.post(COMPLETIONS, data=io.BytesIO(b" " * (33 << 20))) as reply:
            assert reply.status == 413
            assert "larger than" in (await reply.json())["error"]["message"]

    async def test_unknown_path_and_method(self, server: Any) -> None:
        status, reply = await server.get("/v2/completions")
        assert (status, reply["error"]["type"]) == (404, "invalid_request_error")
        status, reply = await server.get(COMPLETIONS)
        assert (status, reply["error"]["type"]) == (405, "invalid_request_error")

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_engine_failure_ends_every_request(self, server: Any, engine: Any, streamed: bool) -> None:
        engine.script.gate.clear()
        body = {"prompt": [10], "max_tokens": 9, "stream": streamed}
        requests = [asyncio.create_task(server.post(COMPLETIONS, body)) for _ in range(3)]
        await server.until(lambda: server.async_engine.num_active == 3)
        engine.script.fail_at_step = 1
        engine.script.gate.set()
        for status, reply in await asyncio.gather(*requests):
            assert status == 500
            assert reply["error"]["message"] == "the engine failed: RuntimeError: scripted failure"
            assert reply["error"]["type"] == "server_error"
        assert (await server.get("/health"))[0] == 503
        assert (await server.complete(prompt=[10]))[0] == 503
        status, stats = await server.get("/stats")
        assert (status, stats["steps"]) == (200, 1)

    async def test_failure_in_the_middle_of_a_stream_is_an_event_without_an_end_mark(
        self, server: Any, engine: Any
    ) -> None:
        engine.script.fail_at_step = 4
        *events, last = await stream_stepwise(server, prompt=[10], max_tokens=9)
        assert [event["choices"][0]["text"] for event in events] == [" 10"] * 3
        assert "scripted failure" in last["error"]["message"]

    async def test_tokens_before_a_failure_are_not_lost(self, server: Any, engine: Any) -> None:
        engine.script.fail_at_step = 400
        *events, last = await stream(server, prompt=[10], max_tokens=900)
        assert "".join(event["choices"][0]["text"] for event in events) == " 10" * 399
        assert "scripted failure" in last["error"]["message"]

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_a_mistake_of_ours_is_500_and_logged(
        self,
        server: Any,
        engine: Any,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        streamed: bool,
    ) -> None:
        monkeypatch.setattr(IdTokenizer, "push", lambda *_: 1 / 0)
        status, reply = await server.complete(prompt=[10], max_tokens=900, stream=streamed)
        assert status == 500
        assert "log" in reply["error"]["message"]
        assert "ZeroDivisionError" in caplog.text
        await server.until(lambda: not engine.live)


class TestDisconnect:
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_frees_the_request(self, server: Any, engine: Any, streamed: bool) -> None:
        engine.script.gate.clear()
        body = {"prompt": [[10], [20]], "max_tokens": 1000, "stream": streamed}
        request = asyncio.create_task(server.post(COMPLETIONS, body))
        await server.until(lambda: len(engine.live) == 2 or server.async_engine.num_active == 2)
        request.cancel()
        await server.until(lambda: server.async_engine.num_active == 0)
        engine.script.gate.set()
        await server.until(lambda: not engine.live)
        status, _ = await server.complete(prompt=[10], max_tokens=2)
        assert status == 200

    async def test_in_the_middle_of_a_stream(self, server: Any, engine: Any) -> None:
        body = {"prompt": [10], "max_tokens": 1000, "stream": True}
        async with server.session.post(COMPLETIONS, json=body) as reply:
            await reply.content.readuntil(b"\n\n")
            engine.script.gate.clear()
            reply.close()
        await server.until(lambda: server.async_engine.num_active == 0)
        engine.script.gate.set()
        await server.until(lambda: engine.aborted == [0] or not engine.live)
        assert not engine.live


class TestFacts:
    async def test_models(self, server: Any) -> None:
        status, body = await server.get("/v1/models")
        assert status == 200
        assert [model["id"] for model in body["data"]] == ["tiny"]
        assert body["data"][0]["max_model_len"] == 1024

    async def test_health(self, server: Any) -> None:
        assert await server.get("/health") == (200, {"status": "ok"})

    async def test_stats_and_info(self, server: Any) -> None:
        await server.complete(prompt=[10], max_tokens=5)
        assert await server.get("/stats") == (200, {"steps": 5, "error": 0.5})
        assert await server.get("/info") == (200, {"served_model_name": "tiny", "policy": "gpu_only"})

    async def test_metrics(self, server: Any) -> None:
        await server.complete(prompt=[10], max_tokens=5)
        async with server.session.get("/metrics") as reply:
            text = await reply.text()
            assert reply.headers["Content-Type"].startswith("text/plain")
        assert 'neo_steps_total{model_name="tiny"} 5.0' in text
        assert "# TYPE neo_steps_total counter" in text
        assert 'neo_num_running{model_name="tiny"} 0.0' in text
        assert "# TYPE neo_num_running gauge" in text
        assert "# TYPE neo_error gauge" in text
