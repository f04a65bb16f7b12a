"""`neobench search`: options, plan, the answer as text, JSON and figure. Each measurement is in slo_point.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neobench.cli.arrivals import expected_span_s
from neobench.cli.modelled import run_in_its_time
from neobench.cli.openai_options import stored_command
from neobench.cli.run import EXIT_ERROR, EXIT_INVALID, session_of, shared_options
from neobench.cli.session import Session, StoppedError, draw_prompts, run_spec, say, slug, started

if TYPE_CHECKING:
    from neobench.cli.slo_point import PointVerdict
    from neobench.harness.search import RateVerdicts, SearchResult, SearchSettings
    from neobench.harness.slo import Slo

RESULT_FILE = "search.json"


@click.command(epilog="Exit codes: 0 found, 1 error or not met at any rate, 2 usage, 4 not to be relied on.")
@click.option(
    "--slo",
    "slo_texts",
    multiple=True,
    metavar="OBJECTIVE",
    help="What has to be met, e.g. 'p99_ttft<2s', 'mean_tpot<100ms' or 'request_throughput>=95%' of the offered rate. "
    "May be given several times.",
)
@click.option(
    "--start-rate", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Measured first."
)
@click.option("--min-rate", type=click.FloatRange(0, min_open=True), show_default="a 16th of the first", help="Lowest.")
@click.option(
    "--max-rate", type=click.FloatRange(0, min_open=True), show_default="1024 times the first", help="Highest."
)
@click.option(
    "--factor",
    type=click.FloatRange(1, min_open=True),
    default=2.0,
    show_default=True,
    help="Between one rate and the next, until a met and a missed one are known.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="Width of the bracket, as a share of the rate.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="At each end of the bracket; all must agree.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the measurements; the same command goes on in it. Default: runs/search-<workload>-<hash>.",
)
@click.option("--json", "as_json", is_flag=True, help="Print search.json alone on stdout (a list for several engines).")
@click.option("--dry-run", is_flag=True, help="Show what would be searched; start nothing.")
def search(slo_texts: tuple[str, ...], as_json: bool, dry_run: bool, output: Path | None, **options: Any) -> None:
    """Find the highest request rate that meets service level objectives.

    Rates are bracketed by doubling, bisected, and measured several times at both ends of the bracket, each time with
    other arrivals and prompts. A measurement ends early once its objectives are decided by the exact binomial rule. A
    percentile counts failed requests as infinitely late. Each measurement is kept: the same command goes on after
    Ctrl-C or a kill. When the client cannot keep its schedule the search ends and says so.

    \b
    neobench search --engine neo --slo "p99_ttft<2s" --slo "p99_tpot<100ms"
    neobench search --engine neo,gpu_only --slo "mean_ttft<500ms" --start-rate 4 --num-requests 200
    neobench search --engine null --slo "p99_ttft<5ms" --start-rate 200    # of the client itself
    """
    slos = _slos(slo_texts)
    settings = _settings(options)
    if options["kind"] in ("trace", "all-at-once", "closed"):
        raise click.UsageError(f"--arrival {options['kind']} has no rate to search for; choose another arrival")
    session = session_of(
        {**options, "rates": (settings.start_rate,), "end_rate": None, "speeds": None, "percentiles": None},
        output,
        quiet=as_json,
    )
    if any(slo.key == "request_goodput" for slo in slos) and not session.goodput_ms:
        raise click.UsageError("request_goodput needs the limits that make a request good, e.g. --goodput ttft:500")
    if output is None:
        session.folder = _stable_folder(session, slos, settings)
    if dry_run:
        _show_plan(session, slos, settings)
        return
    documents = run_in_its_time(_search_all(session, slos, settings), session.engine_options)
    if as_json:
        click.echo(json.dumps(documents[0] if len(session.engines) == 1 and documents else documents, indent=2))
    _exit(documents, session)


search.params += shared_options("rates", "end_rate", "speeds", "percentiles")


def _slos(texts: tuple[str, ...]) -> tuple[Slo, ...]:
    from neobench.harness.slo import SloError, parse_slos

    try:
        return parse_slos(texts)
    except SloError as error:
        raise click.UsageError(str(error)) from None


def _settings(options: dict[str, Any]) -> SearchSettings:
    from neobench.harness.search import SearchSettings

    names = ("start_rate", "min_rate", "max_rate", "factor", "tolerance", "repeats")
    given = {name: options.pop(name) for name in names}
    given["min_rate"] = given["min_rate"] or given["start_rate"] / 16
    given["max_rate"] = given["max_rate"] or given["start_rate"] * 1024
    try:
        return SearchSettings(**given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _stable_folder(session: Session, slos: tuple[Slo, ...], settings: SearchSettings) -> Path:
    """The same for the same command, so that it goes on where it was."""
    import msgspec

    specs = [run_spec(session, name, settings.start_rate) for name in session.engines]
    question = msgspec.to_builtins([specs, [slo.text for slo in slos], settings])
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"search-{slug(session.workload)}-{digest}"


def _show_plan(session: Session, slos: tuple[Slo, ...], settings: SearchSettings) -> None:
    prompts = draw_prompts(session, settings.start_rate)
    click.echo(f"Engines: {', '.join(session.engines)}; workload {session.workload} on {session.model}")
    click.echo(f"Objectives: {', '.join(slo.text for slo in slos)}")
    for slo in slos:
        if slo.percentile is not None:
            click.echo(
                f"  {slo.text}: {slo.allowed(session.num_requests)} of {session.num_requests} requests may be over"
            )
    click.echo(
        f"Rates: {settings.start_rate:g} req/s first, then times or by {settings.factor:g} within "
        f"{settings.min_rate:g} to {settings.max_rate:g}, to {settings.tolerance:.0%}; {settings.repeats} repeats"
    )
    click.echo(json.dumps(prompts.facts, indent=2))
    span_s = expected_span_s(session.arrivals[settings.start_rate], prompts.requests)
    click.echo(f"A measurement at the first rate takes {span_s:.0f} s or less. Results would go to {session.folder}.")


async def _search_all(session: Session, slos: tuple[Slo, ...], settings: SearchSettings) -> list[dict[str, Any]]:
    from neobench.harness.runner import stop_on_signals

    stop = asyncio.Event()
    documents = []
    with stop_on_signals(stop):
        for name in session.engines:
            if not stop.is_set():
                document = await _search_engine(session, name, slos, settings, stop)
                documents += [] if document is None else [document]
    session.interrupted = stop.is_set()
    return documents


async def _search_engine(
    session: Session, name: str, slos: tuple[Slo, ...], settings: SearchSettings, stop: asyncio.Event
) -> dict[str, Any] | None:
    """search.json of one engine, also of a search that was cut short; None when the engine did not even start."""
    from neobench.cli.slo_point import PointMeasurer
    from neobench.harness.engine import EngineError
    from neobench.harness.runner import RunContext
    from neobench.harness.search import find_highest_rate
    from neobench.results.store import StoreError

    context = RunContext.capture(["neobench", *stored_command(sys.argv[1:])])
    try:
        async with started(session, name, stop) as engine:
            arrival = session.arrivals[settings.start_rate]
            measurer = PointMeasurer(session, name, engine, slos, context, stop, arrival)
            result = await find_highest_rate(measurer.measure, settings)
    except StoppedError:
        return None
    except (EngineError, StoreError) as error:
        session.errors.append(f"{name}: {error}")
        click.echo(f"neobench: {name}: {error}", err=True)
        return None
    return _publish(session, name, slos, settings, result, measurer.points)


def _publish(
    session: Session,
    name: str,
    slos: tuple[Slo, ...],
    settings: SearchSettings,
    result: SearchResult,
    points: list[PointVerdict],
) -> dict[str, Any]:
    import msgspec

    from neobench.cli.points import write_whole
    from neobench.reports.search_figure import save_search
    from neobench.results.store import SCHEMA, encode_pretty

    lines = [*answer(result, slos), *invalid_points(result, points)]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "engine": name,
        "model": session.model,
        "workload": session.workload,
        "slos": [msgspec.to_builtins(slo) for slo in slos],
        "answer": lines,
        "settings": msgspec.to_builtins(settings),
        **msgspec.to_builtins(result),
        "points": msgspec.to_builtins(points),
        "command": ["neobench", *stored_command(sys.argv[1:])],
    }
    folder = session.folder / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULT_FILE, encode_pretty(document))
    if points:
        save_search(document, folder / "search")
    if not session.quiet:
        click.echo(f"{name}: " + "\n  ".join(lines))
        say(
            session,
            f"Results: {folder / RESULT_FILE}, figure: {folder / 'search.png'}, runs: {session.folder / 'points'}",
        )
    return document


def answer(result: SearchResult, slos: tuple[Slo, ...]) -> list[str]:
    """What is sure, and what stands against it: a sentence a line."""
    objectives = " and ".join(slo.text for slo in slos)
    ends = [_end(result.low, "meets"), _end(result.high, "fails")]
    lines = [f"{objectives}: " + (", ".join(end for end in ends if end) or "nothing measured") + "."]
    if result.status == "above_max":
        lines.append("It was not missed for certain up to the highest rate: search on with a higher --max-rate.")
    elif result.status == "below_min":
        lines.append("It was not met for certain down to the lowest rate: try a lower --min-rate or a longer limit.")
    elif result.status == "client_limit":
        lines.append(
            f"The search ended because the client or its machine, not the engine, was the limit: {result.reason}"
        )
    elif result.status != "found":
        lines.append(f"The search was cut short: {result.reason}.")
    lines += _undecided(result)
    if result.contradictions:
        lines.append("Not monotone, so no highest rate is sure: " + "; ".join(result.contradictions) + ".")
    return lines


def invalid_points(result: SearchResult, points: list[PointVerdict]) -> list[str]:
    """Says so where the upper end is there because a measurement was not valid, though it missed no objective."""
    from neobench.cli.slo_point import NOT_VALID

    at_high = [point for point in points if result.high is not None and point.rate == result.high.rate]
    reasons = dict.fromkeys(reason for point in at_high if point.basis == NOT_VALID for reason in point.reasons)
    if not reasons:
        return []
    assert result.high is not None
    return [f"At {result.high.rate:g} req/s no objective was missed, but the run is not valid: {' '.join(reasons)}"]


def _end(end: RateVerdicts | None, word: str) -> str:
    if end is None:
        return ""
    agreeing = end.met if word == "meets" else end.measured - end.met
    return f"{word} at {end.rate:g} req/s in {agreeing} of {end.measured}"


def _undecided(result: SearchResult) -> list[str]:
    if result.low is None or result.high is None:
        return []
    between = [entry for entry in result.rates if result.low.rate < entry.rate < result.high.rate]
    if not between:
        return []
    each = ", ".join(f"{entry.rate:g} req/s met in {entry.met} of {entry.measured}" for entry in between)
    return [f"In between it depends: {each}."]


def _exit(documents: list[dict[str, Any]], session: Session) -> None:
    statuses = {document["status"] for document in documents}
    if session.errors or statuses & {"engine_failed", "below_min"}:
        sys.exit(EXIT_ERROR)
    contradicted = any(document["contradictions"] for document in documents)
    if session.interrupted or contradicted or statuses & {"client_limit", "interrupted"}:
        sys.exit(EXIT_INVALID)
