"""`neobench reproduce`: the NEO paper's figures by modelled runs with its authors' settings and definitions."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neobench.cli.run import EXIT_INVALID

if TYPE_CHECKING:
    from neobench.cli.paper_figures import Figure
    from neobench.cli.reproduce_points import Point, PointResult
    from neobench.cli.reproduce_rows import Row

TABLE_FILE = "table.json"


@click.command(epilog="Exit codes: 0 ok, 1 error, 2 usage, 4 interrupted.")
@click.argument("names", metavar="FIGURE...", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/reproduce"),
    show_default=True,
    help="Folder of runs, figures and table.json; the same command goes on in it.",
)
@click.option(
    "--requests", type=click.IntRange(8), show_default="the figure's", help="So many requests at each point instead."
)
@click.option(
    "--processes", type=click.IntRange(1), show_default="one a core", help="That many runs are modelled at a time."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout, no table.")
def reproduce(names: tuple[str, ...], output: Path, requests: int | None, processes: int | None, as_json: bool) -> None:
    """Redraw figures of the NEO paper: fig6a fig6b fig6c fig7 fig8 fig9a fig9b fig9c fig10a fig10b, fig9, all.

    The authors' machines, models, KV blocks, lengths, rates and definitions go through the code of
    `neobench run --hardware`; nothing is fitted to the paper. Each figure has our lines, the paper's known points as
    hollow markers, and a band over plausible hosts where the paper names none. Throughput is given twice: between 30
    and 70 % of the completions, as the authors take it, and over the whole run. docs/model.md says how to read it.

    \b
    neobench reproduce fig10a
    neobench reproduce fig6c --json
    neobench reproduce fig10a --requests 2000 -o full     # as many as the authors sent; minutes
    neobench reproduce all -o runs/paper
    """
    from neobench.cli.paper_figures import chosen_figures

    figures = chosen_figures(names)
    if requests is not None:
        import msgspec

        figures = {name: msgspec.structs.replace(figure, requests=requests) for name, figure in figures.items()}
    try:
        results = _model(figures, output, processes or os.cpu_count() or 1, quiet=as_json)
    except KeyboardInterrupt:
        click.echo(f"Interrupted. What was modelled is kept in {output}; the same command goes on.", err=True)
        sys.exit(EXIT_INVALID)
    rows = _write(figures, results, output)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _show(figures, rows)
    click.echo(f"Figures, {TABLE_FILE} with all rows, and the runs: {output}", err=True)


def _model(figures: Mapping[str, Figure], folder: Path, processes: int, *, quiet: bool) -> dict[Point, PointResult]:
    """Round after round, until no figure names another point."""
    from neobench.cli.reproduce_plans import points_of
    from neobench.cli.reproduce_points import model_points

    results: dict[Point, PointResult] = {}
    while True:
        named = dict.fromkeys(point for figure in figures.values() for point in points_of(figure, results))
        todo = [point for point in named if point not in results]
        if not todo:
            return results
        for point, result in model_points(todo, folder, min(processes, len(todo))):
            results[point] = result
            if not quiet:
                click.echo(f"{len(results)} of {len(named)}: {point}", err=True)


def _write(
    figures: Mapping[str, Figure], results: Mapping[Point, PointResult], folder: Path
) -> list[dict[str, object]]:
    """Figures and table.json; the rows."""
    import msgspec

    from neobench.cli.points import write_whole
    from neobench.cli.reproduce_rows import rows_and_panels
    from neobench.reports.reproduction import save_reproduction

    rows: list[Row] = []
    for name, figure in figures.items():
        of_figure, panels = rows_and_panels(name, figure, results)
        rows += of_figure
        command = shlex.join(["neobench", *sys.argv[1:]])
        save_reproduction(panels, _caption(name, figure), folder / name, description=command)
    plain: list[dict[str, object]] = msgspec.to_builtins(rows)
    write_whole(folder / TABLE_FILE, (json.dumps(plain, indent=2) + "\n").encode())
    return plain


def _caption(name: str, figure: Figure) -> list[str]:
    requests = f"{figure.requests} requests a point (the authors sent {figure.paper_requests})"
    return [f"{name} · {figure.title} · modelled · {requests}", *(f"Assumed: {text}" for text in figure.assumptions)]


def _show(figures: Mapping[str, Figure], rows: Sequence[Mapping[str, object]]) -> None:
    """Rows with a value of the paper, and the peaks; all rows are in table.json."""
    from rich.console import Console
    from rich.table import Table

    for name, figure in figures.items():
        table = Table(title=f"{name}: {figure.title}", caption="\n".join(_caption(name, figure)[1:]), padding=0)
        table.add_column("quantity")
        for header in ("x", "paper", "ours", "ratio"):
            table.add_column(header, justify="right")
        for row in rows:
            quantity = str(row["quantity"])
            if row["figure"] == name and (row["paper"] is not None or not quantity.startswith(("throughput", "mean"))):
                table.add_row(quantity, *(_cell(row[key]) for key in ("x", "paper", "ours", "ratio")))
        Console().print(table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-"
