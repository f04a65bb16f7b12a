"""`neobench gate`: may this change go in? Exit codes for CI, one table, and reports for others to read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neobench.cli.comparing import comparison_options, rules_of, show_comparison, side_of, write_report
from neobench.cli.run import EXIT_ERROR, EXIT_INVALID

if TYPE_CHECKING:
    from neobench.results.compare import Comparison
    from neobench.results.points import Side

EXIT_REGRESSION = 3

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    epilog="Exit codes: 0 no regression found (inconclusive included, see --fail-inconclusive), 1 the sides cannot be "
    "compared or read, 2 usage, 3 regression, 4 a run is invalid."
)
@click.option("--baseline", metavar="NAME|DIR", help="A saved baseline, a folder of runs or a pattern.")
@click.option("--current", required=True, multiple=True, metavar="DIR", help="Runs to judge; may be repeated.")
@comparison_options
@click.option("--save-baseline", metavar="NAME", help="Save the current runs as this baseline, if the gate lets them.")
@click.option("--markdown", type=_FILE, help="Write a summary for a pull request there.")
@click.option("--junit", type=_FILE, help="Write JUnit XML there, a test case a point and metric.")
@click.option(
    "--github-action-benchmark",
    "action_file",
    type=_FILE,
    help="Write the current runs there for github-action-benchmark (customBiggerIsBetter).",
)
@click.option("--fail-inconclusive", is_flag=True, help="Exit 1 where the data cannot tell, too.")
def gate(
    baseline: str | None,
    current: tuple[str, ...],
    metrics: dict[str, float | None],
    threshold: float,
    allowed: frozenset[str],
    paired: bool,
    baseline_dir: Path,
    as_json: bool,
    save_baseline: str | None,
    markdown: Path | None,
    junit: Path | None,
    action_file: Path | None,
    fail_inconclusive: bool,
) -> None:
    """Judge repeated runs against a baseline, for CI.

    A regression needs a change for the worse that is beyond the threshold and that the noise between runs cannot
    explain; both sides need repeats (5 find a change of 5 % at 1.5 % noise). `neobench bisect-noise` recommends
    thresholds and repeats for a machine. docs/compare-and-gate.md says how a gate decides.

    \b
    neobench gate --current runs/sweep-main --save-baseline main
    neobench gate --baseline main --current runs/sweep-gate --noise-threshold 3%
    neobench gate --baseline main --current runs/sweep-gate --metric output_throughput:3% --metric p99_ttft_ms:10% \\
      --markdown summary.md --junit gate.xml
    """
    if baseline is None and save_baseline is None:
        raise click.UsageError("nothing to do: give --baseline to compare with, or --save-baseline to save the runs")
    side = side_of(current, baseline_dir)
    code = 0
    if baseline is not None:
        from neobench.reports.compare_table import comparison_junit, comparison_markdown
        from neobench.results.compare import compare
        from neobench.results.directions import GATED

        rules = rules_of(metrics, threshold, allowed, paired=paired, usual=GATED)
        comparison = compare(side_of([baseline], baseline_dir), side, rules)
        show_comparison(comparison, as_json=as_json)
        if markdown is not None:
            write_report(markdown, comparison_markdown(comparison))
        if junit is not None:
            write_report(junit, comparison_junit(comparison))
        code = exit_code(comparison, fail_inconclusive=fail_inconclusive)
    if action_file is not None:
        _write_action_file(side, action_file)
    if save_baseline is not None:
        _save(save_baseline, side, baseline_dir, code)
    sys.exit(code)


def exit_code(comparison: Comparison, *, fail_inconclusive: bool = False) -> int:
    from neobench.results.compare import Verdict

    incomparable = comparison.with_verdict(Verdict.INCOMPARABLE)
    if comparison.with_verdict(Verdict.REGRESSED):
        return EXIT_REGRESSION
    if any("validity" in point.differing for point, _ in incomparable):
        return EXIT_INVALID
    if incomparable or comparison.missing or comparison.problems or not comparison.points:
        click.echo("neobench: not all could be compared; the notes below the table say what, and --allow", err=True)
        return EXIT_ERROR
    return EXIT_ERROR if fail_inconclusive and comparison.with_verdict(Verdict.INCONCLUSIVE) else 0


def _save(name: str, side: Side, folder: Path, code: int) -> None:
    from neobench.results.baseline import save_baseline
    from neobench.results.store import StoreError

    if code != 0:
        click.echo(
            f"neobench: the baseline {name} is left as it was, because the gate did not let the runs pass", err=True
        )
        return
    if side.problems:
        raise click.ClickException("\n".join(["no baseline is saved of runs that cannot all be read:", *side.problems]))
    try:
        path = save_baseline(name, side, folder)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    num_runs = sum(len(point.runs) for point in side.points)
    click.echo(f"Baseline {name} in {path} (points: {len(side.points)}, runs: {num_runs})", err=True)


def _write_action_file(side: Side, path: Path) -> None:
    from neobench.results.exports import action_benchmark_document
    from neobench.results.store import StoreError, load_run

    try:
        runs = [load_run(Path(run.name)) for point in side.points for run in point.runs]
    except StoreError as error:
        raise click.ClickException(f"--github-action-benchmark needs run folders: {error}") from None
    document = action_benchmark_document(runs, bigger_is_better=True)
    write_report(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
