"""What the load generator can do on this machine, found with the very driver, store and rules that runs use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from neobench.harness.driver import DriveOptions
from neobench.harness.engine import Engine
from neobench.harness.request import PromptRequest
from neobench.harness.runner import RunContext, run_one
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, WorkloadSpec
from neobench.results.validity import client_limits, judge

PROMPT_TOKENS = 32
NUM_WARMUP = 32
TIMEOUT_S = 60.0
CEILING_CONCURRENCY = 64
CEILING_TOKENS = 128
"""Output tokens of the streams that find the ceiling of tokens per second."""
LADDER = (100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5)
"""Requests per second."""
PROBE_REQUESTS = 2_000
"""Of a closed loop, to find how many it sends in the seconds that were asked for."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load to try: Poisson arrivals at `rate`, or a closed loop of `concurrency` where there is no rate."""

    rate: float | None = None
    concurrency: int | None = None
    tokens: int
    """Output tokens of each request."""
    num_requests: int
    client_processes: int = 1
    is_ceiling: bool = False
    """Meant to keep the client busy all the time: what it then does late is found and not held against it."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one load."""

    offered: float | None
    """Requests per second, as the schedule had them; of a closed loop as slots got free."""
    achieved: float | None
    achieved_ratio: float | None
    lag_p50_ms: float | None
    lag_p99_ms: float | None
    requests_per_s: float | None
    tokens_per_s: float | None
    cpu_percent: float | None
    """Of the client; 100 is one core."""
    loop_busy_share: float | None
    peak_rss_bytes: int | None
    """Of the client, since it began: where it is this process, of the loads before too."""
    bytes_per_request: float | None = None
    """By which the peak rose for each request more than a short run of the same load had; None where it did not."""
    valid: bool
    reasons: list[str]
    load: Load


async def measure(
    engine: Engine, load: Load, path: Path, *, context: RunContext, options: DriveOptions | None = None
) -> Point:
    """One run of `load` into a new folder at `path`, against an engine that is started. Raises as run_one does."""
    closed = load.rate is None
    spec = RunSpec(
        engine=EngineSpec(name=engine.name),
        workload=WorkloadSpec(name="selftest"),
        arrival=ArrivalSpec(kind="closed" if closed else "poisson", rate=load.rate, concurrency=load.concurrency),
        model=engine.name,
        num_requests=load.num_requests,
        num_warmup=NUM_WARMUP,
        timeout_s=TIMEOUT_S,
        client_processes=load.client_processes,
    )
    requests = _requests(load.num_requests + NUM_WARMUP, load.tokens)
    summary = await run_one(
        spec,
        requests[: load.num_requests],
        engine,
        path,
        context=context,
        warmup=requests[load.num_requests :],
        options=options,
    )
    return _point(load, summary)


def _requests(count: int, tokens: int) -> list[PromptRequest]:
    tail = list(range(PROMPT_TOKENS - 1))
    return [PromptRequest.of([index, *tail], index=index, output_tokens=tokens) for index in range(count)]


def _point(load: Load, summary: Mapping[str, Any]) -> Point:
    offered, achieved = summary["offered_request_rate"], summary["achieved_request_rate"]
    excused = _excused(load, summary)
    reasons = [reason for reason in summary["validity"]["reasons"] if reason not in excused]
    return Point(
        offered=offered,
        achieved=achieved,
        achieved_ratio=achieved / offered if offered and achieved else None,
        lag_p50_ms=summary["lag_p50_ms"],
        lag_p99_ms=summary["lag_p99_ms"],
        requests_per_s=summary["request_throughput"],
        tokens_per_s=summary["output_throughput"],
        cpu_percent=summary["client_cpu_percent"],
        loop_busy_share=summary["client_loop_busy_share"],
        peak_rss_bytes=summary["client_peak_rss_bytes"],
        valid=not reasons,
        reasons=reasons,
        load=load,
    )


def _excused(load: Load, summary: Mapping[str, Any]) -> set[str]:
    """Reasons that tell of what such a load looks for: the ceiling of a client is where it is saturated."""
    if load.rate is not None:
        return set()
    unsaturated = judge({**summary, "client_loop_busy_share": None})["reasons"]
    saturation = set(judge(summary)["reasons"]) - set(unsaturated)
    return saturation | set(client_limits(summary)) if load.is_ceiling else saturation


class Selftest:
    """Several loads against one engine; every run gets a folder of its own below `folder`."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        context: RunContext,
        client_processes: int = 1,
        options: DriveOptions | None = None,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._context = context
        self._client_processes = client_processes
        self._options = options
        self._num_runs = 0

    async def at_rate(self, rate: float, *, tokens: int, seconds: float, concurrency: int | None = None) -> Point:
        num_requests = max(self._client_processes, round(rate * seconds))
        return await self._measure(rate=rate, concurrency=concurrency, tokens=tokens, num_requests=num_requests)

    async def ceiling(self, *, tokens: int, seconds: float) -> Point:
        """A closed loop that keeps the client busy all the time."""
        return await self.closed_loop(CEILING_CONCURRENCY, tokens=tokens, seconds=seconds, is_ceiling=True)

    async def closed_loop(self, concurrency: int, *, tokens: int, seconds: float, is_ceiling: bool = False) -> Point:
        """As many requests as a first, short run says that `seconds` take."""
        num_probes = max(concurrency, PROBE_REQUESTS // tokens, 2 * self._client_processes)
        load: dict[str, Any] = {"concurrency": concurrency, "tokens": tokens, "is_ceiling": is_ceiling}
        probe = await self._measure(**load, num_requests=num_probes)
        if not probe.requests_per_s:
            return probe
        num_requests = max(concurrency, round(probe.requests_per_s * seconds))
        point = await self._measure(**load, num_requests=num_requests)
        return msgspec.structs.replace(point, bytes_per_request=_bytes_per_request(probe, point))

    async def ladder(self, *, tokens: int, seconds: float) -> AsyncIterator[Point]:
        """Rates that rise until one is invalid, which is the last."""
        for rate in LADDER:
            point = await self.at_rate(rate, tokens=tokens, seconds=seconds)
            yield point
            if not point.valid:
                return

    async def _measure(self, **load: Any) -> Point:
        self._num_runs += 1
        return await measure(
            self._engine,
            Load(client_processes=self._client_processes, **load),
            self._folder / f"{self._num_runs:03d}",
            context=self._context,
            options=self._options,
        )


def _bytes_per_request(short: Point, long: Point) -> float | None:
    more = long.load.num_requests - short.load.num_requests
    if more <= 0 or short.peak_rss_bytes is None or long.peak_rss_bytes is None:
        return None
    rise_bytes = long.peak_rss_bytes - short.peak_rss_bytes
    return rise_bytes / more if rise_bytes > 0 else None
