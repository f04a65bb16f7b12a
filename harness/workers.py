"""Several client processes that drive one run: shards drawn up front, a file of records each, one common start.

Request i is sent by worker i modulo their number; of sessions the turns of session s by worker s modulo it.
time.perf_counter_ns is CLOCK_MONOTONIC on Linux, one clock for all processes of a machine, so a single origin makes all
deadlines absolute.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from neobench.harness.driver import DriveOptions, DriveResult, ScheduleStart
from neobench.harness.engine import Completion, Engine, EngineError, SharedEngine
from neobench.harness.flight import Counts, Flight
from neobench.harness.liveness import Suspecting, why_dead
from neobench.harness.request import PromptRequest
from neobench.harness.sessions import of_client
from neobench.harness.usage import ClientUsage
from neobench.harness.worker_protocol import Ended, FromWorker, Plan, Progress, Ready, Shard, Start, Stop
from neobench.results.record import Outcome, RequestRecord
from neobench.results.record_tail import RecordTail
from neobench.results.store import RunFolder, StoreError, requests_file

STOP_GRACE_S = 15.0
"""Three times what the driver gives an engine to let go of cancelled requests."""
WATCH_INTERVAL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class SharedLoad:
    """What the workers send together."""

    requests: Sequence[PromptRequest]
    offsets_ns: npt.NDArray[np.int64]
    """[num_requests] As offsets_of_ns has them."""
    warmup: Sequence[PromptRequest]
    timeout_s: float
    concurrency: int | None
    closed_loop: bool

    def shard(self, client: int, num_clients: int) -> Shard:
        mine = of_client(self.requests, client, num_clients)
        return Shard(
            requests=[self.requests[position] for position in mine],
            offsets_ns=self.offsets_ns[mine].tolist(),
            warmup=list(self.warmup[client::num_clients]),
        )

    def concurrency_of(self, client: int, num_clients: int) -> int | None:
        if self.concurrency is None:
            return None
        return self.concurrency // num_clients + (client < self.concurrency % num_clients)


def check_shared(engine: Engine, num_clients: int) -> SharedEngine:
    """Raises EngineError for an engine that only this process can reach."""
    if isinstance(engine, SharedEngine):
        return engine
    raise EngineError(
        f"engine {engine.name!r} lives in this process, so {num_clients} client processes cannot drive it: "
        "leave --client-processes at 1, or choose an engine with a server"
    )


async def drive_in_processes(
    load: SharedLoad,
    engine: Engine,
    folder: RunFolder,
    num_clients: int,
    *,
    on_schedule_start: ScheduleStart,
    options: DriveOptions,
    watch: Callable[[RequestRecord], None] | None = None,
) -> DriveResult:
    """As drive(), by `num_clients` processes; `folder` holds every record afterwards.

    `watch` gets each record within WATCH_INTERVAL_S. Raises EngineError when a client cannot be opened or dies before
    the schedule starts, and StoreError when records cannot be written. A worker that dies later is an incident; its
    requests that left no record get one that says so.
    """
    recipe = check_shared(engine, num_clients).client_recipe()
    with tempfile.TemporaryDirectory(prefix="neobench-clients-") as scratch:
        workers = [_Worker(client, Path(scratch)) for client in range(num_clients)]
        for worker in workers:
            shard_path = worker.scratch / f"shard-{worker.client:02d}.msgpack"
            shard_path.write_bytes(msgspec.msgpack.encode(load.shard(worker.client, num_clients)))
            plan = Plan(
                client=worker.client,
                recipe=recipe,
                shard_path=str(shard_path),
                run_folder=str(folder.path.resolve()),
                timeout_s=load.timeout_s,
                concurrency=load.concurrency_of(worker.client, num_clients),
                closed_loop=load.closed_loop,
                progress_interval_s=options.progress_interval_s,
            )
            worker.plan = plan
        crew = _Crew(workers, load, engine, folder, options, watch)
        try:
            return await crew.run(on_schedule_start)
        finally:
            await crew.end()


class _Worker:
    """One process and what it has said so far."""

    plan: Plan

    def __init__(self, client: int, scratch: Path) -> None:
        self.client = client
        self.scratch = scratch
        self.progress = Progress(0, 0, 0, 0, 0)
        self.ended: Ended | None = None
        self.ready = asyncio.Event()
        """Set also when it will never be."""
        self.exit_status: int | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """From its start to its exit."""
        with self._log_path.open("wb") as log:
            # Of a session of its own: Ctrl-C goes to this process alone, which then asks its workers to stop.
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "neobench.harness.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._send(msgspec.json.encode(self.plan))
            assert process.stdout is not None
            decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
            async for line in process.stdout:
                self._take(decoder.decode(line))
            self.exit_status = await process.wait()
        finally:
            self.ready.set()

    def start(self, origin_ns: int) -> None:
        self._send(msgspec.json.encode(Start(origin_ns)))

    def stop(self) -> None:
        self._send(msgspec.json.encode(Stop()))

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def failure(self) -> str | None:
        """Why it ended out of order; None if it did not."""
        if self.ended is not None:
            return self.ended.client_error or self.ended.store_error
        status = self.exit_status
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        last_words = self._log_path.read_text(errors="replace").strip().splitlines()
        said = f" ({last_words[-1]})" if last_words else ""
        return f"client process {self.client} died: {how}{said}"

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Progress):
            self.progress = message
        elif isinstance(message, Ready):
            self.ready.set()
        else:
            self.ended = message

    def _send(self, line: bytes) -> None:
        stdin = None if self._process is None else self._process.stdin
        if stdin is not None and not stdin.is_closing():
            with suppress(ConnectionError):
                stdin.write(line + b"\n")

    @property
    def _log_path(self) -> Path:
        return self.scratch / f"worker-{self.client:02d}.log"


class _Crew:
    def __init__(
        self,
        workers: list[_Worker],
        load: SharedLoad,
        engine: Engine,
        folder: RunFolder,
        options: DriveOptions,
        watch: Callable[[RequestRecord], None] | None,
    ) -> None:
        self._workers = workers
        self._load = load
        self._engine = engine
        self._folder = folder
        self._options = options
        self._watch = watch
        self._tails = [RecordTail(folder.path / requests_file(worker.client)) for worker in workers]
        self._seen: set[tuple[bool, int]] = set()
        self._engine_error: EngineError | None = None
        self._lost_connections = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, on_schedule_start: ScheduleStart) -> DriveResult:
        self._tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        helpers = [asyncio.create_task(helper) for helper in (self._watch_engine(), self._watch_stop(), self._report())]
        try:
            await asyncio.gather(*(worker.ready.wait() for worker in self._workers))
            self._raise_if_never_ready()
            origin_ns = await on_schedule_start()
            assert origin_ns is not None, "workers need to be told when the schedule starts"
            for worker in self._workers:
                worker.start(origin_ns)
            await asyncio.gather(*self._tasks)
            if self._engine_error is None:
                self._engine_error = await self._why_dead()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return self._result()

    async def end(self) -> None:
        """Whatever happened, no worker is left behind."""
        for worker in self._workers:
            worker.stop()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=STOP_GRACE_S)
            for worker in self._workers if left else ():
                worker.kill()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _raise_if_never_ready(self) -> None:
        for worker in self._workers:
            if worker.exit_status is None and worker.ended is None:
                continue
            if worker.ended is not None and worker.ended.store_error is not None:
                raise StoreError(worker.ended.store_error)
            failure = worker.failure()
            if failure is not None:
                raise EngineError(failure)

    def _result(self) -> DriveResult:
        self._read_records()
        for tail in self._tails:
            tail.close()
        incidents = []
        for worker in self._workers:
            failure = worker.failure()
            if failure is not None:
                lost = self._record_lost(worker, failure)
                incidents.append(f"{failure[0].upper()}{failure[1:]}; {lost} of its requests left no record of theirs.")
        for worker in self._workers:
            if worker.ended is not None and worker.ended.store_error is not None:
                raise StoreError(worker.ended.store_error)
        self._report_progress()
        ended = [worker.ended for worker in self._workers if worker.ended is not None]
        return DriveResult(
            interrupted=any(end.interrupted for end in ended) or bool(incidents),
            engine_error=self._engine_error,
            usage=ClientUsage.of_all([end.usage for end in ended if end.usage is not None]),
            incidents=tuple(incidents),
        )

    def _record_lost(self, worker: _Worker, failure: str) -> int:
        """A record for each request of a dead worker that it wrote none for."""
        shard = self._load.shard(worker.client, len(self._workers))
        lost = Completion(outcome=Outcome.INTERRUPTED, error=failure)
        parts = [(request, 0, True) for request in shard.warmup]
        parts += [(request, at, False) for request, at in zip(shard.requests, shard.offsets_ns, strict=True)]
        missing = [part for part in parts if (part[2], part[0].index) not in self._seen]
        for request, scheduled_ns, warmup in missing:
            counts = Counts(0)
            flight = Flight(request, scheduled_ns, clock=self._options.clock, counts=counts, warmup=warmup)
            self._keep(msgspec.structs.replace(flight.end(lost), client=worker.client), stored=False)
        return len(missing)

    def _read_records(self) -> None:
        for tail in self._tails:
            for record in tail.read():
                self._keep(record, stored=True)

    def _keep(self, record: RequestRecord, *, stored: bool) -> None:
        self._seen.add((record.warmup, record.index))
        if stored:
            self._folder.columns.append(record)
        else:
            self._folder.append(record)
        if self._watch is not None:
            self._watch(record)

    async def _watch_engine(self) -> None:
        while self._engine_error is None:
            await asyncio.sleep(self._options.liveness_interval_s)
            self._engine_error = await self._why_dead()
        self._stop_all()

    async def _why_dead(self) -> EngineError | None:
        lost = sum(worker.progress.lost_connections for worker in self._workers)
        if lost > self._lost_connections and isinstance(self._engine, Suspecting):
            self._engine.connection_lost()
        self._lost_connections = lost
        return await why_dead(self._engine)

    async def _watch_stop(self) -> None:
        if self._options.stop is not None:
            await self._options.stop.wait()
            self._stop_all()

    def _stop_all(self) -> None:
        for worker in self._workers:
            worker.stop()

    async def _report(self) -> None:
        """Progress and, for a watch alone, records while the run goes on: decoding them takes CPU from the clients."""
        loop = asyncio.get_running_loop()
        next_report_s = loop.time()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if self._watch is not None:
                self._read_records()
            if loop.time() >= next_report_s:
                next_report_s = loop.time() + self._options.progress_interval_s
                self._report_progress()

    def _report_progress(self) -> None:
        if self._options.on_progress is None:
            return
        counts = Counts(len(self._load.requests))
        for worker in self._workers:
            counts.issued += worker.progress.issued
            counts.completed += worker.progress.completed
            counts.failed += worker.progress.failed
            counts.tokens += worker.progress.tokens
        self._options.on_progress(counts)
