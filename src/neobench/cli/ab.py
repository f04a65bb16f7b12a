"""`neobench ab`: two settings, engines or revisions in one job, in turns, and the paired comparison."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click

from neobench.cli.comparing import judging_options, rules_of, show_comparison, write_report
from neobench.cli.turns import TurnSide, check_sides, measure_turns, runs_of


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Exit codes: those of neobench gate; 4 too when the turns were interrupted.",
)
@click.option("--a", "a_options", metavar="OPTIONS", default="", help="Options of `neobench run` of the baseline side.")
@click.option("--b", "b_options", metavar="OPTIONS", default="", help="Options of the side that is judged.")
@click.option("--a-rev", metavar="REVISION", help="Run the baseline side with neobench as of this git revision.")
@click.option("--b-rev", metavar="REVISION", help="The same for the side that is judged.")
@click.option(
    "--prepare",
    metavar="COMMAND",
    help="Run this by the shell in the checkout of each revision first, to build what it needs: a fresh clone has no "
    "native CPU attention.",
)
@click.option("--turns", type=click.IntRange(2), default=7, show_default=True, help="Runs of each side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first turn.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs; the same command goes on in it. Default: runs/<date>-ab.",
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write a summary there.")
@judging_options
@click.argument("common", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF RUN]...")
def ab(
    a_options: str,
    b_options: str,
    a_rev: str | None,
    b_rev: str | None,
    prepare: str | None,
    turns: int,
    seed: int,
    output: Path | None,
    markdown: Path | None,
    metrics: dict[str, float | None],
    threshold: float,
    allowed: frozenset[str],
    as_json: bool,
    common: tuple[str, ...],
) -> None:
    """Measure two sides in turns, A B B A, and compare them turn by turn.

    All options that are not named below go to `neobench run` on both sides; --a and --b add their own. The two runs
    of a turn have the same requests, each with an engine started anew, so requests and a slow drift of the machine
    cancel.

    \b
    neobench ab --a "--engine gpu_only" --b "--engine neo" --workload carperai --rate 4 --turns 7
    neobench ab --a-rev main --b-rev HEAD --engine neo --workload carperai --rate 4      # two git revisions
    """
    from neobench.cli.gate import exit_code
    from neobench.cli.run import EXIT_INVALID
    from neobench.reports.compare_table import comparison_markdown
    from neobench.results.compare import compare
    from neobench.results.directions import GATED
    from neobench.results.points import read_side

    if (a_options, a_rev) == (b_options, b_rev):
        raise click.UsageError("both sides are the same; for the noise of this machine see `neobench bisect-noise`")
    folder = output or Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-ab"
    with contextlib.ExitStack() as stack:
        checkouts = [None if rev is None else stack.enter_context(checkout(rev, prepare)) for rev in (a_rev, b_rev)]
        sides = [
            TurnSide(
                name, _split(text), source, None if source is None else _git("-C", str(source), "rev-parse", "HEAD")
            )
            for name, text, source in zip("ab", (a_options, b_options), checkouts, strict=True)
        ]
        check_sides(sides, common)
        complete = measure_turns(sides, common, turns, seed, folder)
    labels = [
        " ".join(part for part in (f"{name}:", text, rev and f"revision {rev}") if part)
        for name, text, rev in (("A", a_options, a_rev), ("B", b_options, b_rev))
    ]
    base, current = (read_side(label, runs_of(folder, side)) for label, side in zip(labels, "ab", strict=True))
    if not base.points or not current.points:
        raise click.ClickException(f"interrupted before a turn was complete; {folder} has what was measured")
    comparison = compare(base, current, rules_of(metrics, threshold, allowed, paired=True, usual=GATED))
    show_comparison(comparison, as_json=as_json)
    if markdown is not None:
        write_report(markdown, comparison_markdown(comparison))
    click.echo(f"Runs: {folder}", err=True)
    sys.exit(exit_code(comparison) if complete else EXIT_INVALID)


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise click.UsageError(f"{text!r}: {error}") from None


@contextlib.contextmanager
def checkout(revision: str, prepare: str | None) -> Iterator[Path]:
    """A clone of this repository at a revision, in a temporary folder; the repository itself is left as it is."""
    root = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="neobench-") as folder:
        clone = Path(folder) / "checkout"
        _git("clone", "--quiet", "--shared", "--no-checkout", root, str(clone))
        _git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
        if not (clone / "src/neobench/__main__.py").exists():
            raise click.UsageError(f"{revision} holds no neobench: run this inside a checkout of neobench")
        if prepare is not None:
            code = subprocess.run(prepare, shell=True, cwd=clone, stdout=sys.stderr, check=False).returncode
            if code != 0:
                raise click.ClickException(f"--prepare failed in the checkout of {revision} (exit code {code})")
        yield clone


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        raise click.ClickException("revisions need git, which is not installed") from None
    except subprocess.CalledProcessError as error:
        raise click.UsageError(f"git {arguments[0]}: {error.stderr.strip()}") from None
