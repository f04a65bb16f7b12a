"""`neobench convert`: result files of other tools as run folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neobench.cli.metrics_options import metrics_options
from neobench.cli.run import EXIT_INVALID
from neobench.cli.session import slug

if TYPE_CHECKING:
    from neobench.results.foreign import ForeignRun


@click.command(epilog="Exit codes: 0 ok, 1 a file cannot be converted, 2 usage, 4 a run is invalid.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="A new folder for the runs, as `neobench run` leaves one.",
)
@click.option("--engine", help="What to call the engine in tables and figures; default: what the file says.")
@click.option("--workload", help="What to call the workload; `vllm bench serve` does not record it.")
@metrics_options
def convert(
    files: tuple[Path, ...],
    output: Path,
    engine: str | None,
    workload: str | None,
    percentiles: tuple[float, ...] | None,
    goodput_ms: dict[str, float],
) -> None:
    """Make run folders of FILES that other tools wrote, to compare and plot them like runs of neobench.

    Read are the results of `vllm bench serve --save-result` (best with --save-detailed; also those of
    --append-result) and the JSON of GuideLLM 0.8, gzipped or not. Where a file has every request, all figures are
    computed anew from those, with the same definitions and the same rules of validity as for a run of neobench.
    What a tool did not record is null, and the run says so.

    \b
    neobench convert vllm-20qps.json -o runs/theirs --engine vllm --workload sharegpt
    neobench convert benchmarks.json -o runs/guidellm --goodput ttft:500 --percentiles 90,95
    neobench plot runs/theirs/*/ runs/today/*/ -o runs/compared
    """
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"{output} is not empty; runs are never overwritten: choose another --output")
    from neobench.cli.present import present
    from neobench.results.convert import read_content, read_runs
    from neobench.results.foreign import ConvertError, write_foreign
    from neobench.results.store import StoreError

    # All are read before the first is written, so that a bad file leaves nothing half done.
    found = []
    for file in files:
        try:
            content = read_content(file)
            found += [(file, content, run) for run in read_runs(content)]
        except ConvertError as error:
            raise click.ClickException(f"{file}: {error}") from None
    paths: list[Path] = []
    for file, content, run in found:
        named = _named(run, engine, workload)
        path = _free(output, named, paths)
        try:
            write_foreign(
                named,
                path,
                command=["neobench", *sys.argv[1:]],
                source=content,
                percentiles=percentiles or (),
                goodput_ms=goodput_ms,
            )
        except (ConvertError, StoreError) as error:
            raise click.ClickException(f"{file}: {error}") from None
        paths.append(path)
    present(paths, output, quiet=False)
    invalid = [path for path in paths if not json.loads((path / "summary.json").read_text())["validity"]["valid"]]
    if invalid:
        click.echo(f"neobench: invalid runs: {len(invalid)} of {len(paths)}; the table's notes say why", err=True)
        sys.exit(EXIT_INVALID)


def _named(run: ForeignRun, engine: str | None, workload: str | None) -> ForeignRun:
    from dataclasses import replace

    return replace(run, engine=engine or run.engine, workload=workload or run.workload)


def _free(folder: Path, run: ForeignRun, taken: list[Path]) -> Path:
    rate = "all-at-once" if run.request_rate is None else f"rate-{run.request_rate:g}"
    limit = run.arrival.get("concurrency")
    stem = f"{slug(run.engine)}-{rate}" + (f"-concurrency-{limit}" if limit else "")
    number, path = 1, folder / stem
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}"
    return path
