"""`neobench serve` with the real engine behind it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.slow

PROMPT = {"model": "tiny", "prompt": [5, 6, 7], "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(start_neobench: Start) -> Iterator[tuple[str, int]]:
    process = start_neobench("serve", "--port", "0", "--device-blocks", "40", "--host-memory", "32MiB")
    address = wait_until_serving(process)
    yield address
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def wait_until_serving(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://([\d.]+):(\d+)", line):
            return found[1], int(found[2])
    raise AssertionError(process.communicate()[1])


def ask(server: tuple[str, int], path: str, body: Any = None) -> tuple[int, str]:
    connection = HTTPConnection(*server, timeout=60)
    data = body if isinstance(body, str) or body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def gauge(server: tuple[str, int], name: str) -> float:
    (value,) = re.findall(rf"^neo_{name}\{{.*\}} (\S+)$", ask(server, "/metrics")[1], re.MULTILINE)
    return float(value)


def test_greedy_completions_repeat_and_stream_alike(server: tuple[str, int]) -> None:
    first, again = (json.loads(ask(server, "/v1/completions", {**PROMPT, "max_tokens": 12})[1]) for _ in range(2))
    assert first["choices"] == again["choices"]
    assert first["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    status, stream = ask(server, "/v1/completions", {**PROMPT, "max_tokens": 12, "stream": True})
    assert status == 200
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == first["choices"][0]["text"]
    assert stream.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("{", 400, "JSON"),
        ({**PROMPT, "max_tokens": 5000}, 400, "at most"),
        ({**PROMPT, "prompt": list(range(3000)), "max_tokens": 1}, 400, "at most"),
        ({**PROMPT, "prompt": []}, 400, "empty"),
        ({**PROMPT, "prompt": "text"}, 400, "token ids"),
        ({**PROMPT, "model": "llama"}, 404, "llama"),
        ({**PROMPT, "logprobs": 3}, 400, "logprobs"),
        ({**PROMPT, "max_tokens": 0}, 400, "max_tokens"),
    ],
)
def test_bad_requests_get_a_sentence(server: tuple[str, int], body: Any, status: int, sentence: str) -> None:
    answered, text = ask(server, "/v1/completions", body)
    assert answered == status
    assert sentence in json.loads(text)["error"]["message"]


def test_a_client_that_hangs_up_frees_its_blocks(server: tuple[str, int]) -> None:
    aborted = gauge(server, "aborted_requests_total")
    for stream in (True, False):
        connection = HTTPConnection(*server, timeout=60)
        body = json.dumps({**PROMPT, "max_tokens": 1900, "stream": stream})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        wait_for(lambda: gauge(server, "device_blocks_used") + gauge(server, "host_blocks_used") > 0)
        connection.close()
        wait_for(lambda: gauge(server, "device_blocks_used") + gauge(server, "host_blocks_used") == 0)
    assert gauge(server, "aborted_requests_total") == aborted + 2


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_lets_running_requests_finish(start_neobench: Start) -> None:
    process = start_neobench("serve", "--port", "0", "--device-blocks", "40", "--host-memory", "32MiB")
    address = wait_until_serving(process)
    connection = HTTPConnection(*address, timeout=60)
    body = json.dumps({**PROMPT, "max_tokens": 300})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    wait_for(lambda: gauge(address, "num_running") == 1)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: ask(address, "/health")[0] == 503)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["usage"]["completion_tokens"] == 300
    process.communicate(timeout=60)
    assert process.returncode == 0
