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

    Figures: load-latency.{png,pdf,svg,csv} for two runs and more; latency.{png,pdf,svg} and telemetry.{png,pdf,svg}
    in each run's own folder.
    """
    from neobench.reports.tables import runs_markdown, runs_table

    runs = [_read(path) for path in run_paths]
    (folder / "table.md").write_text(runs_markdown(runs))
    if not quiet:
        from rich.console import Console

        Console().print(runs_table(runs))
    drawn: dict[str, list[Path]] = {}
    for run, path in zip(runs, run_paths, strict=True):
        for what, figure in _drawn(run, path).items():
            drawn.setdefault(what, []).append(figure)
    if len(runs) > 1:
        from neobench.reports.figures import save_load_latency

        save_load_latency(runs, folder / "load-latency")
    if not quiet:
        for run in runs:
            _warn_of_poor_predictions(run)
        _show_warnings(runs)
        click.echo(f"Results: {folder}" + (", figure: load-latency.png" if len(runs) > 1 else ""), err=True)
        for what, figures in drawn.items():
            for figure in figures:
                click.echo(f"{what} over time: {figure}", err=True)


def draw_run(path: Path) -> None:
    """latency.{png,pdf,svg} and telemetry.{png,pdf,svg} in a run's own folder, where it has what they show."""
    _drawn(_read(path), path)


def _drawn(run: ReportRun, path: Path) -> dict[str, Path]:
    """The image of each figure, by what it shows."""
    from neobench.reports.latency_over_time import save_latency
    from neobench.reports.telemetry import save_telemetry

    saves = (("Latency of each request", save_latency), ("Machine and engine", save_telemetry))
    return {what: saved[0] for what, save in saves if (saved := save(run, path))}


def _show_warnings(runs: Sequence[ReportRun]) -> None:
    """Each once, with the runs that it is about. Unsupported percentiles have a mark and a note in the table."""
    from neobench.results.validity import TOO_FEW

    about: dict[str, list[str]] = {}
    for run in runs:
        for warning in (one for one in run.warnings if not one.startswith(TOO_FEW)):
            about.setdefault(warning, []).append(run.title)
    for warning, titles in about.items():
        click.echo(f"Warning: {'; '.join(titles)}: {warning}", err=True)


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
