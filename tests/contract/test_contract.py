"""What every adapter promises to a run, held against real servers (the Engine protocol in harness/engine.py)."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from neobench.engines.launch import Launch
from neobench.engines.registry import create, prompt_limits
from neobench.harness.driver import DriveOptions
from neobench.harness.engine import Engine, EngineError
from neobench.harness.request import PromptRequest
from neobench.harness.runner import RunContext, run_one
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, WorkloadSpec
from neobench.results.record import Outcome

from .adapters import Case, parameters, servers_beside

MODEL = "tiny"
every_engine = pytest.mark.parametrize("case", parameters())


class Sink:
    def __init__(self) -> None:
        self.instants_ns: list[int] = []

    def tokens_arrived(self, at_ns: int | None = None) -> None:
        loop_ns = round(asyncio.get_running_loop().time() * 1e9)
        self.instants_ns.append(loop_ns if at_ns is None else at_ns)


@asynccontextmanager
async def made(case: Case, tmp_path: Path) -> AsyncIterator[Engine]:
    """Not started; whatever happens, it is stopped."""
    async with case.running() as options:
        engine = create(case.name, Launch(model=MODEL, options=options, log_path=tmp_path / "engine.log"))
        try:
            yield engine
        finally:
            await engine.stop()


@asynccontextmanager
async def started(case: Case, tmp_path: Path) -> AsyncIterator[Engine]:
    async with made(case, tmp_path) as engine:
        await engine.start()
        yield engine


def a_request(index: int, *, prompt: int = 8, output: int = 12) -> PromptRequest:
    return PromptRequest.of([300 + index, *range(260, 260 + prompt - 1)], index=index, output_tokens=output)


@every_engine
async def test_lengths_are_exact_and_tokens_are_streamed(case: Case, tmp_path: Path) -> None:
    async with started(case, tmp_path) as engine:
        for output in (1, 2, 17):
            sink = Sink()
            completion = await engine.generate(a_request(output, output=output), sink)
            assert (completion.outcome, completion.output_tokens) == (Outcome.OK, output), completion.error
            assert 1 <= len(sink.instants_ns) <= output
        assert len(sink.instants_ns) > 5
        assert sink.instants_ns == sorted(sink.instants_ns)
        if case.waits_for_tokens:
            assert len(set(sink.instants_ns)) > 2


@every_engine
async def test_a_request_that_is_cancelled_leaves_the_others_alone(case: Case, tmp_path: Path) -> None:
    async with started(case, tmp_path) as engine:
        tasks = [asyncio.create_task(engine.generate(a_request(i, output=40), Sink())) for i in range(6)]
        await asyncio.sleep(0.02)
        tasks[2].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for index, result in enumerate(ended):
            if index != 2:
                assert not isinstance(result, BaseException), result
                assert (result.outcome, result.output_tokens) == (Outcome.OK, 40), result.error
        again = await engine.generate(a_request(9), Sink())
        assert again.outcome is Outcome.OK
        await engine.check_alive()


@every_engine
async def test_what_it_says_of_itself_can_be_stored(case: Case, tmp_path: Path) -> None:
    async with started(case, tmp_path) as engine:
        facts = await engine.describe()
        assert json.loads(json.dumps(dict(facts)))["name"] == case.name == engine.name
        before = await engine.stats()
        await engine.generate(a_request(0), Sink())
        after = await engine.stats()
        assert before.keys() <= after.keys()
        for name, value in after.items():
            assert type(value) in (int, float)
            if isinstance(value, int):
                assert value >= before.get(name, 0), f"{name} is a counter and must not shrink"


@every_engine
async def test_limits_are_known_before_the_start_and_hold(case: Case, tmp_path: Path) -> None:
    async with case.running() as options:
        limits = prompt_limits(case.name, MODEL, options)
        assert limits.vocab_size > 1
    async with started(case, tmp_path) as engine:
        last_id = PromptRequest.of([limits.vocab_size - 1] * 4, index=0, output_tokens=2)
        assert (await engine.generate(last_id, Sink())).outcome is Outcome.OK


@every_engine
async def test_stop_frees_everything_and_may_come_twice_or_early(case: Case, tmp_path: Path) -> None:
    async with made(case, tmp_path) as engine:
        known = {process.pid for process in servers_beside(set())}
        await engine.stop()
        for _ in range(2):
            await engine.start()
            servers = servers_beside(known)
            assert bool(servers) == case.starts_a_process
            ports = {c.laddr.port for s in servers for c in s.net_connections("tcp") if c.status == "LISTEN"}
            await engine.generate(a_request(0), Sink())
            await engine.stop()
            await engine.stop()
            assert servers_beside(known) == []
            for port in ports:
                with socket.socket() as probe:
                    assert probe.connect_ex(("127.0.0.1", port)) != 0


@every_engine
async def test_a_server_that_dies_ends_the_run_and_what_was_measured_is_kept(case: Case, tmp_path: Path) -> None:
    if not case.starts_a_process:
        pytest.skip("starts no process")
    requests = [a_request(index, output=8) for index in range(200)]
    spec = RunSpec(
        engine=EngineSpec(name=case.name),
        workload=WorkloadSpec(name="contract"),
        arrival=ArrivalSpec(rate=50.0),
        model=MODEL,
        num_requests=len(requests),
    )
    path = tmp_path / "run"
    async with made(case, tmp_path) as engine:
        known = {process.pid for process in servers_beside(set())}
        await engine.start()
        server = servers_beside(known)[0]
        asyncio.get_running_loop().call_later(1.0, server.kill)
        options = DriveOptions(liveness_interval_s=0.1)
        with pytest.raises(EngineError, match=r"died: killed by SIGKILL[\s\S]*log"):
            await run_one(spec, requests, engine, path, context=RunContext(["contract"], {}), options=options)
        with pytest.raises(EngineError, match="died"):
            await engine.check_alive()
    summary = json.loads((path / "summary.json").read_text())
    assert summary["completed"] > 0
    assert summary["completed"] + summary["failed"] == len(requests)
    assert "The engine died" in summary["validity"]["reasons"][0]
    assert len((path / "requests.jsonl").read_text().splitlines()) == len(requests)
