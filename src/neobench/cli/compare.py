"""`neobench compare`: verdicts on repeated runs, each side against the first."""

from __future__ import annotations

import json
from pathlib import Path

import click

from neobench.cli.comparing import comparison_options, rules_of, show_comparison, side_of, write_report


@click.command()
@click.argument("sides", nargs=-1, required=True, metavar="BASELINE OTHER...")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the tables there too, for a pull request.",
)
@comparison_options
def compare(
    sides: tuple[str, ...],
    markdown: Path | None,
    metrics: dict[str, float | None],
    threshold: float,
    allowed: frozenset[str],
    paired: bool,
    baseline_dir: Path,
    as_json: bool,
) -> None:
    """Compare repeated runs; the first side is the baseline of the others.

    A side is a run folder, a folder of runs (of `neobench sweep` with repeats, say), a pattern in quotation marks, or
    a baseline saved by `neobench gate`. Runs with the same engine, settings and load are repeats of one point; points
    are matched between the sides. Verdicts: pass, regressed, improved, inconclusive, incomparable; see
    docs/compare-and-gate.md. The exit code is 0 whatever the verdicts; `neobench gate` has others.

    \b
    neobench compare runs/sweep-before runs/sweep-after
    neobench compare "runs/neo-*" "runs/gpu_only-*" --metric p99_ttft_ms:10% --markdown table.md
    neobench compare main runs/today --allow hardware
    """
    if len(sides) < 2:
        raise click.UsageError("a comparison takes two sides or more: the baseline first")
    from neobench.reports.compare_table import comparison_document, comparison_markdown
    from neobench.results.compare import compare as compare_sides

    base, *others = [side_of([side], baseline_dir) for side in sides]
    rules = rules_of(metrics, threshold, allowed, paired=paired)
    comparisons = [compare_sides(base, other, rules) for other in others]
    if as_json and len(comparisons) > 1:
        click.echo(json.dumps([comparison_document(comparison) for comparison in comparisons], indent=2))
    else:
        for comparison in comparisons:
            show_comparison(comparison, as_json=as_json)
    if markdown is not None:
        write_report(markdown, "\n".join(comparison_markdown(comparison) for comparison in comparisons))
