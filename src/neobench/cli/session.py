"""What `neobench run` measures: every engine at every rate, each into a run folder of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neobench.cli.arrivals import expected_span_s, load_label, load_slug
from neobench.cli.engine_choice import model_of, options_of
from neobench.cli.engine_config import check_emulation
from neobench.cli.modelled import in_its_time, is_modelled
from neobench.cli.openai_options import stored, stored_command
from neobench.cli.workload_options import WORKLOAD_SEEDS, workload_notes

if TYPE_CHECKING:
    from neobench.engines.launch import PromptLimits
    from neobench.harness.engine import Engine
    from neobench.harness.request import PromptRequest
    from neobench.harness.runner import RunContext
    from neobench.harness.spec import ArrivalSpec, RunSpec, WorkloadSpec
    from neobench.results.record import RequestRecord
    from neobench.results.store import ProvenanceKind

RESTRICTING = frozenset({"emulate", "sms"})
"""Options that make a GPU stand for a smaller one."""

_T = TypeVar("_T")


class StoppedError(Exception):
    """The user asked for the end while an engine was starting."""


@dataclass
class Session:
    """What one command is about to measure, and what came of it: run folders, complete or not, and errors."""

    engines: tuple[str, ...]
    rates: tuple[float, ...]
    """Requests per second, or the speeds of a trace: what tells the runs of one engine apart."""
    arrivals: Mapping[float, ArrivalSpec]
    """By rate."""
    workload: str
    workload_options: dict[str, Any]
    model: str
    engine_options: dict[str, Any]
    """All that were given; each engine gets those that it takes."""
    num_requests: int
    num_warmup: int
    seed: int
    timeout_s: float
    telemetry_interval_s: float
    folder: Path
    quiet: bool
    percentiles: tuple[float, ...] = ()
    goodput_ms: dict[str, float] = field(default_factory=dict)
    workload_fields: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of WorkloadSpec: seeds, shared prefixes, sessions; None leaves the default."""
    client_processes: int = 1
    repeat: int = 0
    """Above 0: other lengths, prompts and arrivals, drawn from (seed, repeat), for the same engine."""
    run_paths: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Prompts:
    """Measured and warm-up requests of one rate, and what the workload says of them."""

    requests: list[PromptRequest]
    warmup: list[PromptRequest]
    facts: dict[str, Any]

    def for_engine(self, spec: RunSpec, *, text: bool) -> Prompts:
        """As this engine is to be sent them."""
        import msgspec

        from neobench.workloads.text import as_text

        def adapted(requests: list[PromptRequest]) -> list[PromptRequest]:
            exact = [msgspec.structs.replace(request, exact_output=spec.exact_output) for request in requests]
            return as_text(exact, vocab_size=self.facts["vocab_size"]) if text else exact

        if spec.exact_output and not text:
            return self
        return Prompts(adapted(self.requests), adapted(self.warmup), {**self.facts, "prompts_are_text": text})


def draw_prompts(session: Session, rate: float) -> Prompts:
    """The same for every engine; the same lengths at every rate, but other tokens, lest a prefix cache knows them."""
    from neobench.workloads import registry
    from neobench.workloads.prompts import SharedPrefixes, Streams, build_requests
    from neobench.workloads.workload import WorkloadError

    limits = _limits(session)
    spec = run_spec(session, session.engines[0], rate)
    groups, tokens = spec.workload.prefix_groups, spec.workload.prefix_tokens
    try:
        requests, facts = build_requests(
            registry.create(session.workload, session.workload_options),
            session.num_requests,
            num_warmup=session.num_warmup,
            streams=Streams.of(spec.seeds(), round(rate * 1e6)),
            replay=spec.arrival.kind == "trace",
            shared_prefixes=None if groups is None or tokens is None else SharedPrefixes(groups, tokens),
            sessions=spec.workload.sessions,
            vocab_size=min(limit.vocab_size for limit in limits),
            max_model_tokens=min(
                (limit.max_model_tokens for limit in limits if limit.max_model_tokens is not None), default=None
            ),
        )
    except WorkloadError as error:
        raise click.UsageError(str(error)) from None
    return Prompts(requests[: session.num_requests], requests[session.num_requests :], facts)


def _limits(session: Session) -> list[PromptLimits]:
    from neobench.engines.registry import prompt_limits
    from neobench.harness.engine import EngineError
    from neobench.neo_engine.config import ConfigError

    try:
        limits = [prompt_limits(name, session.model, engine_options(session, name)) for name in session.engines]
        if session.engine_options.keys() & RESTRICTING:
            check_emulation()
    except (EngineError, ConfigError) as error:
        raise click.UsageError(str(error)) from None
    return limits


def engine_options(session: Session, engine: str) -> dict[str, Any]:
    """Those that this engine takes. Its model has a place of its own, in the spec as in Launch."""
    return options_of(engine, session.engine_options)


def run_spec(session: Session, engine: str, rate: float) -> RunSpec:
    """Raises click.UsageError with the spec's own sentence for options that do not go together."""
    from neobench.harness.spec import EngineSpec, RunSpec, SpecError, WorkloadSpec

    options = engine_options(session, engine)
    workload = WorkloadSpec(name=session.workload, options=session.workload_options, **session.workload_fields)
    arrival = session.arrivals[rate]
    if session.repeat:
        workload, arrival = _of_repeat(session, workload, arrival)
    try:
        return RunSpec(
            engine=EngineSpec(name=engine, options=stored(options)),
            workload=workload,
            arrival=arrival,
            model=model_of(engine, options, session.model),
            num_requests=session.num_requests,
            num_warmup=session.num_warmup,
            seed=session.seed,
            timeout_s=session.timeout_s,
            exact_output=options.get("exact_output", True),
            percentiles=session.percentiles,
            goodput_ms=session.goodput_ms,
            client_processes=session.client_processes,
        )
    except SpecError as error:
        raise click.UsageError(str(error)) from None


