"""`neobench sweep`: a file of points, measured in rounds; what is measured is not measured again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neobench.cli.run import EXIT_ERROR, EXIT_INVALID

if TYPE_CHECKING:
    from neobench.cli.sweep_points import Measurement
    from neobench.harness.runner import RunContext
    from neobench.reports.sweep_table import SweepRow


@click.command(epilog="Exit codes: 0 ok, 1 a point failed, 2 usage, 4 a run is invalid or the sweep was interrupted.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs; the same command goes on in it. Default: runs/sweep-<name of the file>.",
)
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Measure on the nodes of a Ray cluster, one point at a time on each: auto, host:6379, ray://host:10001, or "
    "local for this machine ([ray] extra; neobench is installed on the nodes).",
)
@click.option("--retry-failed", is_flag=True, help="Measure again what failed, and what was invalid.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the points with their summaries as JSON on stdout, no table."
)
@click.option("--dry-run", is_flag=True, help="Show the points and how long they take at least; start nothing.")
def sweep(
    file: Path, output: Path | None, ray_address: str | None, retry_failed: bool, as_json: bool, dry_run: bool
) -> None:
    """Measure every point of a YAML file: engines, workloads, rates and settings.

    Settings are the options of `neobench run` without their hyphens in front. Repeats go round by round over all
    points, so that a drift of the machine spreads over them; an engine stays up for neighbours that can share it.
    What was measured is kept by content: after Ctrl-C or a kill the same command goes on, and a changed file measures
    what is new in it. A point that fails leaves the others alone.

    \b
    defaults: {model: tiny, workload: "synthetic:60,24", num-requests: 100}
    matrix:
      engine: [neo, gpu_only]
      rate: [20, 40]
      device-blocks: [24, 48]
    exclude:
      - {engine: gpu_only, device-blocks: 48}
    include:
      - {engine: neo, rate: 80, device-blocks: 24}
    repeats: 3
    """
    from neobench.harness.runner import RunContext, run_async

    folder = output or Path("runs") / f"sweep-{file.stem}"
    context = RunContext.capture(["neobench", *sys.argv[1:]])
    measurements = _plan(file, folder, context, quiet=as_json)
    todo = [one for one in measurements if _is_due(one, retry_failed=retry_failed)]
    if not as_json or dry_run:
        _say_plan(measurements, todo, folder, listed=dry_run)
    if dry_run:
        return
    if retry_failed:
        _set_aside(todo)
    if ray_address is None:
        interrupted = run_async(_measure_here(todo, context))
    else:
        from neobench.cli.sweep_ray import measure_on_cluster

        interrupted = bool(todo) and measure_on_cluster(todo, ray_address, context.command)
    rows = _rows(measurements)
    _draw(measurements)
    _present(rows, folder, as_json=as_json)
    _exit(rows, interrupted=interrupted)


def _plan(file: Path, folder: Path, context: RunContext, *, quiet: bool) -> list[Measurement]:
    """In the order in which they are measured: round by round, in each the points of one engine side by side."""
    from neobench.cli.sweep_points import plan, setting_names, taken_settings
    from neobench.harness.matrix import SweepError, load_sweep

    try:
        loaded = load_sweep(file.read_text(), setting_names())
        points = taken_settings(loaded.points)
        rounds = [
            [plan(point, repeat, folder, context, quiet=quiet) for point in points] for repeat in range(loaded.repeats)
        ]
    except SweepError as error:
        raise click.UsageError(f"{file}, {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {file}: {error}") from None
    keys = list(dict.fromkeys(one.launch_key() for one in rounds[0]))
    return [one for one_round in rounds for one in sorted(one_round, key=lambda one: keys.index(one.launch_key()))]


def _is_due(measurement: Measurement, *, retry_failed: bool) -> bool:
    known = measurement.known()
    if known is None:
        return True
    path, status = known
    if not retry_failed:
        return False
    return status.status == "failed" or not json.loads((path / "summary.json").read_text())["validity"]["valid"]


def _say_plan(measurements: Sequence[Measurement], todo: Sequence[Measurement], folder: Path, *, listed: bool) -> None:
    if listed:
        for one in measurements:
            settings = ", ".join(f"{name} {value}" for name, value in one.shown_settings().items())
            click.echo(f"{'to do' if one in todo else 'kept':<6} repeat {one.session.repeat}: {settings}")
    arrivals_s = sum(one.expected_s for one in todo)
    starts = sum(index == 0 or todo[index - 1].launch_key() != one.launch_key() for index, one in enumerate(todo))
    click.echo(
        f"{len(todo)} of {len(measurements)} measurements to do: {arrivals_s:.0f} s of arrivals or more, "
        f"and {starts} engine starts. Results: {folder}",
        err=not listed,
    )


def _set_aside(todo: Sequence[Measurement]) -> None:
    """The attempts stay; without their status they no longer count."""
    from neobench.cli.sweep_points import POINT_FILE

    for one in todo:
        known = one.known()
        if known is not None:
            path, _ = known
            (path / POINT_FILE).rename(path / "point.retried.json")


async def _measure_here(todo: Sequence[Measurement], context: RunContext) -> bool:
    """Whether the user ended it."""
    from neobench.cli.sweep_points import measure_points
    from neobench.harness.runner import stop_on_signals

    stop = asyncio.Event()
    with stop_on_signals(stop):
        await measure_points(todo, context, stop)
    return stop.is_set()


def _rows(measurements: Sequence[Measurement]) -> list[SweepRow]:
    """In the order of the file's points, by their first repeat."""
    from neobench.reports.sweep_table import SweepRow

    rows: dict[str, SweepRow] = {}
    for one in measurements:
        row = rows.setdefault(json.dumps(one.settings, sort_keys=True), SweepRow(one.shown_settings(), 0))
        row.repeats += 1
        known = one.known()
        if known is None:
            continue
        path, status = known
        if status.status == "failed":
            row.failures.append(status.reason)
        else:
            row.summaries.append(json.loads((path / "summary.json").read_text()))
    return list(rows.values())


def _draw(measurements: Sequence[Measurement]) -> None:
    """The figures of each run that lacks them; after the last measurement, for drawing takes CPU from what it draws."""
    done = [known[0] for one in measurements if (known := one.known()) is not None and known[1].status == "done"]
    bare = [path for path in done if not (path / "latency.png").exists()]
    if bare:
        from neobench.cli.present import draw_run

        click.echo(f"Drawing the figures of {len(bare)} runs ...", err=True)
        for path in bare:
            draw_run(path)


def _present(rows: Sequence[SweepRow], folder: Path, *, as_json: bool) -> None:
    from neobench.reports.sweep_table import sweep_markdown, sweep_table

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(sweep_markdown(rows))
    documents = [
        {"settings": row.settings, "repeats": row.repeats, "summaries": row.summaries, "failures": row.failures}
        for row in rows
    ]
    (folder / "sweep.json").write_text(json.dumps(documents, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    from rich.console import Console

    Console().print(sweep_table(rows))
    click.echo(f"Results: {folder}, table: table.md, all summaries: sweep.json", err=True)


def _exit(rows: Sequence[SweepRow], *, interrupted: bool) -> None:
    if any(row.failures for row in rows):
        sys.exit(EXIT_ERROR)
    valid = all(summary["validity"]["valid"] for row in rows for summary in row.summaries)
    if interrupted or not valid:
        sys.exit(EXIT_INVALID)
