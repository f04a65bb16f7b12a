import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from neobench.harness.driver import DriveOptions
from neobench.harness.engine import Completion, EngineError
from neobench.harness.runner import RunContext, run_async, run_one, stop_on_signals
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, WorkloadSpec, spec_hash
from neobench.results import store
from neobench.results.record import Outcome
from neobench.results.store import StoreError, load_run

CONTEXT = RunContext(command=["neobench", "run"], fingerprint={"source": {"commit": "abc", "dirty": True}})


def make_spec(num_requests=8, rate=200.0, num_warmup=0):
    return RunSpec(
        engine=EngineSpec(name="scripted"),
        workload=WorkloadSpec(name="test"),
        arrival=ArrivalSpec(rate=rate),
        model="tiny",
        num_requests=num_requests,
        num_warmup=num_warmup,
        timeout_s=5,
    )


async def test_one_engine_serves_several_rates(engine_class, make_requests, tmp_path):
    engine = engine_class()
    for rate in (100.0, 300.0):
        spec = make_spec(rate=rate, num_warmup=2)
        path = tmp_path / f"{rate:g}"
        warmup = make_requests(2, first_index=8)
        summary = await run_one(spec, make_requests(8), engine, path, context=CONTEXT, warmup=warmup)
        assert summary["completed"] == summary["num_prompts"] == 8
        share = 10 / 16 if rate == 100 else 20 / 16
        assert summary["engine_stats"] == {"served": 8, "share": share}, "counters by their growth, levels as they end"
        run = load_run(path)
        assert run.complete
        assert run.summary == json.loads(json.dumps(summary))
        assert run.info.spec_hash == summary["spec_hash"] == spec_hash(spec)
        assert run.info.spec["arrival"]["rate"] == rate
        assert run.info.engine == {"name": "scripted"}
        assert run.info.provenance.kind == "measured"
        assert run.info.provenance.commit == "abc-dirty"
        assert run.columns.warmup.sum() == 2


async def test_the_same_seed_gives_the_same_schedule(engine_class, make_requests, tmp_path):
    schedules = []
    for name in ("a", "b"):
        await run_one(make_spec(), make_requests(8), engine_class(), tmp_path / name, context=CONTEXT)
        columns = load_run(tmp_path / name).columns
        schedules.append(dict(zip(columns.integers("index"), columns.integers("scheduled_ns"), strict=True)))
    assert schedules[0] == schedules[1]


async def test_a_stopped_run_is_stored_as_invalid(engine_class, make_requests, tmp_path):
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    options = DriveOptions(stop=stop)
    spec = make_spec(num_requests=100, rate=100.0)
    summary = await run_one(
        spec, make_requests(100), engine_class(), tmp_path / "run", context=CONTEXT, options=options
    )
    assert summary["num_prompts"] == 100
    assert summary["outcomes"]["interrupted"] > 0
    assert not summary["validity"]["valid"]
    assert load_run(tmp_path / "run").summary["validity"] == summary["validity"]


async def test_a_dead_engine_is_raised_after_everything_is_stored(engine_class, make_requests, tmp_path):
    async def die(engine, _request, _sink):
        engine.dead = "exit code 9"
        return Completion(outcome=Outcome.CONNECTION_ERROR)

    with pytest.raises(EngineError, match="exit code 9"):
        await run_one(make_spec(), make_requests(8), engine_class(script={3: die}), tmp_path / "run", context=CONTEXT)
    run = load_run(tmp_path / "run")
    assert run.complete
    assert len(run.columns) == 8
    assert "The engine died: exit code 9" in run.summary["validity"]["reasons"]


async def test_counters_that_cannot_be_read_cost_only_themselves(engine_class, make_requests, tmp_path, caplog):
    engine = engine_class()

    async def fail():
        raise EngineError("no counters")

    engine.stats = fail
    summary = await run_one(make_spec(), make_requests(8), engine, tmp_path / "run", context=CONTEXT)
    assert summary["engine_stats"] == {}
    assert summary["completed"] == 8
    assert "no counters" in caplog.text


async def test_a_full_disk_ends_the_run_and_keeps_the_rows(engine_class, make_requests, tmp_path, monkeypatch):
    real_write = os.write
    rows_left = 3

    def write_until_full(fd, data):
        nonlocal rows_left
        if not rows_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rows_left -= 1
        return real_write(fd, data)

    monkeypatch.setattr(store.os, "write", write_until_full)
    with pytest.raises(StoreError, match="the disk is full"):
        await run_one(make_spec(), make_requests(8), engine_class(), tmp_path / "run", context=CONTEXT)
    monkeypatch.undo()
    run = load_run(tmp_path / "run")
    assert not run.complete
    assert len(run.columns) == 3


async def test_a_full_disk_found_only_by_fsync_ends_the_run(engine_class, make_requests, tmp_path, monkeypatch):
    real_fsync = os.fsync

    def fail_for_rows(fd):
        if Path(f"/proc/self/fd/{fd}").readlink().name == "requests.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(fd)

    monkeypatch.setattr(store.os, "fsync", fail_for_rows)
    monkeypatch.setattr("neobench.harness.runner.SYNC_INTERVAL_S", 0.02)
    with pytest.raises(StoreError, match="the disk is full"):
        await run_one(
            make_spec(num_requests=50, rate=100.0),
            make_requests(50),
            engine_class(),
            tmp_path / "run",
            context=CONTEXT,
        )
    assert len(load_run(tmp_path / "run").columns) < 50


