"""What `neobench run` measures: every engine at every rate, each into a run folder of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neobench.cli.engine_config import engine_config
from neobench.neo_engine.config import EngineConfig

if TYPE_CHECKING:
    from neobench.harness.request import PromptRequest
    from neobench.harness.runner import RunContext
    from neobench.harness.spec import ArrivalSpec, RunSpec

_T = TypeVar("_T")


class _StoppedError(Exception):
    """The user asked for the end while an engine was starting."""


@dataclass
class Session:
    """What one command is about to measure, and what came of it: run folders, complete or not, and errors."""

    engines: tuple[str, ...]
    rates: tuple[float, ...]
    arrivals: Mapping[float, ArrivalSpec]
    """By rate."""
    workload: str
    workload_options: dict[str, Any]
    model: str
    engine_options: dict[str, Any]
    num_requests: int
    num_warmup: int
    seed: int
    timeout_s: float
    folder: Path
    quiet: bool
    percentiles: tuple[float, ...] = ()
    goodput_ms: dict[str, float] = field(default_factory=dict)
    run_paths: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Prompts:
    """Measured and warm-up requests of one rate, and what the workload says of them."""

    requests: list[PromptRequest]
    warmup: list[PromptRequest]
    facts: dict[str, Any]


def draw_prompts(session: Session, rate: float) -> Prompts:
    """The same for every engine; the same lengths at every rate, but other tokens, lest a prefix cache knows them."""
    import numpy as np

    from neobench.workloads import registry
    from neobench.workloads.prompts import build_requests
    from neobench.workloads.workload import WorkloadError

    settings = {"model": session.model, **session.engine_options}
    configs = [engine_config(settings, policy=policy_of(name)) for name in session.engines]
    seeds = run_spec(session, session.engines[0], rate).seeds()
    try:
        requests, facts = build_requests(
            registry.create(session.workload, session.workload_options),
            session.num_requests + session.num_warmup,
            length_rng=np.random.default_rng(seeds.lengths),
            prompt_rng=np.random.default_rng([seeds.prompts, round(rate * 1e6)]),
            vocab_size=configs[0].shape.vocab_size,
            max_model_tokens=min(config.max_request_tokens for config in configs),
        )
    except WorkloadError as error:
        raise click.UsageError(str(error)) from None
    return Prompts(requests[: session.num_requests], requests[session.num_requests :], facts)


def policy_of(engine: str) -> str:
    """The default one for engines that are not neobench's own."""
    from neobench.engines.registry import ENGINES

    return str(ENGINES[engine].settings.get("policy", EngineConfig.policy))


def run_spec(session: Session, engine: str, rate: float) -> RunSpec:
    from neobench.harness.spec import EngineSpec, RunSpec, WorkloadSpec

    return RunSpec(
        engine=EngineSpec(name=engine, options={} if engine == "null" else session.engine_options),
        workload=WorkloadSpec(name=session.workload, options=session.workload_options),
        arrival=session.arrivals[rate],
        model=session.model,
        num_requests=session.num_requests,
        num_warmup=session.num_warmup,
        seed=session.seed,
        timeout_s=session.timeout_s,
        percentiles=session.percentiles,
        goodput_ms=session.goodput_ms,
    )


def _say(session: Session, message: str) -> None:
    if not session.quiet:
        click.echo(message, err=True)


async def measure_all(session: Session) -> None:
    """Every engine at every rate; an engine that fails leaves the others alone."""
    from neobench.harness.engine import EngineError
    from neobench.harness.runner import RunContext, stop_on_signals
    from neobench.results.store import StoreError

    prompts = {rate: draw_prompts(session, rate) for rate in session.rates}
    scaling = prompts[session.rates[0]].facts["scaling"]
    if scaling:
        _say(session, f"Note: {scaling['sentence']}")
    restricted = session.engine_options.keys() & {"emulate", "sms"}
    context = RunContext.capture(["neobench", *sys.argv[1:]], "emulated" if restricted else "measured")
    stop = asyncio.Event()
    with stop_on_signals(stop):
        for name in session.engines:
            if stop.is_set():
                break
            try:
                await _measure_engine(session, name, prompts, context, stop)
            except _StoppedError:
                break
            except (EngineError, StoreError) as error:
                session.errors.append(f"{name}: {error}")
                click.echo(f"neobench: {name}: {error}", err=True)
    if stop.is_set():
        session.interrupted = True


async def _measure_engine(
    session: Session, name: str, prompts: Mapping[float, Prompts], context: RunContext, stop: asyncio.Event
) -> None:
    from neobench.engines import registry
    from neobench.engines.launch import Launch
    from neobench.harness.driver import DriveOptions
    from neobench.harness.progress import progress_display
    from neobench.harness.runner import run_one

    options = {} if name == "null" else {**session.engine_options, "seed": session.seed}
    log_path = session.folder / f"{name}.log"
    engine = registry.create(
        name,
        Launch(model=session.model, options=options, log_path=log_path, progress=lambda line: _say(session, line)),
    )
    _say(session, f"Starting {name} ...")
    try:
        await _unless_stopped(engine.start(), stop)
        for rate in session.rates:
            if stop.is_set():
                return
            path = session.folder / f"{name}-rate-{rate:g}"
            label = f"{name} at {rate:g} req/s"
            expected_s = session.arrivals[rate].expected_span_s(session.num_requests)
            with progress_display(label, expected_s=expected_s, quiet=session.quiet) as show:
                drive_options = DriveOptions(stop=stop, on_progress=show)
                session.run_paths.append(path)
                await run_one(
                    run_spec(session, name, rate),
                    prompts[rate].requests,
                    engine,
                    path,
                    context=context,
                    warmup=prompts[rate].warmup,
                    workload=prompts[rate].facts,
                    options=drive_options,
                )
    finally:
        await engine.stop()


async def _unless_stopped(work: Coroutine[Any, Any, _T], stop: asyncio.Event) -> _T:
    """The result of `work`; cancels it and raises _StoppedError when the user asks for the end first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise _StoppedError
    return task.result()
