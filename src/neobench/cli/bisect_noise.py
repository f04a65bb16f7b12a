"""`neobench bisect-noise`: how much do equal runs differ here, and what follows for thresholds and repeats?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neobench.cli.turns import TurnSide, check_sides, measure_turns, runs_of

if TYPE_CHECKING:
    from neobench.results.noise import MetricNoise
    from neobench.results.points import Side


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--turns", type=click.IntRange(3), default=8, show_default=True, help="Pairs of equal runs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first pair.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs; the same command goes on in it. Default: runs/<date>-noise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the noise and what follows as JSON on stdout.")
@click.argument("common", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF RUN]...")
def bisect_noise(turns: int, seed: int, output: Path | None, as_json: bool, common: tuple[str, ...]) -> None:
    """Measure pairs of equal runs (A/A) and recommend thresholds and repeats for this machine.

    All other options go to `neobench run`. A pair has the same requests, the next pair others; every run starts its
    engine anew. "Apart" is the noise that a gate sees whose sides were measured with other requests or one after the
    other; "in pairs" what is left when runs are compared two by two (`neobench gate --paired`, `neobench ab`).

    \b
    neobench bisect-noise --engine neo --workload carperai --rate 4 --num-requests 200
    """
    from neobench.results.noise import measured_noise
    from neobench.results.points import read_side

    folder = output or Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-noise"
    sides = [TurnSide(name, ()) for name in ("a", "b")]
    check_sides(sides, common)
    if not measure_turns(sides, common, turns, seed, folder):
        raise click.ClickException(f"interrupted; the same command with --output {folder} goes on")
    read = [read_side(side.name, runs_of(folder, side.name)) for side in sides]
    problems = _problems(read)
    if problems:
        raise click.ClickException("\n".join(["runs that are invalid tell nothing of the noise:", *problems]))
    noise = measured_noise(read[0].points[0], read[1].points[0])
    if as_json:
        click.echo(json.dumps({"schema": "neobench/noise/v1", "metrics": [_document(one) for one in noise]}, indent=2))
    else:
        _show(noise, turns)
    click.echo(f"Runs: {folder}", err=True)


def _problems(sides: Sequence[Side]) -> list[str]:
    problems = [problem for side in sides for problem in side.problems]
    runs = [run for side in sides for point in side.points for run in point.runs]
    problems += [f"{run.name}: {' '.join(run.reasons)}" for run in runs if not run.valid]
    if any(len(side.points) != 1 for side in sides):
        problems.append("one engine and one rate at a time: `--engine` and `--rate` take a single value here")
    return problems


def _document(noise: MetricNoise) -> dict[str, Any]:
    import msgspec

    from neobench.results.noise import REPEATS

    document: dict[str, Any] = msgspec.to_builtins(noise)
    for paired, key in ((False, "threshold_apart"), (True, "threshold_paired")):
        document[key] = {str(repeats): noise.threshold(repeats, paired=paired) for repeats in REPEATS}
    return document


def _show(noise: Sequence[MetricNoise], turns: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from neobench.results.noise import REPEATS

    table = Table(
        title=f"Noise of {turns} pairs of equal runs, and the finest threshold", title_justify="left", padding=0
    )
    table.add_column("Metric")
    for name in ("apart", "in pairs"):
        table.add_column(f"Noise {name}", justify="right")
        for repeats in REPEATS:
            table.add_column(f"{repeats} runs", justify="right")
    for one in noise:
        cells = [one.metric]
        for deviation, paired in ((one.deviation, False), (one.paired_deviation, True)):
            cells += [_percent(deviation), *(_percent(one.threshold(repeats, paired=paired)) for repeats in REPEATS)]
        table.add_row(*cells)
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)
    from neobench.results.directions import GATED

    for paired in (False, True):
        limits = {one.metric: one.threshold(5, paired=paired) for one in noise if one.metric in GATED}
        flags = " ".join(f"--metric {name}:{_rounded_up(limit)}%" for name, limit in limits.items() if limit < 1)
        click.echo(f"5 repeats{', in pairs' if paired else ''}: neobench gate{' --paired' if paired else ''} {flags}")


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def _rounded_up(share: float) -> str:
    """In percent, to half a percent."""
    return f"{math.ceil(200 * share) / 2:g}"
