"""Servers that stand in for an engine: what they read, when they answer, what they remember of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from neobench.engines import deadlines
from neobench.engines.deadlines import Deadlines
from neobench.engines.instant_log import Instants, read_instants
from neobench.engines.launch import Launch
from neobench.engines.modelled_queue import SingleServer
from neobench.engines.null_server import fixed_delays
from neobench.engines.process import free_port
from neobench.engines.registry import ENGINES, create
from neobench.engines.service_laws import DETERMINISTIC, EXPONENTIAL, service_times_ns
from neobench.engines.stand_in_api import Asked, BadRequestError, read_request
from neobench.harness.engine import EngineError

USAGE = '"stream":true,"stream_options":{"include_usage":true}'


@contextmanager
def serving(module: str, *flags: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to the server, which ends on SIGTERM as if nothing was wrong."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", f"neobench.engines.{module}", str(port), *flags]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            _wait_until_listening(connection)
            yield connection
        finally:
            connection.close()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0


def _wait_until_listening(connection: http.client.HTTPConnection) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.connect()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.02)


def ask(
    connection: http.client.HTTPConnection, body: str, api: str = "completions", **headers: str
) -> tuple[int, str, bytes]:
    connection.request("POST", f"/v1/{api}", body, headers)
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read()


def events(body: bytes) -> list[Any]:
    """The payloads of a whole stream, which must end as the API has it."""
    *payloads, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(payload.removeprefix("data: ")) for payload in payloads]


@pytest.mark.parametrize(
    ("body", "chat", "asked"),
    [
        (f'{{"model":"m",{USAGE},"prompt":[11,22,33],"max_tokens":7}}', False, (True, True, 3, 7)),
        ('{"prompt": [11, 22], "stream": true, "max_tokens": 2}', False, (True, False, 2, 2)),
        ('{"prompt":[],"max_tokens":2}', False, (False, False, 0, 2)),
        ('{"prompt":"three short  words"}', False, (False, False, 3, 16)),
        ('{"prompt":["three short words"],"max_tokens":null}', False, (False, False, 3, 16)),
        ('{"prompt":"say \\"max_tokens\\":9, \\"stream\\":true","max_tokens":4}', False, (False, False, 3, 4)),
        (
            '{"messages":[{"role":"user","content":"how are you"}],"max_completion_tokens":5}',
            True,
            (False, False, 3, 5),
        ),
        ('{"messages":[{"role":"user","content":[{"type":"text","text":"hello you"}]}]}', True, (False, False, 2, 16)),
    ],
)
def test_requests_are_read(body: str, chat: bool, asked: tuple[bool, bool, int, int]) -> None:
    stream, usage, prompt_tokens, output_tokens = asked
    expected = Asked(chat, stream, usage, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    assert read_request(body.encode(), chat=chat) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"prompt":"a","max_tokens":0}', "max_tokens must be at least 1"),
        ('{"max_tokens":1}', "the request has no prompt"),
        ('["prompt"]', "the request is no JSON object"),
        ('{"prompt":"a', "the request is no JSON object"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(body: str, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        read_request(body.encode(), chat=False)


@pytest.mark.parametrize("delays", [(), ("--first-token-ms", "5", "--inter-token-ms", "1")])
def test_the_answers_are_those_of_the_api(delays: tuple[str, ...]) -> None:
    with serving("null_server", *delays) as connection:
        connection.request("GET", "/v1/models")
        assert [model["id"] for model in json.load(connection.getresponse())["data"]] == ["null"]

        status, kind, body = ask(connection, f'{{"prompt":[5,6,7,8],"max_tokens":3,{USAGE}}}')
        assert (status, kind) == (200, "text/event-stream")
        *tokens, usage = events(body)
        assert [token["choices"][0]["text"] for token in tokens] == ["x"] * 3
        assert [token["choices"][0]["finish_reason"] for token in tokens] == [None, None, "length"]
        assert usage == {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}}

        _, _, body = ask(
            connection, '{"messages":[{"content":"a b"}],"stream":true,"max_tokens":2}', "chat/completions"
        )
        assert [event["choices"][0]["delta"]["content"] for event in events(body)] == ["x", "x"]

        status, kind, body = ask(connection, '{"prompt":"a b","max_tokens":3}')
        assert (status, kind) == (200, "application/json")
        answer = json.loads(body)
        assert answer["choices"][0]["text"] == "xxx"
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}

        _, _, body = ask(connection, '{"messages":[{"content":"a b"}],"max_tokens":1}', "chat/completions")
        assert json.loads(body)["choices"][0]["message"]["content"] == "x"

        status, _, body = ask(connection, '{"prompt":"a","max_tokens":0}')
        assert (status, json.loads(body)["error"]["message"]) == (400, "max_tokens must be at least 1")
        status, _, _ = ask(connection, "{}", "embeddings")
        assert status == 404


def logged(path: Path, count: int) -> list[Instants]:
    """Once so many are written: it happens when the server has been idle for a while."""
    deadline = time.monotonic() + 30
    while len(found := read_instants(path)) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} are written"
        time.sleep(0.05)
    return found


def test_true_instants_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "new" / "instants.jsonl"
    flags = ("--first-token-ms", "20", "--inter-token-ms", "5", "--log", str(log))
    with serving("null_server", *flags) as connection:
        before_ns = time.perf_counter_ns()
        ask(connection, f'{{"prompt":[5,6,7],"max_tokens":4,{USAGE}}}', **{"X-Request-Id": "first one"})
        ask(connection, '{"prompt":"a b","max_tokens":3}')
        after_ns = time.perf_counter_ns()
        # Written while the server still runs.
        stream, body = logged(log, 2)
        connection.request("POST", "/v1/completions", f'{{"prompt":[9],"max_tokens":1000,{USAGE}}}')
        connection.getresponse().read1(10)
        connection.close()
        (_, _, hung_up) = logged(log, 3)
    assert (stream.request_id, stream.prompt_tokens, stream.output_tokens) == ("first one", 3, 4)
    assert stream.prompt_start.startswith("[5,6,7]")
    assert stream.completed
    for token, instant_ns in enumerate(stream.token_ns):
        assert instant_ns >= stream.received_ns + 20_000_000 + token * 5_000_000
    assert before_ns <= stream.received_ns == stream.began_ns
    assert stream.last_due_ns == stream.received_ns + 35_000_000 <= stream.token_ns[-1] <= after_ns
    # Without a stream, all of it leaves when the last token is due.
    assert len(body.token_ns) == 3
    assert len(set(body.token_ns)) == 1
    assert body.request_id is None
    assert (hung_up.completed, hung_up.output_tokens) == (False, 1000)
    assert 1 <= len(hung_up.token_ns) < 1000


def test_instants_of_answers_without_delay(tmp_path: Path) -> None:
    log = tmp_path / "instants.jsonl"
    with serving("null_server", "--log", str(log)) as connection:
        ask(connection, f'{{"prompt":[5],"max_tokens":4,{USAGE}}}')
    # Written as the server ends.
    (one,) = read_instants(log)
    assert len(one.token_ns) == 4
    assert one.received_ns == one.began_ns == one.last_due_ns <= one.token_ns[0] == one.token_ns[-1]


def test_a_log_that_is_none_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "instants.jsonl"
    log.write_text('{"received_ns": "now"}\n')
    with pytest.raises(EngineError, match=r"instants.jsonl holds no instants of a server"):
        read_instants(log)


def test_a_request_that_is_sent_early_is_answered_in_its_turn() -> None:
    request = f'{{"prompt":[5],"max_tokens":2,{USAGE}}}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n"
    with serving("modelled_queue", "--service-ms", "20", "--service-law", "deterministic") as connection:
        started_s = time.monotonic()
        connection.sock.sendall((head + request).encode() * 2)
        answer = b""
        while answer.count(b"[DONE]") < 2:
            answer += connection.sock.recv(65_536)
        assert time.monotonic() - started_s >= 0.04
        assert answer.count(b'"text"') == 4


def test_fixed_delays_are_from_the_request() -> None:
    plan = fixed_delays(50, 0.5)(1_000, 3)
    assert plan == (1_000, [50_001_000, 50_501_000, 51_001_000])


def test_one_request_is_served_at_a_time() -> None:
    """Hand-computed: services of 10, 4 and 6; the second waits for the first, the third finds nobody."""
    server = SingleServer(iter([10, 4, 6]))
    assert server(100, 2) == (100, [105, 110])
    assert server(103, 4) == (110, [111, 112, 113, 114])
    assert server(120, 1) == (120, [126])


def test_services_have_the_law_and_the_seed_that_are_asked_for() -> None:
    assert list(islice(service_times_ns(DETERMINISTIC, 2.5, 1), 3)) == [2_500_000] * 3
    drawn_ns = list(islice(service_times_ns(EXPONENTIAL, 2.0, 1), 20_000))
    assert drawn_ns == list(islice(service_times_ns(EXPONENTIAL, 2.0, 1), 20_000))
    assert drawn_ns != list(islice(service_times_ns(EXPONENTIAL, 2.0, 2), 20_000))
    # Mean and standard deviation are equal; four standard errors of each.
    assert sum(drawn_ns) / 20_000 == pytest.approx(2e6, rel=0.03)
    assert sum(value > 2e6 for value in drawn_ns) / 20_000 == pytest.approx(0.3679, abs=0.014)


@pytest.mark.parametrize("kernel", [True, False])
async def test_deadlines_are_kept_in_order_and_never_early(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(deadlines, "_kernel_timer", lambda *_: None)
    clock = Deadlines()
    start_ns = time.perf_counter_ns()
    offsets_ns = [30_000_000, 5_000_000, 5_000_000, -1, 12_000_000, 5_100_000]
    called: list[tuple[int, int]] = []
    ended = asyncio.Event()
    for number, offset_ns in enumerate(offsets_ns):
        clock.at(start_ns + offset_ns, lambda now_ns, number=number: called.append((number, now_ns)))  # type: ignore[misc]
    clock.at(start_ns + 30_000_001, lambda _: ended.set())
    await asyncio.wait_for(ended.wait(), 30)
    assert [number for number, _ in called] == [3, 1, 2, 5, 4, 0]
    assert all(now_ns >= start_ns + offsets_ns[number] for number, now_ns in called)
    clock.close()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("null_server", {"first_tokens_ms": 1}, "unknown engine option 'first_tokens_ms'; did you mean first_token_ms"),
        ("null_server", {"inter_token_ms": -1}, "inter_token_ms must be a number of at least 0, not -1"),
        ("null_server", {"inter_token_ms": float("nan")}, "inter_token_ms must be a number of at least 0, not nan"),
        ("modelled", {"service": 1}, "unknown engine option 'service'; did you mean service_ms"),
        ("modelled", {"service_ms": 0}, "service_ms must be a number above 0, not 0"),
        ("modelled", {"service_ms": "fast"}, "service_ms must be a number above 0, not 'fast'"),
        ("modelled", {"service_law": "exponent"}, "service_law 'exponent' is none; did you mean exponential"),
        ("modelled", {"seed": -3}, "seed must be a whole number of at least 0, not -3"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        create(name, Launch(model="tiny", options=options, log_path=tmp_path / "engine.log"))


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("null_server", ["--first-token-ms", "-1"], "a delay is a number of milliseconds of at least 0"),
        ("modelled_queue", ["--service-ms", "0"], "--service-ms is a number of milliseconds above 0"),
        ("modelled_queue", ["--service-law", "gamma"], "invalid choice: 'gamma'"),
        ("modelled_queue", ["--log", "/dev/null/x"], "cannot write the instants to /dev/null/x"),
    ],
)
def test_a_server_refuses_impossible_flags(module: str, flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", f"neobench.engines.{module}", "1", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_registry_knows_the_options_of_both() -> None:
    from neobench.engines import modelled_queue, null_server

    assert set(ENGINES["null_server"].options) == set(null_server.OPTIONS)
    assert set(ENGINES["modelled"].options) == set(modelled_queue.OPTIONS)
