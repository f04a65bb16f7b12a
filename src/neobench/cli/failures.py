"""What failed requests said, for the terminal: the summary has their kinds alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

MOST = 3


def show_failures(runs: Sequence[Path]) -> None:
    """The most frequent errors of each run, on stderr."""
    for run in runs:
        errors = frequent_errors(run)
        if not errors:
            continue
        click.echo(f"{run.name}: {errors.total()} failed requests; most often:", err=True)
        for (outcome, error), count in errors.most_common(MOST):
            click.echo(f"  {count} x {outcome}: {error}", err=True)


def frequent_errors(run: Path) -> Counter[tuple[str, str]]:
    """(outcome, error) of the measured requests that failed. Raises StoreError."""
    from neobench.results.record import Outcome
    from neobench.results.store import iter_records

    return Counter(
        (record.outcome.value, record.error or "no reason given")
        for record in iter_records(run)
        if record.outcome not in (Outcome.OK, Outcome.INTERRUPTED) and not record.warmup
    )
