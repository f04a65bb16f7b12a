from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neobench.engines.launch import Launch, PromptLimits
from neobench.engines.neo import FLAGS, NeoEngine
from neobench.engines.openai_limits import OPTIONS
from neobench.engines.registry import ENGINES, create, prompt_limits
from neobench.harness.engine import EngineError
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

from .conftest import Arrivals

SERVER = """
import asyncio, json, sys
from aiohttp import web

async def complete(request):
    asked = await request.json()
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(asked["max_tokens"]):
        await response.write(b'data: {"choices":[{"text":"","finish_reason":null}]}\\n\\n')
    usage = {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}
    await response.write(b"data: " + json.dumps(usage).encode() + b"\\n\\ndata: [DONE]\\n\\n")
    return response

def answer(content):
    async def handler(request):
        return web.json_response(content)
    return handler

app = web.Application()
app.router.add_get("/health", answer({}))
app.router.add_get("/v1/models", answer({"data": [{"id": "tiny"}]}))
app.router.add_get("/info", answer({"vocab_size": 512, "argv": sys.argv[1:]}))
app.router.add_get("/stats", answer({"gpu_decode_tokens": 5, "cpu_decode_tokens": 7, "mode": "x", "ok": True}))
app.router.add_post("/v1/completions", complete)
port = int(sys.argv[sys.argv.index("--port") + 1])
web.run_app(app, host="127.0.0.1", port=port, print=None)
"""


def launch(tmp_path: Path, **options: Any) -> Launch:
    return Launch(model="tiny-llama", options=options, log_path=tmp_path / "server.log")


def test_an_unknown_engine_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown engine 'gpuonly'; did you mean gpu_only"):
        create("gpuonly", launch(tmp_path))


def test_every_engine_can_be_made_and_has_its_name(tmp_path: Path) -> None:
    for name, entry in ENGINES.items():
        needed = {"base_url": "http://localhost:1"} if entry.takes("base_url") else {}
        assert create(name, replace(launch(tmp_path, **needed), model="tiny")).name == name
        assert entry.description


def test_options_of_an_entry_are_those_of_its_adapter() -> None:
    assert set(ENGINES["neo"].options) == {"model", *FLAGS}
    assert ENGINES["openai"].options == OPTIONS


def test_limits_are_known_before_the_start() -> None:
    assert prompt_limits("neo", "tiny", {"max_model_tokens": 64}) == PromptLimits(4096, 64)
    assert prompt_limits("null", "tiny", {}).max_model_tokens is None
    with pytest.raises(EngineError, match="between 2 and 2048"):
        prompt_limits("chunked_prefill_256", "tiny", {"max_model_tokens": 10**6})


def test_importing_the_registry_loads_nothing_heavy() -> None:
    heavy = ("aiohttp", "numpy", "msgspec", "torch")
    code = f"import sys, neobench.engines.registry; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


def test_options_become_flags_of_serve(tmp_path: Path) -> None:
    engine = create("gpu_only", launch(tmp_path, host_memory="2GB", device_blocks=64, seed=None))
    assert isinstance(engine, NeoEngine)
    assert engine.command(8123) == [
        *[sys.executable, "-m", "neobench", "serve", "--policy", "gpu_only", "--model", "tiny-llama"],
        *["--port", "8123", "--device-blocks", "64", "--host-memory", "2GB"],
    ]


def test_a_name_may_fix_the_token_budget(tmp_path: Path) -> None:
    flags = {}
    for name in ("chunked_prefill", "chunked_prefill_256", "chunked_prefill_512"):
        engine = create(name, launch(tmp_path, max_batch_tokens=1000))
        assert isinstance(engine, NeoEngine)
        command = engine.command(1)
        assert command[command.index("--policy") + 1] == "chunked_prefill"
        flags[name] = command[command.index("--max-batch-tokens") + 1]
    assert flags == {"chunked_prefill": "1000", "chunked_prefill_256": "256", "chunked_prefill_512": "512"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neo", {"device_block": 3}, "unknown engine option 'device_block'; did you mean device_blocks"),
        ("neo", {"start_timeout_s": "soon"}, "start_timeout_s must be a number of seconds, not 'soon'"),
        ("null", {"seed": 3}, "unknown engine option 'seed'; did you mean max_model_tokens"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        create(name, launch(tmp_path, **options))


async def test_neo_from_start_to_stop_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    engine = create("neo", launch(tmp_path, device_blocks=8))
    assert isinstance(engine, NeoEngine)
    real_command = engine.command
    monkeypatch.setattr(
        engine, "command", lambda port: [sys.executable, str(tmp_path / "server.py"), *real_command(port)[4:]]
    )
    await engine.stop()
    with pytest.raises(EngineError, match="neo is not started"):
        await engine.check_alive()
    for _ in range(2):
        await engine.start()
        await engine.check_alive()
        facts = await engine.describe()
        assert facts["vocab_size"] == 512
        assert facts["served_models"] == ["tiny"]
        assert facts["argv"][:4] == ["--policy", "asymmetric_pipeline", "--model", "tiny-llama"]
        assert facts["flags"] == ["--device-blocks", "8"]
        assert await engine.stats() == {"gpu_decode_tokens": 5, "cpu_decode_tokens": 7}
        sink = Arrivals()
        completion = await engine.generate(PromptRequest.of([1], index=0, output_tokens=9), sink)
        assert (completion.outcome, completion.output_tokens, len(sink)) == (Outcome.OK, 9, 9)
        await asyncio.gather(engine.stop(), return_exceptions=False)
        await engine.stop()


async def test_neo_can_be_stopped_after_a_failed_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create("neo", launch(tmp_path))
    monkeypatch.setattr(engine, "command", lambda _port: [sys.executable, "-c", "exit('no weights')"])
    with pytest.raises(EngineError, match="no weights"):
        await engine.start()
    await engine.stop()


async def test_the_null_engine_answers_with_the_exact_number_of_tokens(tmp_path: Path) -> None:
    engine = create("null", launch(tmp_path))
    await engine.start()
    sink = Arrivals()
    completion = await engine.generate(PromptRequest.of([1], index=0, output_tokens=17), sink)
    assert (completion.outcome, completion.output_tokens, len(sink)) == (Outcome.OK, 17, 17)
    assert await engine.stats() == {}
    assert (await engine.describe())["vocab_size"] > 0
    await engine.check_alive()
    await engine.stop()
