"""`neobench plot`: table and figures of runs that are there already."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="A new folder for table.md and load-latency.{png,pdf,svg,csv}.",
)
def plot(runs: tuple[Path, ...], output: Path) -> None:
    """Put RUNS, folders of `neobench run` or `neobench convert`, into one table and one load-latency figure.

    Runs may be of different days, engines and tools; the figure tells apart what is not the same. Each run's own
    figures (latency.png, telemetry.png) are drawn anew in its folder.

    \b
    neobench plot runs/today/*/ runs/yesterday/*/ -o runs/compared
    """
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"{output} is not empty; nothing is overwritten: choose another --output")
    lacking = [path for path in runs if not (path / "summary.json").exists()]
    if lacking:
        raise click.UsageError(
            f"{lacking[0]} has no summary.json: it is no run folder, or its run was cut short "
            "(name the folders of single runs)"
        )
    from neobench.cli.present import present

    output.mkdir(parents=True, exist_ok=True)
    present(runs, output, quiet=False)
