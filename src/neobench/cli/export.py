"""`neobench export`: runs in the formats of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import click

FORMATS = ("vllm", "github-action-benchmark", "csv", "prometheus")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file; default: standard output."
)
@click.option("--summary", "by_run", is_flag=True, help="CSV with one row a run, not one a request.")
@click.option("--smaller-is-better", is_flag=True, help="github-action-benchmark: latencies instead of throughputs.")
def export(
    runs: tuple[Path, ...], file_format: str, output: Path | None, by_run: bool, smaller_is_better: bool
) -> None:
    """Write RUNS, folders that `neobench run` left, in another tool's format.

    An invalid run says so in every format. vllm: the result file of `vllm bench serve`, for several runs a list.
    A run folder has its requests as Parquet already: requests.parquet.

    \b
    neobench export runs/today/neo-rate-4 --format vllm -o neo.json
    neobench export runs/today/* --format csv --summary
    neobench export runs/today/* --format github-action-benchmark --smaller-is-better
    """
    if by_run and file_format != "csv":
        raise click.UsageError("--summary goes with --format csv")
    if smaller_is_better and file_format != "github-action-benchmark":
        raise click.UsageError("--smaller-is-better goes with --format github-action-benchmark")
    if output is not None and output.exists():
        raise click.UsageError(f"{output} is there already; nothing is overwritten: choose another --output")
    from neobench.results import exports
    from neobench.results.store import StoreError, load_run

    try:
        loaded = [load_run(path) for path in runs]
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    if file_format == "vllm":
        documents = [exports.vllm_document(run) for run in loaded]
        text = json.dumps(documents[0] if len(documents) == 1 else documents) + "\n"
    elif file_format == "csv":
        text = exports.summary_csv(loaded) if by_run else exports.requests_csv(loaded)
    elif file_format == "prometheus":
        text = exports.prometheus_text(loaded)
    else:
        entries = exports.action_benchmark_document(loaded, bigger_is_better=not smaller_is_better)
        text = json.dumps(entries, indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)