def _of_repeat(session: Session, workload: WorkloadSpec, arrival: ArrivalSpec) -> tuple[WorkloadSpec, ArrivalSpec]:
    """With seeds drawn from those given, or else the session's, and the repeat."""
    import msgspec
    import numpy as np

    def seed(given: int | None, stream: int) -> int:
        base = session.seed if given is None else given
        return int(np.random.SeedSequence([base, session.repeat, stream]).generate_state(1, np.uint32)[0])

    seeds = {name: seed(getattr(workload, name), stream) for stream, name in enumerate(WORKLOAD_SEEDS, start=1)}
    return msgspec.structs.replace(workload, **seeds), msgspec.structs.replace(arrival, seed=seed(arrival.seed, 0))


def say(session: Session, message: str) -> None:
    if not session.quiet:
        click.echo(message, err=True)


async def measure_all(session: Session) -> None:
    """Every engine at every rate; an engine that fails leaves the others alone."""
    from neobench.harness.engine import EngineError
    from neobench.harness.runner import RunContext, stop_on_signals
    from neobench.results.store import StoreError

    prompts = {rate: draw_prompts(session, rate) for rate in session.rates}
    for note in workload_notes(prompts[session.rates[0]].facts):
        say(session, f"Note: {note}")
    context = RunContext.capture(["neobench", *stored_command(sys.argv[1:])])
    stop = asyncio.Event()
    with stop_on_signals(stop):
        for name in session.engines:
            if stop.is_set():
                break
            try:
                async with started(session, name, stop) as engine:
                    for rate in session.rates:
                        if stop.is_set():
                            break
                        path = session.folder / f"{slug(name)}-{load_slug(session.arrivals[rate])}"
                        session.run_paths.append(path)
                        await measure_rate(session, name, rate, engine, path, prompts[rate], context=context, stop=stop)
            except StoppedError:
                break
            except (EngineError, StoreError) as error:
                session.errors.append(f"{name}: {error}")
                click.echo(f"neobench: {name}: {error}", err=True)
    if stop.is_set():
        session.interrupted = True


@asynccontextmanager
async def started(session: Session, name: str, stop: asyncio.Event) -> AsyncIterator[Engine]:
    """The engine, ready to serve, and stopped afterwards. Raises EngineError, and StoppedError when `stop` comes first.

    Its log is the session folder's {slug(name)}.log.
    """
    from neobench.engines import registry
    from neobench.engines.launch import Launch

    options = options_of(name, {"seed": session.seed, **session.engine_options})
    log_path = session.folder / f"{slug(name)}.log"
    engine = registry.create(
        name,
        Launch(model=session.model, options=options, log_path=log_path, progress=lambda line: say(session, line)),
    )
    say(session, f"Starting {name} ...")
    try:
        await _unless_stopped(engine.start(), stop)
        yield engine
    finally:
        await engine.stop()


async def measure_rate(
    session: Session,
    name: str,
    rate: float,
    engine: Engine,
    path: Path,
    prompts: Prompts,
    *,
    context: RunContext,
    stop: asyncio.Event,
    watch: Callable[[RequestRecord], None] | None = None,
) -> dict[str, Any]:
    """One run into a new folder at `path`; its summary. `watch` sees each record once it is stored."""
    from neobench.engines import registry
    from neobench.harness.driver import DriveOptions
    from neobench.harness.progress import progress_display
    from neobench.harness.runner import run_one

    spec = run_spec(session, name, rate)
    limits = registry.prompt_limits(name, session.model, engine_options(session, name))
    sent = prompts.for_engine(spec, text=limits.text)
    modelled = is_modelled(session.engine_options)
    expected_s = None if modelled else expected_span_s(spec.arrival, sent.requests)
    label = f"{name} at {load_label(spec.arrival, spec.workload.sessions)}"
    with progress_display(label, expected_s=expected_s, quiet=session.quiet) as show:
        return await run_one(
            spec,
            sent.requests,
            engine,
            path,
            context=replace(context, kind=provenance_kind(name, engine_options(session, name))),
            warmup=sent.warmup,
            workload=sent.facts,
            options=in_its_time(DriveOptions(stop=stop, on_progress=show), session.engine_options),
            watch=watch,
            telemetry_interval_s=0.0 if modelled else session.telemetry_interval_s,
        )


def slug(text: str) -> str:
    """For names of files."""
    return "".join(character if character.isalnum() or character in "._" else "-" for character in text)


def provenance_kind(engine: str, options: Mapping[str, Any]) -> ProvenanceKind:
    """Of a run with these options of its engine."""
    from neobench.engines.registry import find

    entry, _ = find(engine, options)
    if is_modelled(options) or entry.is_model:
        return "modelled"
    return "emulated" if options.keys() & RESTRICTING else "measured"


async def _unless_stopped(work: Coroutine[Any, Any, _T], stop: asyncio.Event) -> _T:
    """The result of `work`; cancels it and raises StoppedError when the user asks for the end first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise StoppedError
    return task.result()
