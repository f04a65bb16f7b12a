"""Samples the machine in a thread and the engine on the event loop, into a run's telemetry.jsonl.

A thread will do, since reading /proc and asking NVML gives the interpreter lock away: with 1,000 requests/s against the
null engine on two busy cores, lag p99 of three runs is 0.82, 0.64 and 2.21 ms without telemetry, and 0.75, 0.76 and
0.76 ms with a sample every 0.5 s.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from neobench.harness.cancelling import cancel_and_wait
from neobench.harness.engine import Engine
from neobench.harness.telemetry.bandwidth import BandwidthSampler
from neobench.harness.telemetry.cpu import CpuSampler
from neobench.harness.telemetry.engine import process_id_of, watch_levels
from neobench.harness.telemetry.gpu import GpuSampler
from neobench.harness.telemetry.sampler import Sampler, SamplerError
from neobench.results.telemetry import TelemetryLog

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
MIN_LAST_INTERVAL = 0.5
"""Of the interval. CPU times come in ticks of 10 ms, so that over a shorter rest of a run they say little."""


def samplers_for(engine: Engine) -> list[Sampler]:
    return [CpuSampler(process_id_of(engine)), GpuSampler(), BandwidthSampler()]


class TelemetryRecorder:
    """Silent until `start` gives the instant from which the run's schedule counts."""

    def __init__(self, log: TelemetryLog, samplers: Sequence[Sampler], *, interval_s: float) -> None:
        self._log = log
        self._samplers = list(samplers)
        self._interval_s = interval_s
        self._origin_ns = 0
        self._stopping = threading.Event()
        self.started = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self, origin_ns: int) -> None:
        """`origin_ns` by time.perf_counter_ns. Call it on the event loop."""
        self._origin_ns = origin_ns
        self.started.set()
        self._thread.start()

    def stop(self) -> None:
        """One last sample, if enough is left to sample. Blocks for it; a sampler that hangs is left behind.

        Safe without a `start`.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                self.note("telemetry", f"a sampler did not return within {JOIN_TIMEOUT_S:g} s")

    def append(self, values: Mapping[str, Any]) -> None:
        """A row with the present instant."""
        self._write({"at_ns": time.perf_counter_ns() - self._origin_ns, **values})

    def note(self, sampler: str, reason: str) -> None:
        """Why a sampler gives nothing, or nothing more."""
        logger.info("telemetry: %s: %s", sampler, reason)
        self._write({"sampler": sampler, "note": reason})

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._log.append(row)
        except OSError as error:
            # A full disk: what comes after would be in a line of its own again, so close before half a line grows.
            logger.warning("telemetry ends: %s", error)
            self._stopping.set()
            self._log.close()

    def _run(self) -> None:
        for sampler in list(self._samplers):
            self._guarded(sampler, opening=True)
        sampled_s = due_s = time.monotonic()
        num_samples = 0
        while not self._stopping.is_set():
            due_s = max(due_s + self._interval_s, time.monotonic())
            self._stopping.wait(due_s - time.monotonic())
            is_short = time.monotonic() - sampled_s < MIN_LAST_INTERVAL * self._interval_s
            if self._stopping.is_set() and is_short and num_samples:
                break
            sampled_s = time.monotonic()
            num_samples += 1
            self._sample()
        for sampler in self._samplers:
            sampler.close()

    def _sample(self) -> None:
        values: dict[str, Any] = {}
        for sampler in list(self._samplers):
            values |= self._guarded(sampler)
        if values:
            self.append(values)

    def _guarded(self, sampler: Sampler, *, opening: bool = False) -> Mapping[str, Any]:
        """What it samples; a sampler that fails is never asked again."""
        try:
            if opening:
                sampler.open()
                return {}
            return sampler.sample()
        except SamplerError as error:
            self.note(sampler.name, str(error))
        except Exception as error:
            self.note(sampler.name, f"{type(error).__name__}: {error}")
        self._samplers.remove(sampler)
        with suppress(Exception):
            sampler.close()
        return {}


@asynccontextmanager
async def record_telemetry(folder: Path, engine: Engine, interval_s: float) -> AsyncIterator[TelemetryRecorder | None]:
    """A recorder for one run, to be started when its schedule does; None with `interval_s` 0, or without a file."""
    if not interval_s:
        yield None
        return
    try:
        log = TelemetryLog(folder)
    except OSError as error:
        logger.warning("no telemetry: %s", error)
        yield None
        return
    recorder = TelemetryRecorder(log, samplers_for(engine), interval_s=interval_s)
    watching = asyncio.create_task(_watch_engine(engine, recorder, interval_s))
    try:
        yield recorder
    finally:
        await cancel_and_wait(watching)
        await asyncio.to_thread(recorder.stop)
        log.close()


async def _watch_engine(engine: Engine, recorder: TelemetryRecorder, interval_s: float) -> None:
    await recorder.started.wait()
    try:
        await watch_levels(engine, recorder.append, interval_s)
    except Exception as error:
        recorder.note("engine", f"{type(error).__name__}: {error}")
    else:
        recorder.note("engine", "it tells no queue lengths and no KV use")
