"""Several client processes against a real server in a process of its own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from neobench.harness.arrivals import draw_offsets_ns
from neobench.harness.driver import DriveOptions
from neobench.harness.engine import ClientRecipe, EngineError
from neobench.harness.runner import RunContext, run_one
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, SpecError, WorkloadSpec
from neobench.harness.workers import SharedLoad
from neobench.results.record import Outcome
from neobench.results.store import load_run

SERVER = Path(__file__).parents[2] / "faults" / "fault_server.py"
CONTEXT = RunContext(["neobench", "run"], {})


class ServedEngine:
    """A server that is there already, driven by clients in other processes alone."""

    name = "served"

    def __init__(self, url: str, factory: str = "neobench.engines.openai_http:CompletionsClient") -> None:
        self.url = url
        self.factory = factory
        self.dead: str | None = None

    async def start(self): ...

    async def stop(self): ...

    async def describe(self):
        return {"name": self.name}

    async def stats(self):
        return {}

    async def check_alive(self) -> None:
        if self.dead:
            raise EngineError(self.dead)

    async def generate(self, _request, _sink):
        raise AssertionError("only the workers send")

    def client_recipe(self):
        return ClientRecipe(factory=self.factory, arguments={"base_url": self.url, "model": "m"})


@pytest.fixture
def served():
    """An engine whose every token takes 2 ms."""
    with server() as url:
        yield ServedEngine(url)


@contextlib.contextmanager
def server():
    command = [sys.executable, str(SERVER), "healthy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def make_spec(num_requests=40, *, processes=2, rate=200.0, **fields):
    return RunSpec(
        engine=EngineSpec(name="served"),
        workload=WorkloadSpec(name="made"),
        arrival=fields.pop("arrival", ArrivalSpec(rate=rate)),
        model="m",
        num_requests=num_requests,
        client_processes=processes,
        timeout_s=20.0,
        **fields,
    )


def children() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry.name))
    return found


async def test_every_request_is_sent_once_on_the_schedule_of_one_process(served, make_requests, tmp_path):
    spec = make_spec(num_warmup=4)
    warmup = make_requests(4, first_index=40)
    summary = await run_one(spec, make_requests(40), served, tmp_path / "run", context=CONTEXT, warmup=warmup)
    assert summary["completed"] == summary["num_prompts"] == 40
    assert summary["client_processes"] == 2
    assert 0 < summary["client_loop_busy_share"] < 1
    rows = load_run(tmp_path / "run").columns.to_arrow().to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(44))
    assert all(row["client"] == row["index"] % 2 for row in rows)
    offsets_ns = draw_offsets_ns(spec.arrival, 40, spec.seeds().arrivals).tolist()
    measured = {row["index"]: row for row in rows if not row["warmup"]}
    assert [measured[index]["scheduled_ns"] for index in range(40)] == offsets_ns
    assert all(row["issued_ns"] >= row["scheduled_ns"] for row in measured.values())
    # One origin for both: neither has a constant head start on the other.
    assert summary["lag_p50_ms"] < 50
    names = {path.name for path in (tmp_path / "run").glob("requests*.jsonl")}
    assert names == {"requests-00.jsonl", "requests-01.jsonl"}


async def test_an_engine_of_this_process_is_refused_before_anything_is_written(engine_class, make_requests, tmp_path):
    with pytest.raises(EngineError, match="lives in this process, so 2 client processes cannot drive it"):
        await run_one(make_spec(), make_requests(40), engine_class(), tmp_path / "run", context=CONTEXT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factory", ["neobench.engines.openai_http:NoSuchClient", "no_such_module:Client"])
async def test_a_client_that_cannot_be_made_says_why(served, make_requests, tmp_path, factory):
    engine = ServedEngine(served.url, factory)
    before = children()
    with pytest.raises(EngineError, match=f"cannot make a client with {factory}"):
        await run_one(make_spec(), make_requests(40), engine, tmp_path / "run", context=CONTEXT)
    assert children() <= before


async def test_the_concurrency_is_shared_out(make_requests):
    load = SharedLoad(
        requests=make_requests(5),
        offsets_ns=draw_offsets_ns(ArrivalSpec(kind="all_at_once"), 5, 0),
        warmup=[],
        timeout_s=1.0,
        concurrency=5,
        closed_loop=True,
    )
    assert [load.concurrency_of(client, 3) for client in range(3)] == [2, 2, 1]
    assert [request.index for request in load.shard(1, 3).requests] == [1, 4]
    with pytest.raises(SpecError, match="cannot share a concurrency of 1"):
        make_spec(arrival=ArrivalSpec(kind="closed", concurrency=1))


async def test_a_closed_loop_over_two_processes_keeps_its_concurrency(served, make_requests, tmp_path):
    spec = make_spec(arrival=ArrivalSpec(kind="closed", concurrency=4))
    summary = await run_one(spec, make_requests(40), served, tmp_path / "run", context=CONTEXT)
    assert summary["completed"] == 40
    rows = load_run(tmp_path / "run").columns.to_arrow().to_pylist()
    for client in (0, 1):
        instants = [(row["issued_ns"], 1) for row in rows if row["client"] == client]
        instants += [(row["ended_ns"], -1) for row in rows if row["client"] == client]
        level = peak = 0
        for _, change in sorted(instants):
            level += change
            peak = max(peak, level)
        assert peak == 2


async def test_all_turns_of_a_session_are_sent_by_one_process(served, make_requests, tmp_path):
    requests = [
        msgspec.structs.replace(request, session=index // 4, turn=index % 4, think_ns=(index % 4 > 0) * 20_000_000)
        for index, request in enumerate(make_requests(40))
    ]
    spec = make_spec(rate=50.0)
    summary = await run_one(spec, requests, served, tmp_path / "run", context=CONTEXT)
    assert summary["completed"] == 40
    assert summary["sessions"]["completed_sessions"] == 10
    rows = load_run(tmp_path / "run").columns.to_arrow().to_pylist()
    rows = sorted(rows, key=lambda row: row["index"])
    assert [row["client"] for row in rows] == [row["session"] % 2 for row in rows]
    offsets_ns = draw_offsets_ns(spec.arrival, 10, spec.seeds().arrivals).tolist()
    assert [row["scheduled_ns"] for row in rows if row["turn"] == 0] == offsets_ns
    for before, after in pairwise(rows):
        if after["turn"]:
            assert after["scheduled_ns"] == before["ended_ns"] + 20_000_000 <= after["issued_ns"]


async def test_a_killed_worker_leaves_the_others_running_and_its_records_readable(served, make_requests, tmp_path):
    before = children()
    seen = []

    def watch(record):
        seen.append(record)
        if len(seen) == 10:
            first = min(children() - before)
            os.kill(first, signal.SIGKILL)

    spec = make_spec(200, rate=100.0)
    summary = await run_one(spec, make_requests(200), served, tmp_path / "run", context=CONTEXT, watch=watch)
    assert not summary["validity"]["valid"]
    assert any("died: signal 9" in reason for reason in summary["validity"]["reasons"])
    run = load_run(tmp_path / "run")
    rows = run.columns.to_arrow().to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(200))
    assert len(seen) == 200
    lost = [row for row in rows if row["outcome"] == Outcome.INTERRUPTED.value]
    assert lost
    assert len({row["client"] for row in lost}) == 1
    assert all("signal 9" in row["error"] for row in lost)
    survivor = 1 - lost[0]["client"]
    assert sum(row["outcome"] == "ok" for row in rows if row["client"] == survivor) == 100
    assert children() <= before


async def test_a_watch_can_stop_the_run_early(served, make_requests, tmp_path):
    stop = asyncio.Event()
    seen = []

    def watch(record):
        seen.append(record)
        if len(seen) >= 10:
            stop.set()

    spec = make_spec(1000, rate=100.0)
    options = DriveOptions(stop=stop)
    started_s = time.monotonic()
    summary = await run_one(
        spec, make_requests(1000), served, tmp_path / "run", context=CONTEXT, watch=watch, options=options
    )
    assert time.monotonic() - started_s < 8
    assert summary["num_prompts"] == len(seen) == 1000
    assert 0 < summary["completed"] < 1000
    assert "interrupted" in summary["validity"]["reasons"][0]


async def test_an_engine_that_dies_ends_the_run(served, make_requests, tmp_path):
    def watch(_record):
        served.dead = "it fell over"

    with pytest.raises(EngineError, match="it fell over"):
        await run_one(
            make_spec(1000, rate=100.0), make_requests(1000), served, tmp_path / "run", context=CONTEXT, watch=watch
        )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validity"]["reasons"][0] == "The engine died: it fell over"


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_workers import CONTEXT, ServedEngine, make_spec
from neobench.harness.driver import DriveOptions
from neobench.harness.request import PromptRequest
from neobench.harness.runner import run_async, run_one, stop_on_signals
async def main():
    requests = [PromptRequest.of([i, 1], index=i, output_tokens=3) for i in range(2000)]
    stop = asyncio.Event()
    with stop_on_signals(stop):
        await run_one(make_spec(2000, rate=100.0), requests, ServedEngine(sys.argv[1]), Path(sys.argv[2]),
                      context=CONTEXT, options=DriveOptions(stop=stop))
run_async(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_parent_and_workers_and_keeps_the_records(tmp_path, number):
    path = tmp_path / "run"
    with server() as url:
        command = [sys.executable, "-c", PARENT, url, str(path), str(Path(__file__).parent)]
        parent = subprocess.Popen(command, start_new_session=True)
        try:
            wait_for(lambda: sum(file.stat().st_size for file in path.glob("requests-*.jsonl")) > 2000)
            workers = workers_of(parent.pid)
            assert len(workers) == 2
            # As a terminal does it: to the whole process group.
            os.killpg(parent.pid, number)
            parent.wait(timeout=20)
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        finally:
            if parent.poll() is None:
                parent.kill()
    run = load_run(path)
    assert run.complete == (number != signal.SIGKILL)
    assert not run.summary["validity"]["valid"]
    assert run.summary["completed"] > 0
    assert len(run.columns) == 2000


def workers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for(condition, timeout_s=20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
