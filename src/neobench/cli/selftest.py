"""`neobench selftest`: how much this machine's client can send, and what a run may ask for."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neobench.cli.client_options import client_options

if TYPE_CHECKING:
    from neobench.harness.engine import Engine
    from neobench.harness.selftest import Point, Selftest

EXIT_INVALID = 4
POINT_FIELDS = (
    "offered",
    "achieved",
    "achieved_ratio",
    "lag_p50_ms",
    "lag_p99_ms",
    "tokens_per_s",
    "cpu_percent",
    "valid",
    "reasons",
)


@click.command()
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Measure this one rate (requests/s) and nothing else.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    help="Measure one closed loop of so many requests; with --rate: at most so many in flight.",
)
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Output tokens of a request.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="For each measurement."
)
@client_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone on stdout.")
def selftest(as_json: bool, **options: Any) -> None:
    """Find what this machine's load generator can do, against a server that answers at once.

    The server runs in a process of its own on the same machine, and takes its share of it. The same driver, records and
    rules of validity are used as in a run. Without --rate and --concurrency: the ceilings of requests/s (1-token
    replies) and tokens/s (128-token streams), then a ladder of rates until one is invalid. A ceiling keeps the client
    busy all the time, so its lag is not held against it; the ladder shows what a run may ask for.

    \b
    neobench selftest
    neobench selftest --client-processes 2
    neobench selftest --rate 1000 --seconds 10 --json

    Exits with 4 when the one point asked for is invalid.
    """
    from neobench.harness.engine import EngineError
    from neobench.harness.runner import run_async
    from neobench.harness.spec import SpecError
    from neobench.results.store import StoreError

    try:
        points = run_async(_measure(options))
    except (EngineError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    except SpecError as error:
        raise click.UsageError(str(error)) from None
    if points is None:
        click.echo("neobench: stopped", err=True)
        sys.exit(EXIT_INVALID)
    one = options["rate"] is not None or options["concurrency"] is not None
    _show(points, one=one, as_json=as_json)
    if one and not points["point"].valid:
        sys.exit(EXIT_INVALID)


async def _measure(options: dict[str, Any]) -> dict[str, Point] | None:
    """By name, in the order they were measured; None when the user stopped it."""
    from neobench.harness.driver import DriveOptions
    from neobench.harness.runner import RunContext, stop_on_signals
    from neobench.harness.selftest import Selftest

    stop = asyncio.Event()
    with stop_on_signals(stop), tempfile.TemporaryDirectory(prefix="neobench-selftest-") as scratch:
        async with _null_server(Path(scratch) / "server.log") as engine:
            test = Selftest(
                engine,
                Path(scratch),
                context=RunContext.capture(["neobench", *sys.argv[1:]]),
                client_processes=options["client_processes"],
                options=DriveOptions(stop=stop),
            )
            points: dict[str, Point] = {}
            async for name, point in _points(test, options):
                if stop.is_set():
                    return None
                points[name] = point
            return points


@asynccontextmanager
async def _null_server(log_path: Path) -> AsyncIterator[Engine]:
    from neobench.engines import registry
    from neobench.engines.launch import Launch

    engine = registry.create("null_server", Launch(model="null", options={}, log_path=log_path))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


async def _points(test: Selftest, options: dict[str, Any]) -> AsyncIterator[tuple[str, Point]]:
    from neobench.harness.selftest import CEILING_CONCURRENCY, CEILING_TOKENS

    rate, concurrency, tokens, seconds = (options[name] for name in ("rate", "concurrency", "tokens", "seconds"))
    if rate is not None:
        yield "point", await test.at_rate(rate, tokens=tokens, seconds=seconds, concurrency=concurrency)
        return
    if concurrency is not None:
        yield "point", await test.closed_loop(concurrency, tokens=tokens, seconds=seconds)
        return
    _say(f"Closed loop of {CEILING_CONCURRENCY}, 1-token replies ...")
    yield "requests", await test.ceiling(tokens=1, seconds=seconds)
    _say(f"Closed loop of {CEILING_CONCURRENCY}, {CEILING_TOKENS}-token streams ...")
    yield "tokens", await test.ceiling(tokens=CEILING_TOKENS, seconds=seconds)
    async for point in test.ladder(tokens=tokens, seconds=seconds):
        _say(f"{point.load.rate:g} requests/s: {'valid' if point.valid else 'invalid'}")
        yield f"rate_{point.load.rate:g}", point


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(points: dict[str, Point], *, one: bool, as_json: bool) -> None:
    import msgspec

    if as_json:
        shown: Any = {name: msgspec.to_builtins(point) for name, point in points.items()}
        shown = {name: shown["point"][name] for name in POINT_FIELDS} if one else shown
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return
    from rich.console import Console

    console = Console()
    console.print(_table(points))
    for point in points.values():
        for reason in point.reasons:
            console.print(f"{_load(point)}: {reason}", highlight=False)
    if not one:
        console.print(_advice(points), highlight=False)


def _table(points: dict[str, Point]) -> Any:
    from rich.table import Table

    headers = ("Tokens", "Req/s", "Tok/s", "Achieved", "Lag\np50\n(ms)", "Lag\np99\n(ms)", "CPU\n(%)")
    table = Table(padding=0)
    table.add_column("Load", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for point in points.values():
        table.add_row(
            _load(point),
            str(point.load.tokens),
            _number(point.requests_per_s, ",.0f"),
            _number(point.tokens_per_s, ",.0f"),
            _number(point.achieved_ratio, ".4f"),
            _number(point.lag_p50_ms, ".2f"),
            _number(point.lag_p99_ms, ".2f"),
            _number(point.cpu_percent, ".0f"),
            _verdict(point),
        )
    return table


def _verdict(point: Point) -> str:
    if not point.valid:
        return "INVALID"
    return "ceiling" if point.load.is_ceiling else "valid"


def _load(point: Point) -> str:
    return f"{point.load.concurrency} in flight" if point.load.rate is None else f"{point.load.rate:g} req/s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _advice(points: dict[str, Point]) -> str:
    good = [point for name, point in points.items() if name.startswith("rate_") and point.valid]
    requests, tokens = points["requests"], points["tokens"]
    processes = requests.load.client_processes
    ceilings = (
        f"The ceilings, {_number(requests.requests_per_s, ',.0f')} requests/s and "
        f"{_number(tokens.tokens_per_s, ',.0f')} tokens/s, are where the client is kept busy all the time: bounds, "
        "not loads to measure at."
    )
    if not good:
        return f"No rate was valid: this machine is too busy to measure on.\n{ceilings}"
    best = good[-1]
    at_rate = f"{best.load.rate:,.0f} requests/s of {best.load.tokens} tokens"
    lines = [
        f"A run on this machine with {processes} client process{'' if processes == 1 else 'es'} may ask for "
        f"{at_rate}, {_number(best.tokens_per_s, ',.0f')} tokens/s: "
        "the highest rate of the ladder that was valid.",
        ceilings,
        *_memory(requests),
    ]
    return "\n".join(lines)


def _memory(point: Point) -> list[str]:
    from neobench.harness.selftest import PROMPT_TOKENS

    if point.bytes_per_request is None or point.peak_rss_bytes is None:
        return []
    return [
        f"Memory: {point.bytes_per_request / 1e3:.2g} kB a request and its record ({PROMPT_TOKENS} prompt tokens, "
        f"{point.load.tokens} output token); a peak of {point.peak_rss_bytes / 1e6:,.0f} MB for "
        f"{point.load.num_requests:,} requests."
    ]
