"""Points of the paper's figures: each is a modelled run like those of `neobench run`, kept by content."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from neobench.cli.arrivals import load_slug
from neobench.cli.modelled import run_in_its_time
from neobench.cli.points import finished_run, new_run, point_hash, write_whole
from neobench.cli.run import session_of
from neobench.cli.session import Session, StoppedError, draw_prompts, measure_rate, slug, started
from neobench.cli.sweep_points import run_options

if TYPE_CHECKING:
    from neobench.harness.runner import RunContext

RESULT_FILE = "neo-paper.json"
NEVER_S = 1e9
"""As a timeout: the authors' client has none."""


@dataclass(frozen=True)
class Point:
    """Options of `neobench run`, without their hyphens in front, and their values; equal points are run once."""

    options: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Point:
        common = {"num-warmup": 0, "timeout": NEVER_S}
        return cls(tuple(sorted((name, str(value)) for name, value in {**common, **options}.items())))

    def __str__(self) -> str:
        options = dict(self.options)
        load = f"{options['rate']} req/s" if "rate" in options else "all at once"
        return f"{options['engine']} on {options['hardware']}, {options['workload']}, {load}"


class PointResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """neo-paper.json, written last: the paper's metrics of one run."""

    run: str
    """Its folder."""
    valid: bool
    completed: int
    mean_per_token_latency_s: float | None
    """Over the requests but the first quarter to arrive."""
    per_token_latency_quantiles_s: list[float]
    """At 0, 1, ... 100 %."""
    window_throughput: float | None
    """Requests per second between 30 and 70 % of the completions."""
    whole_throughput: float
    """Requests per second of the whole run, its filling and draining included: no window can flatter it."""


def model_points(points: Collection[Point], folder: Path, processes: int) -> Iterator[tuple[Point, PointResult]]:
    """As they end; what an earlier command left in `folder` comes at once. Raises click.ClickException.

    Ctrl-C ends the runs in flight, which then do not count, and drops the rest.
    """
    unique = list(dict.fromkeys(points))
    if processes == 1:
        for point in unique:
            yield point, model_point(point, folder)
        return
    # A process of its own for each run's event loop; spawned, because the parent may have threads.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[PointResult], Point] = {pool.submit(model_point, point, folder): point for point in unique}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def model_point(point: Point, folder: Path) -> PointResult:
    """Raises click.ClickException for what cannot be run, and KeyboardInterrupt where the user ended it."""
    from neobench.harness.engine import EngineError
    from neobench.harness.runner import RunContext
    from neobench.results.store import StoreError

    context = RunContext.capture(["neobench", *sys.argv[1:]])
    with run_options(dict(point.options)) as options:
        session = session_of(options, folder, quiet=True)
    (engine,), (rate,) = session.engines, session.rates
    name = f"{slug(engine)}-{slug(options['hardware'])}-{slug(session.workload)}-{load_slug(session.arrivals[rate])}"
    stem = folder / "points" / f"{name}-{point_hash(session, engine, rate, context)}"
    known = finished_run(stem, RESULT_FILE)
    if known is not None:
        return msgspec.json.decode((known / RESULT_FILE).read_bytes(), type=PointResult)
    try:
        return run_in_its_time(_measured(session, new_run(stem), context), session.engine_options)
    except (EngineError, StoreError) as error:
        raise click.ClickException(f"{point}: {error}") from None
    except StoppedError:
        raise KeyboardInterrupt from None


async def _measured(session: Session, path: Path, context: RunContext) -> PointResult:
    from neobench.harness.runner import stop_on_signals

    (engine_name,), (rate,) = session.engines, session.rates
    stop = asyncio.Event()
    with stop_on_signals(stop):
        async with started(session, engine_name, stop) as engine:
            prompts = draw_prompts(session, rate)
            await measure_rate(session, engine_name, rate, engine, path, prompts, context=context, stop=stop)
    if stop.is_set():
        raise StoppedError
    result = paper_metrics(path)
    write_whole(path / RESULT_FILE, msgspec.json.format(msgspec.json.encode(result)))
    return result


def paper_metrics(path: Path) -> PointResult:
    """Of a run folder. Raises StoreError."""
    import numpy as np

    from neobench.results.neo_paper import per_token_latencies_s, window_throughput
    from neobench.results.store import load_run

    run = load_run(path)
    latencies_s = per_token_latencies_s(run.columns)
    return PointResult(
        run=path.name,
        valid=run.summary["validity"]["valid"],
        completed=run.summary["completed"],
        mean_per_token_latency_s=float(latencies_s.mean()) if len(latencies_s) else None,
        per_token_latency_quantiles_s=np.percentile(latencies_s, range(101)).tolist() if len(latencies_s) else [],
        window_throughput=window_throughput(run.columns),
        whole_throughput=run.summary["request_throughput"] or 0.0,
    )
