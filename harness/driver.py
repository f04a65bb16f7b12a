"""The open-loop driver: issues a schedule drawn up front at absolute deadlines, whatever the engine does.

It is the only reader of the clock. Every request leaves exactly one record, also one that was never issued.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from neobench.harness.cancelling import cancel_and_wait
from neobench.harness.clock import Clock, MonotonicClock
from neobench.harness.engine import Completion, EngineError, TokenSink
from neobench.harness.flight import Counts, Flight
from neobench.harness.liveness import why_dead
from neobench.harness.request import PromptRequest
from neobench.harness.sessions import Sessions, never_due
from neobench.harness.usage import ClientUsage, UsageMeter
from neobench.results.record import Outcome, RequestRecord

logger = logging.getLogger(__name__)

START_LEAD_NS = 10_000_000
"""Between the decision to start and the start of the schedule, so that the first arrival is not late already."""
ABORT_GRACE_S = 5.0
"""How long an engine may take to let go of cancelled requests before the run ends without waiting for them."""


ScheduleStart = Callable[[], Awaitable[int | None]]
"""Awaited when the warm-up has ended. It may say when the schedule starts, by the clock; None: at once."""


class Target(Protocol):
    """What is driven: an Engine, or in a process of its own a client of one."""

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion: ...

    async def check_alive(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DriveOptions:
    """How the caller watches and stops a drive; nothing here changes what is measured."""

    clock: Clock = field(default_factory=MonotonicClock)
    stop: asyncio.Event | None = None
    """Set from outside (Ctrl-C): issuing ends, requests in flight are aborted and recorded as interrupted."""
    on_progress: Callable[[Counts], None] | None = None
    progress_interval_s: float = 0.5
    liveness_interval_s: float = 1.0


@dataclass(frozen=True)
class DriveResult:
    interrupted: bool
    """Stopped before every request had run to its end."""
    engine_error: EngineError | None
    """Set when the engine died; every record was still delivered."""
    usage: ClientUsage | None = None
    """None when the schedule never started."""
    incidents: tuple[str, ...] = ()
    """Sentences about what went wrong in the client itself."""


async def drive(
    requests: Sequence[PromptRequest],
    offsets_ns: npt.NDArray[np.int64],
    engine: Target,
    on_record: Callable[[RequestRecord], None],
    *,
    timeout_s: float,
    concurrency: int | None = None,
    closed_loop: bool = False,
    warmup: Sequence[PromptRequest] = (),
    on_schedule_start: ScheduleStart | None = None,
    options: DriveOptions | None = None,
) -> DriveResult:
    """Send `warmup` at once and wait for it, then `requests` at `offsets_ns` [num_requests] after the schedule starts.

    `on_schedule_start` is awaited in between. `timeout_s` runs from the moment a request is issued. With `concurrency`,
    a measured request that would be one too many in flight waits here, in its turn, and its record says until when.
    In a `closed_loop` such a request was not due earlier: it counts as scheduled when its turn comes.
    Of sessions the first turns are sent at their offsets, a later one `think_ns` after the end of the turn before; each
    session takes one place of `concurrency` from its first turn to the end of its last, its thinking included.
    `on_record` is called as each request ends. If it raises (a full disk), the run stops and the error is raised here.
    """
    if len(requests) != len(offsets_ns):
        raise ValueError(f"{len(requests)} requests but {len(offsets_ns)} arrivals")
    driver = _Driver(
        engine,
        on_record,
        options or DriveOptions(),
        timeout_s=timeout_s,
        concurrency=concurrency,
        closed_loop=closed_loop,
        num_measured=len(requests),
        sessions=Sessions(requests),
    )
    driver.plan(warmup, [0] * len(warmup), warmup=True)
    driver.plan(requests, offsets_ns.tolist(), warmup=False)
    with _garbage_collector_at_rest():
        return await driver.run(on_schedule_start)


class _Driver:
    def __init__(
        self,
        engine: Target,
        on_record: Callable[[RequestRecord], None],
        options: DriveOptions,
        *,
        timeout_s: float,
        concurrency: int | None,
        closed_loop: bool,
        num_measured: int,
        sessions: Sessions,
    ) -> None:
        self._engine = engine
        self._on_record = on_record
        self._options = options
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._closed_loop = closed_loop
        self._sessions = sessions if len(sessions) else None
        self._meter: UsageMeter | None = None
        self._usage: ClientUsage | None = None
        self._clock = options.clock
        self._counts = Counts(num_measured)
        self._backlog: deque[Flight] = deque()
        self._in_flight: set[Flight] = set()
        self._landings_ns: deque[int] = deque()
        """When slots of a limit on concurrency became free again; each is taken by one request."""
        self._landed = asyncio.Event()
        self._halt = asyncio.Event()
        self._suspicion = asyncio.Event()
        self._engine_error: EngineError | None = None
        self._record_error: Exception | None = None

    def plan(self, requests: Sequence[PromptRequest], offsets_ns: Sequence[int], *, warmup: bool) -> None:
        for request, offset_ns in zip(requests, offsets_ns, strict=True):
            if request.turn:
                continue
            self._backlog.append(Flight(request, offset_ns, clock=self._clock, counts=self._counts, warmup=warmup))

    async def run(self, on_schedule_start: ScheduleStart | None) -> DriveResult:
        work = asyncio.create_task(self._work(on_schedule_start))
        halted = asyncio.create_task(self._halt.wait())
        helpers = [asyncio.create_task(helper) for helper in (self._watch_engine(), self._watch_stop(), self._report())]
        try:
            await asyncio.wait({work, halted}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                await self._check_engine()
        finally:
            interrupted = bool(self._backlog or self._in_flight)
            if self._meter is not None:
                self._usage = self._meter.read()
            self._halt.set()
            await cancel_and_wait(work, halted, *helpers)
            await self._settle()
            self._show_progress()
        if self._record_error is not None:
            raise self._record_error
        return DriveResult(interrupted, self._engine_error, self._usage)

    async def _work(self, on_schedule_start: ScheduleStart | None) -> None:
        await self._fly(self._clock.now_ns() + START_LEAD_NS, warmup=True)
        origin_ns = None if on_schedule_start is None else await on_schedule_start()
        self._meter = UsageMeter()
        await self._fly(self._clock.now_ns() + START_LEAD_NS if origin_ns is None else origin_ns, warmup=False)

    async def _fly(self, origin_ns: int, *, warmup: bool) -> None:
        """Issue one part of the backlog on its schedule and wait until all of it has ended."""
        free_slots = self._concurrency if not warmup else None
        while self._backlog and self._backlog[0].warmup == warmup:
            deadline_ns = origin_ns + self._backlog[0].scheduled_ns
            # A closed loop yields when its slots are taken; a pass of the event loop for each would make them wait.
            if not self._closed_loop or warmup or self._clock.now_ns() < deadline_ns:
                await self._clock.sleep_until_ns(deadline_ns)
            while self._concurrency is not None and not warmup and len(self._in_flight) >= self._concurrency:
                await self._one_landed()
            flight = self._backlog.popleft()
            flight.origin_ns = origin_ns
            if free_slots:
                free_slots -= 1
            elif free_slots == 0:
                self._hold_back(flight, released_ns=self._landings_ns.popleft())
            self._in_flight.add(flight)
            flight.task = asyncio.create_task(self._serve(flight))
        while self._in_flight:
            await self._one_landed()

    def _hold_back(self, flight: Flight, *, released_ns: int) -> None:
        """Its slot was free from `released_ns` on, whenever this loop came to see that."""
        if released_ns <= flight.scheduled_ns:
            return
        flight.ready_ns = released_ns
        if self._closed_loop:
            flight.scheduled_ns = released_ns

    async def _one_landed(self) -> None:
        self._landed.clear()
        await self._landed.wait()

    async def _serve(self, flight: Flight) -> None:
        timeout = asyncio.get_running_loop().call_later(self._timeout_s, flight.expire)
        flight.issue()
        try:
            completion = await self._engine.generate(flight.request, flight)
        except asyncio.CancelledError:
            completion = _ABORTED_BY_ADAPTER
        except (EngineError, OSError) as lost:
            completion = _failure(Outcome.CONNECTION_ERROR, lost)
        except Exception as unforeseen:
            logger.debug("request %d raised", flight.request.index, exc_info=True)
            completion = _failure(Outcome.PROTOCOL_ERROR, unforeseen)
        finally:
            timeout.cancel()
        if flight.timed_out:
            error = f"not ended {self._timeout_s:g} s after it was issued"
            completion = Completion(outcome=Outcome.TIMEOUT, error=error)
        elif self._halt.is_set() and completion.outcome is not Outcome.OK:
            # Whatever shape the adapter gives it, after the stop a failure tells of the stop and not of the engine.
            completion = _INTERRUPTED
        if completion.outcome is Outcome.CONNECTION_ERROR:
            self._suspicion.set()
        self._end(flight, completion)

    def _end(self, flight: Flight, completion: Completion) -> None:
        if flight.recorded:
            return
        self._in_flight.discard(flight)
        self._landed.set()
        record = flight.end(completion)
        rest = [] if self._sessions is None else self._sessions.after(flight.request)
        goes_on = bool(rest) and record.outcome is Outcome.OK and not self._halt.is_set()
        if goes_on:
            self._follow(flight, record, rest[0])
        elif self._concurrency is not None and not flight.warmup and record.ended_ns is not None:
            self._landings_ns.append(record.ended_ns)
        self._keep(record)
        if not goes_on:
            self._give_up(rest, record)

    def _follow(self, flight: Flight, record: RequestRecord, request: PromptRequest) -> None:
        """The next turn of a session takes its place among those in flight at once, and there thinks until due."""
        due_ns = (record.ended_ns or 0) + request.think_ns
        follower = Flight(request, due_ns, clock=self._clock, counts=self._counts)
        follower.origin_ns = flight.origin_ns
        self._in_flight.add(follower)
        follower.task = asyncio.create_task(self._think(follower))

    async def _think(self, flight: Flight) -> None:
        await self._clock.sleep_until_ns(flight.origin_ns + flight.scheduled_ns)
        await self._serve(flight)

    def _give_up(self, turns: Sequence[PromptRequest], ended: RequestRecord) -> None:
        """Records of turns that are never due, because the one before them failed or the run was stopped."""
        was_stopped = self._halt.is_set() or ended.outcome is Outcome.INTERRUPTED
        for request in turns:
            since_ns = ended.scheduled_ns if ended.ended_ns is None else ended.ended_ns
            flight = Flight(request, since_ns, clock=self._clock, counts=self._counts)
            self._keep(flight.end(_NEVER_ISSUED if was_stopped else never_due(ended)))

    def _keep(self, record: RequestRecord) -> None:
        if self._record_error is not None:
            return
        try:
            self._on_record(record)
        except Exception as error:
            self._record_error = error
            self._halt.set()

    async def _settle(self) -> None:
        """Record everything that has not run to its end."""
        tasks = [flight.task for flight in self._in_flight if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=ABORT_GRACE_S)
            if stubborn:
                logger.warning("%d requests ignored their cancellation", len(stubborn))
        # What is left: stubborn tasks, and tasks cancelled before their first step, which never ran at all.
        for flight in sorted(self._in_flight, key=lambda flight: flight.scheduled_ns):
            self._end(flight, _NEVER_ISSUED if flight.issued_ns is None else _INTERRUPTED)
        while self._backlog:
            self._end(self._backlog.popleft(), _NEVER_ISSUED)

    async def _watch_engine(self) -> None:
        # Cancelling is not enough to end it: wait_for before Python 3.12 forgets a cancellation that comes at the same
        # time as what it waits for.
        while not self._halt.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._suspicion.wait(), self._options.liveness_interval_s)
            self._suspicion.clear()
            await self._check_engine()

    async def _check_engine(self) -> None:
        self._engine_error = await why_dead(self._engine)
        if self._engine_error is not None:
            self._halt.set()

    async def _watch_stop(self) -> None:
        if self._options.stop is not None:
            await self._options.stop.wait()
            self._halt.set()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._options.progress_interval_s)
            self._show_progress()

    def _show_progress(self) -> None:
        if self._options.on_progress is not None:
            self._options.on_progress(self._counts)


_ABORTED_BY_ADAPTER = Completion(outcome=Outcome.PROTOCOL_ERROR, error="the engine adapter cancelled the request")
_INTERRUPTED = Completion(outcome=Outcome.INTERRUPTED, error="the run was stopped while the request was in flight")
_NEVER_ISSUED = Completion(outcome=Outcome.INTERRUPTED, error="the run was stopped before the request was issued")


def _failure(outcome: Outcome, error: Exception) -> Completion:
    return Completion(outcome=outcome, error=f"{type(error).__name__}: {error}")


@contextmanager
def _garbage_collector_at_rest() -> Iterator[None]:
    """None inside the window: with torch and 10,000 prompts of 400 tokens in memory a full one takes 118 ms."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