async def test_an_engine_that_cannot_be_described_leaves_no_folder(engine_class, make_requests, tmp_path):
    async def fail():
        raise EngineError("not started")

    engine = engine_class()
    engine.describe = fail
    with pytest.raises(EngineError, match="not started"):
        await run_one(make_spec(), make_requests(8), engine, tmp_path / "run", context=CONTEXT)
    assert not (tmp_path / "run").exists()


async def test_refusals(engine_class, make_requests, tmp_path):
    with pytest.raises(ValueError, match="asks for 8 requests"):
        await run_one(make_spec(), make_requests(7), engine_class(), tmp_path / "run", context=CONTEXT)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "something").write_text("")
    with pytest.raises(StoreError, match="not empty"):
        await run_one(make_spec(), make_requests(8), engine_class(), tmp_path / "kept", context=CONTEXT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_stops_and_the_second_kills(number):
    stop = asyncio.Event()
    before = signal.getsignal(number)
    with stop_on_signals(stop):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 2)
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert signal.getsignal(number) in (before, signal.SIG_DFL, signal.default_int_handler)


RUN_UNTIL_TOLD = """
import asyncio, sys
from pathlib import Path
from neobench.harness.driver import DriveOptions
from neobench.harness.engine import Completion
from neobench.harness.request import PromptRequest
from neobench.harness.runner import RunContext, run_async, run_one, stop_on_signals
from neobench.harness.spec import load_spec
from neobench.results.record import Outcome

class Engine:
    name = "test"
    async def describe(self): return {}
    async def stats(self): return {}
    async def check_alive(self): pass
    async def generate(self, request, sink):
        await asyncio.sleep(0.02)
        sink.tokens_arrived()
        return Completion(outcome=Outcome.OK, output_tokens=1)

async def main():
    spec = load_spec({"engine": {"name": "test"}, "workload": {"name": "test"}, "arrival": {"rate": 200},
                      "model": "none", "num_requests": 100_000})
    requests = [PromptRequest.of([1], index=index, output_tokens=1) for index in range(100_000)]
    stop = asyncio.Event()
    with stop_on_signals(stop):
        options = DriveOptions(stop=stop)
        context = RunContext(command=[], fingerprint={})
        await run_one(spec, requests, Engine(), Path(sys.argv[1]), context=context, options=options)

run_async(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_ended_from_outside_keeps_what_it_measured(tmp_path, number):
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", RUN_UNTIL_TOLD, str(path)])
    deadline = time.monotonic() + 30
    rows = path / "requests.jsonl"
    while not (rows.exists() and rows.read_bytes().count(b"\n") > 20):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(timeout=30) == (0 if number is signal.SIGINT else -signal.SIGKILL)
    run = load_run(path)
    assert run.complete is (number is signal.SIGINT)
    assert run.summary["completed"] > 20
    assert run.summary["num_prompts"] == (100_000 if run.complete else len(run.columns))
    assert not run.summary["validity"]["valid"]


def test_run_async_returns_the_result_and_uses_the_faster_loop():
    async def loop_module():
        return type(asyncio.get_running_loop()).__module__

    pytest.importorskip("uvloop")
    assert run_async(loop_module()).startswith("uvloop")


def test_a_run_on_the_faster_loop(engine_class, make_requests, tmp_path):
    run_async(run_one(make_spec(), make_requests(8), engine_class(), tmp_path / "run", context=CONTEXT))
    assert load_run(tmp_path / "run").summary["completed"] == 8


def test_context_captures_this_machine():
    context = RunContext.capture(["neobench"])
    assert context.fingerprint["cpu"]["logical_cores"] >= 1
    assert context.provenance().started_at.endswith("+00:00")


async def test_a_replayed_trace_is_plotted_at_its_mean_rate(engine_class, make_requests, tmp_path):
    spec = msgspec.structs.replace(make_spec(num_requests=3), arrival=ArrivalSpec(kind="trace", speed=2))
    times_ns = [0, 20_000_000, 100_000_000]
    requests = [
        msgspec.structs.replace(request, arrival_ns=time_ns)
        for request, time_ns in zip(make_requests(3), times_ns, strict=True)
    ]
    summary = await run_one(spec, requests, engine_class(), tmp_path / "run", context=CONTEXT)
    assert summary["request_rate"] == summary["offered_request_rate"] == pytest.approx(2 / 0.05)
    assert load_run(tmp_path / "run").info.request_rate == pytest.approx(2 / 0.05)


async def test_prefix_cache_hits_that_nobody_asked_for_are_warned_of(engine_class, make_requests, tmp_path):
    async def cached(engine, request, sink):
        return msgspec.structs.replace(await engine.stream(request.output_tokens, sink), cached_tokens=1)

    engine = engine_class(script={0: cached})
    summary = await run_one(make_spec(), make_requests(8), engine, tmp_path / "run", context=CONTEXT)
    assert summary["prefix_cache"] == {"reporting_requests": 1, "cached_tokens": 1, "unasked_cached_tokens": 1}
    assert any("took 1 prompt tokens" in warning for warning in summary["validity"]["warnings"])
    assert summary["validity"]["valid"]
