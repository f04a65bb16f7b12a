"""What `neobench run` shows at its end: one table, and one figure when there is a curve to draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from neobench.reports.run import ReportRun

_POOR_PREDICTION = 0.35
"""Of the measured time, as a weighted absolute error. In the published runs on two cores it is 0.15 to 0.30."""


def present(run_paths: Sequence[Path], folder: Path, *, quiet: bool) -> None:
    """Table on stdout and as table.md, paths on stderr.

    Figures: load-latency.{png,pdf,svg,csv} for two runs and more, telemetry.{png,pdf,svg} in each run's own folder.
    """
    from neobench.reports.tables import runs_markdown, runs_table

    runs = [_read(path) for path in run_paths]
    (folder / "table.md").write_text(runs_markdown(runs))
    if not quiet:
        from rich.console import Console

        Console().print(runs_table(runs))
    from neobench.reports.telemetry import save_telemetry

    panels = [saved[0] for run, path in zip(runs, run_paths, strict=True) if (saved := save_telemetry(run, path))]
    if len(runs) > 1:
        from neobench.reports.figures import save_load_latency

        save_load_latency(runs, folder / "load-latency")
    if not quiet:
        for run in runs:
            _warn_of_poor_predictions(run)
            for warning in run.warnings:
                click.echo(f"Warning: {run.engine}: {warning}", err=True)
        click.echo(f"Results: {folder}" + (", figure: load-latency.png" if len(runs) > 1 else ""), err=True)
        for panel in panels:
            click.echo(f"Machine and engine over time: {panel}", err=True)


def _warn_of_poor_predictions(run: ReportRun) -> None:
    stats = run.summary["engine_stats"]
    measured_ns = stats.get("measured_iteration_ns", 0)
    error = stats.get("iteration_error_ns", 0) / measured_ns if measured_ns else 0.0
    if error > _POOR_PREDICTION:
        click.echo(
            f"Note: at {run.request_rate:g} req/s {run.engine} planned with times that were off by {error:.0%}; "
            "perhaps the machine was busy when its cost tables were measured. "
            f"`neobench profile --model {run.model}` makes new ones.",
            err=True,
        )


def _read(path: Path) -> ReportRun:
    run, summary = (json.loads((path / name).read_text()) for name in ("run.json", "summary.json"))
    return ReportRun.from_documents(run, summary)
