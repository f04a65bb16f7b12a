"""One run from end to end: schedule, driver, store, metrics. The engine is started and stopped by the caller."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from neobench.harness.arrivals import draw_offsets_ns
from neobench.harness.driver import DriveOptions, drive
from neobench.harness.engine import Engine
from neobench.harness.fingerprint import take_fingerprint
from neobench.harness.request import PromptRequest
from neobench.harness.spec import RunSpec, spec_hash
from neobench.results.store import Provenance, ProvenanceKind, RunFolder, RunInfo, StoreError, build_summary

logger = logging.getLogger(__name__)

SYNC_INTERVAL_S = 5.0
STATS_TIMEOUT_S = 10.0

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
) -> dict[str, Any]:
    """Drive `requests` through an engine that is started, into a new run folder at `path`; returns its summary.json.

    An engine serves one run after another. `workload` is what is known of the requests, for run.json.
    A stopped run returns its (invalid) summary. Raises EngineError when the engine died, after everything measured
    has been stored with a summary, and StoreError when the folder cannot be written.
    """
    if (len(requests), len(warmup)) != (spec.num_requests, spec.num_warmup):
        raise ValueError(
            f"the spec asks for {spec.num_requests} requests and {spec.num_warmup} of warm-up, "
            f"given are {len(requests)} and {len(warmup)}"
        )
    info = RunInfo(
        spec=msgspec.to_builtins(spec),
        spec_hash=spec_hash(spec),
        num_requests=spec.num_requests,
        request_rate=spec.arrival.rate,
        provenance=context.provenance(),
        fingerprint=context.fingerprint,
        engine=dict(await engine.describe()),
        workload=dict(workload or {}),
    )
    folder = RunFolder.create(path)
    try:
        folder.write_run(info)
        return await _measure(spec, requests, engine, folder, info=info, warmup=warmup, options=options)
    finally:
        folder.close()


async def _measure(
    spec: RunSpec,
    requests: Sequence[PromptRequest],
    engine: Engine,
    folder: RunFolder,
    *,
    info: RunInfo,
    warmup: Sequence[PromptRequest],
    options: DriveOptions | None,
) -> dict[str, Any]:
    offsets_ns = draw_offsets_ns(spec.arrival, spec.num_requests, spec.seeds().arrivals)
    counters = _EngineCounters(engine)
    async with _synced(folder):
        result = await drive(
            requests,
            offsets_ns,
            engine,
            folder.append,
            timeout_s=spec.timeout_s,
            concurrency=spec.arrival.concurrency,
            closed_loop=spec.arrival.kind == "closed",
            warmup=warmup,
            on_schedule_start=counters.start,
            options=options,
        )
    incidents = [] if result.engine_error is None else [f"The engine died: {result.engine_error}"]
    summary = build_summary(
        info,
        folder.columns,
        engine_stats=await counters.difference(),
        incidents=[*incidents, *result.incidents],
        client=None if result.usage is None else result.usage.facts(),
    )
    folder.finish(summary)
    if result.engine_error is not None:
        raise result.engine_error
    return summary


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


@asynccontextmanager
async def _synced(folder: RunFolder) -> AsyncIterator[None]:
    """fsync now and then, in a thread: it may take long, and the loop must not wait for a disk."""

    async def sync_forever() -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            # The folder remembers a failure and raises it at the next record, which ends the run.
            with suppress(StoreError):
                await asyncio.to_thread(folder.sync)

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
