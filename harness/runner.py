"""One run from end to end: schedule, driver, store, metrics. The engine is started and stopped by the caller."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from neobench.harness.arrivals import offsets_of_ns
from neobench.harness.descriptors import allow_connections
from neobench.harness.driver import START_LEAD_NS, DriveOptions, DriveResult, ScheduleStart, drive
from neobench.harness.engine import Engine
from neobench.harness.fingerprint import take_fingerprint
from neobench.harness.request import PromptRequest
from neobench.harness.spec import RunSpec, spec_hash
from neobench.harness.telemetry.recorder import record_telemetry
from neobench.harness.virtual_time import VirtualClock
from neobench.harness.workers import SharedLoad, check_shared, drive_in_processes
from neobench.results.record import RequestRecord
from neobench.results.store import Provenance, ProvenanceKind, RunFolder, RunInfo, StoreError, build_summary
from neobench.results.telemetry import machine_summary, read_telemetry

logger = logging.getLogger(__name__)

SYNC_INTERVAL_S = 5.0
STATS_TIMEOUT_S = 10.0
CLIENTS_LEAD = 10
"""So many times START_LEAD_NS, for several processes to learn when the schedule starts."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunContext:
    """What all runs of one command share."""

    command: list[str]
    fingerprint: dict[str, Any]
    kind: ProvenanceKind = "measured"

    @classmethod
    def capture(cls, command: Sequence[str], kind: ProvenanceKind = "measured") -> RunContext:
        return cls(list(command), take_fingerprint(), kind)

    def provenance(self) -> Provenance:
        source = self.fingerprint.get("source") or {}
        commit = source.get("commit")
        return Provenance(
            kind=self.kind,
            command=self.command,
            commit=f"{commit}-dirty" if commit and source.get("dirty") else commit,
            started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


async def run_one(
    spec: RunSpec,
    requests: Sequence[PromptRequest],
    engine: Engine,
    path: Path,
    *,
    context: RunContext,
    warmup: Sequence[PromptRequest] = (),
    workload: Mapping[str, Any] | None = None,
    options: DriveOptions | None = None,
    telemetry_interval_s: float = 0.0,
    watch: Callable[[RequestRecord], None] | None = None,
) -> dict[str, Any]:
    """Drive `requests` through an engine that is started, into a new run folder at `path`; returns its summary.json.

    An engine serves one run after another. `workload` is what is known of the requests, for run.json. `watch` is called
    with each record once it is stored; with `options.stop` it can end the run early. 0 as `telemetry_interval_s`
    samples nothing beside the run; its instants are perf_counter's, as the real clock's are.
    A stopped run returns its (invalid) summary. Raises EngineError when the engine died, after everything measured
    has been stored with a summary, and StoreError when the folder cannot be written.
    """
    if (len(requests), len(warmup)) != (spec.num_requests, spec.num_warmup):
        raise ValueError(
            f"the spec asks for {spec.num_requests} requests and {spec.num_warmup} of warm-up, "
            f"given are {len(requests)} and {len(warmup)}"
        )
    _allow_connections(spec)
    if spec.client_processes > 1:
        check_shared(engine, spec.client_processes)
    info = RunInfo(
        spec=msgspec.to_builtins(spec),
        spec_hash=spec_hash(spec),
        num_requests=spec.num_requests,
        request_rate=_asked_rate(spec, requests),
        provenance=context.provenance(),
        fingerprint=context.fingerprint,
        engine=dict(await engine.describe()),
        workload=dict(workload or {}),
    )
    folder = RunFolder.create(path, shared=spec.client_processes > 1)
    try:
        folder.write_run(info)
        return await _measure(
            spec,
            requests,
            engine,
            folder,
            info=info,
            warmup=warmup,
            options=options or DriveOptions(),
            telemetry_interval_s=telemetry_interval_s,
            watch=watch,
        )
    finally:
        folder.close()


def _allow_connections(spec: RunSpec) -> None:
    """In each client process, for it inherits the limit; how many an open loop needs depends on the engine."""
    in_flight = spec.arrival.concurrency or spec.num_requests
    share = -(-in_flight // spec.client_processes)
    known = spec.arrival.kind in ("closed", "all_at_once")
    allow_connections(share, needed=share if known else 0)


def _asked_rate(spec: RunSpec, requests: Sequence[PromptRequest]) -> float | None:
    """Requests per second; of a trace on average, from its first arrival to its last."""
    if spec.arrival.kind != "trace":
        return spec.arrival.rate
    span_ns = int(offsets_of_ns(spec.arrival, requests, seed=0)[-1])
    return (len(requests) - 1) * 1e9 / span_ns if span_ns else None


async def _measure(
    spec: RunSpec,
    requests: Sequence[PromptRequest],
    engine: Engine,
    folder: RunFolder,
    *,
    info: RunInfo,
    warmup: Sequence[PromptRequest],
    options: DriveOptions,
    telemetry_interval_s: float,
    watch: Callable[[RequestRecord], None] | None,
) -> dict[str, Any]:
    counters = _EngineCounters(engine)
    is_virtual = isinstance(options.clock, VirtualClock)
    # Rows of a virtual clock can be had again at any time; a power cut may have them.
    syncing = nullcontext() if is_virtual else synced(folder)
    async with syncing, record_telemetry(folder.path, engine, telemetry_interval_s) as recorder:

        async def start_schedule() -> int:
            await counters.start()
            origin_ns = options.clock.now_ns() + START_LEAD_NS * (1 if spec.client_processes == 1 else CLIENTS_LEAD)
            if recorder is not None:
                recorder.start(origin_ns)
            return origin_ns

        result = await _drive(spec, requests, engine, folder, warmup, start_schedule, options, watch)
    incidents = [] if result.engine_error is None else [f"The engine died: {result.engine_error}"]
    summary = build_summary(
        info,
        folder.columns,
        engine_stats=await counters.difference(),
        machine=machine_summary(read_telemetry(folder.path)),
        incidents=[*incidents, *result.incidents],
        # In virtual time the client is busy at every instant and never late.
        client=None if result.usage is None or is_virtual else result.usage.facts(),
    )
    folder.finish(summary)
    if result.engine_error is not None:
        raise result.engine_error
    return summary


async def _drive(
    spec: RunSpec,
    requests: Sequence[PromptRequest],
    engine: Engine,
    folder: RunFolder,
    warmup: Sequence[PromptRequest],
    start_schedule: ScheduleStart,
    options: DriveOptions,
    watch: Callable[[RequestRecord], None] | None,
) -> DriveResult:
    """From this process, or from several."""

    def keep(record: RequestRecord) -> None:
        folder.append(record)
        if watch is not None:
            watch(record)

    load = SharedLoad(
        requests=requests,
        offsets_ns=offsets_of_ns(spec.arrival, requests, spec.seeds().arrivals),
        warmup=warmup,
        timeout_s=spec.timeout_s,
        concurrency=spec.arrival.concurrency,
        closed_loop=spec.arrival.kind == "closed",
    )
    if spec.client_processes > 1:
        return await drive_in_processes(
            load, engine, folder, spec.client_processes, on_schedule_start=start_schedule, options=options, watch=watch
        )
    return await drive(
        requests,
        load.offsets_ns,
        engine,
        keep,
        timeout_s=load.timeout_s,
        concurrency=load.concurrency,
        closed_loop=load.closed_loop,
        warmup=warmup,
        on_schedule_start=start_schedule,
        options=options,
    )


class _EngineCounters:
    """The engine's counters over the schedule alone, warm-up left out; empty when the engine cannot tell."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before: Mapping[str, int | float] | None = None

    async def start(self) -> None:
        self._before = await self._read()

    async def difference(self) -> dict[str, int | float]:
        before, after = self._before, await self._read()
        if before is None or after is None:
            return {}
        return {
            name: value if isinstance(value, float) else value - before.get(name, 0) for name, value in after.items()
        }

    async def _read(self) -> Mapping[str, int | float] | None:
        try:
            return await asyncio.wait_for(self._engine.stats(), STATS_TIMEOUT_S)
        except Exception as error:
            logger.warning("the engine's counters cannot be read: %r", error)
            return None


class Syncable(Protocol):
    def sync(self) -> None: ...


@asynccontextmanager
async def synced(log: Syncable) -> AsyncIterator[None]:
    """fsync now and then, in a thread: it may take long, and the loop must not wait for a disk."""

    async def sync_forever() -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            # The log remembers a failure and raises it at the next record, which ends the run.
            with suppress(StoreError):
                await asyncio.to_thread(log.sync)

    syncing = asyncio.create_task(sync_forever())
    try:
        yield
    finally:
        syncing.cancel()
        with suppress(asyncio.CancelledError):
            await syncing


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`, so that the run ends and is stored; the second kills as usual."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def run_async(main: Coroutine[Any, Any, _T]) -> _T:
    """asyncio.run, on uvloop where it is installed: its timers lag a third as much (see clock.py)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
