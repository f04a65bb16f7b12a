"""`neobench bench-cpu`: options, plan, exit code. The measuring is in pacpu.bench, the drawing in reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neobench.cli.options import names, size
from neobench.cli.run import default_folder

if TYPE_CHECKING:
    from neobench.cli.bench_session import BenchSession

EXIT_INVALID = 4

_SHAPES = ("mha", "gqa4", "gqa8")
_DTYPE_OF = {"float16": "float16", "fp16": "float16", "bfloat16": "bfloat16", "bf16": "bfloat16", "int8": "int8"}


def _counts(value: str) -> tuple[int, ...]:
    """Different whole numbers above 0, comma-separated."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a whole number or a list of them, e.g. 16 or 1,16,64") from None
    if min(numbers) < 1 or len(set(numbers)) != len(numbers):
        raise click.BadParameter(f"{value!r} is not a list of different numbers above 0")
    return numbers


def _one_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        chosen = names(value)
        unknown = [name for name in chosen if name not in choices]
        if unknown:
            raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(choices)}")
        return chosen

    return parse


def _dtypes(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_DTYPE_OF[name] for name in _one_of(tuple(_DTYPE_OF))(value)))


@click.command("bench-cpu")
@click.option(
    "--shape",
    "shapes",
    type=_one_of(_SHAPES),
    metavar="NAMES",
    default=",".join(_SHAPES),
    show_default=True,
    help="Query/KV heads: mha 32/32, gqa4 32/8, gqa8 64/8; head_dim 128.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=_dtypes,
    metavar="NAMES",
    default="float16,bfloat16,int8",
    show_default=True,
    help="Of the KV cache; fp16 and bf16 for short.",
)
@click.option(
    "--threads", type=_counts, metavar="NUMBERS", show_default="1, 2, 4, ... and all usable CPUs", help="Each pinned."
)
@click.option("--batch", "batches", type=_counts, metavar="NUMBERS", default="1,16,64", show_default=True, help="Rows.")
@click.option(
    "--context",
    "contexts",
    type=_counts,
    metavar="NUMBERS",
    default="128,1024,4096",
    show_default=True,
    help="Tokens that each row attends to.",
)
@click.option(
    "--kernel",
    "kernels",
    type=names,
    metavar="NAMES",
    default="auto",
    show_default=True,
    help="auto, the best one, or targets of pacpu to compare.",
)
@click.option(
    "--limits",
    is_flag=True,
    help="Also what binds: reading the same memory in the same order (read_runs), attention from cache (in_cache).",
)
@click.option("--no-peer", is_flag=True, help="Without torch's scaled_dot_product_attention.")
@click.option(
    "--memory",
    "memory_bytes",
    type=size,
    metavar="SIZE",
    show_default="1GiB, 4 x L3 or the largest layer, in a third of free memory",
    help="KV memory that the layers rotate over.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="A new folder for rows.json, table and figure; default: runs/<date>-bench-cpu.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows alone on stdout.")
@click.option("--dry-run", is_flag=True, help="Show what would be measured, and how long it takes; measure nothing.")
def bench_cpu(as_json: bool, dry_run: bool, output: Path | None, **options: Any) -> None:
    """Measure what fraction of this machine's read bandwidth decode attention on the CPU reaches.

    For each thread count, on the same cores and taking turns: the machine's read bandwidth (a streaming sum), pacpu's
    paged decode attention over KV that is in no cache, and torch's scaled_dot_product_attention on the same shapes.
    Medians, with quartiles in the rows. A point during which the machine was busy with something else is repeated, and
    marked if it stays so (exit code 4). Ctrl-C keeps the points that are done.

    \b
    gbps             K and V bytes (with int8's scales) of the tokens attended to, in GB/s
    read_gbps        the reads just before and after, in GB/s
    percent_of_read  median over the samples of gbps / mean of the two neighbouring reads
    tokens_per_s     decode tokens (rows of the batch) a second of one layer's attention: rows / time of one call

    \b
    neobench bench-cpu                                           # the whole matrix: minutes
    neobench bench-cpu --shape gqa4 --dtype bf16 --threads 8 --batch 16 --context 1024     # seconds
    neobench bench-cpu --shape gqa8 --dtype bf16 --limits --no-peer                        # what binds
    neobench bench-cpu --kernel auto,cpp --no-peer --json > rows.json
    """
    from neobench.cli.bench_session import BenchSession

    session = BenchSession.plan(folder=output or default_folder("bench-cpu"), quiet=as_json, **options)
    if dry_run:
        _show_plan(session, as_json=as_json)
        return
    if session.folder.exists() and any(session.folder.iterdir()):
        raise click.UsageError(f"{session.folder} is not empty; runs are never overwritten: choose another --output")
    session.measure()
    session.save()
    if as_json:
        click.echo(json.dumps(session.rows, indent=2))
    if session.interrupted or any(row["busy"] for row in session.rows):
        sys.exit(EXIT_INVALID)


def _show_plan(session: BenchSession, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"points": session.planned, "output": str(session.folder)}, indent=2))
        return
    for point in session.planned:
        click.echo(" ".join(f"{name}={value}" for name, value in point.items()))
    click.echo(f"{session.summary_line()}. Results would go to {session.folder}.")
