"""`neobench export`: runs in the formats of other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from neobench.results.store import Run

FORMATS = ("vllm", "github-action-benchmark", "csv", "parquet", "prometheus")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file; default: standard output."
)
@click.option("--summary", "by_run", is_flag=True, help="CSV or Parquet with one row a run, not one a request.")
@click.option("--smaller-is-better", is_flag=True, help="github-action-benchmark: latencies instead of throughputs.")
def export(
    runs: tuple[Path, ...], file_format: str, output: Path | None, by_run: bool, smaller_is_better: bool
) -> None:
    """Write RUNS, folders that `neobench run` left, in another tool's format.

    An invalid run says so in every format. vllm: the result file of `vllm bench serve`, for several runs a list.
    github-action-benchmark: for its tool customBiggerIsBetter, or customSmallerIsBetter with --smaller-is-better.

    \b
    neobench export runs/today/neo-rate-4 --format vllm -o neo.json
    neobench export runs/today/*/ --format csv --summary
    neobench export runs/today/*/ --format parquet -o today.parquet
    neobench export runs/today/*/ --format github-action-benchmark --smaller-is-better
    neobench export runs/today/*/ --format prometheus -o /var/lib/node_exporter/neobench.prom
    """
    if by_run and file_format not in ("csv", "parquet"):
        raise click.UsageError("--summary goes with --format csv or parquet")
    if smaller_is_better and file_format != "github-action-benchmark":
        raise click.UsageError("--smaller-is-better goes with --format github-action-benchmark")
    if output is None and file_format == "parquet":
        raise click.UsageError("Parquet is not text: say where it goes with --output FILE")
    if output is not None and output.exists():
        raise click.UsageError(f"{output} is there already; nothing is overwritten: choose another --output")
    from neobench.results.store import StoreError, load_run

    try:
        loaded = [load_run(path) for path in runs]
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    try:
        if file_format == "parquet":
            assert output is not None
            _write_parquet(loaded, output, by_run=by_run)
        elif output is not None:
            output.write_text(_text(loaded, file_format, by_run=by_run, bigger_is_better=not smaller_is_better))
        else:
            click.echo(_text(loaded, file_format, by_run=by_run, bigger_is_better=not smaller_is_better), nl=False)
    except OSError as error:
        raise click.ClickException(f"cannot write {output or 'to standard output'}: {error.strerror}") from None


def _text(runs: Sequence[Run], file_format: str, *, by_run: bool, bigger_is_better: bool) -> str:
    from neobench.results import exports
    from neobench.results.export_vllm import vllm_document

    if file_format == "vllm":
        documents = [vllm_document(run) for run in runs]
        return json.dumps(documents[0] if len(documents) == 1 else documents) + "\n"
    if file_format == "csv":
        return exports.rows_csv(exports.summary_rows(runs)) if by_run else exports.requests_csv(runs)
    if file_format == "prometheus":
        return exports.prometheus_text(runs)
    entries = exports.action_benchmark_document(runs, bigger_is_better=bigger_is_better)
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _write_parquet(runs: Sequence[Run], output: Path, *, by_run: bool) -> None:
    import pyarrow.parquet as pq

    from neobench.results import exports

    table = exports.summary_table(runs) if by_run else exports.requests_table(runs)
    pq.write_table(table, output, compression="zstd")
