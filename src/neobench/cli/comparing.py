"""What `compare`, `gate` and `ab` share: their options, how a side is found, and what is written."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from neobench.results.compare import Comparison, Rules
    from neobench.results.points import Side

_Command = TypeVar("_Command", bound=Callable[..., Any])


def judging_options(command: _Command) -> _Command:
    """metrics, threshold, allowed, as_json"""
    for option in reversed(_JUDGING):
        command = option(command)
    return command


def comparison_options(command: _Command) -> _Command:
    """Those of judging, and paired and baseline_dir for sides that were measured before."""
    for option in reversed((*_JUDGING[:-1], *_SIDES, _JUDGING[-1])):
        command = option(command)
    return command


def _share(text: str) -> float:
    """3% or 0.03"""
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share such as 3% or 0.03") from None
    if not 0 < value < 1:
        raise click.BadParameter(f"{text!r} must lie between 0 and 100 %; 3 percent is written 3% or 0.03")
    return value


def _shared(_context: click.Context, _option: click.Parameter, text: str) -> float:
    return _share(text)


def _metrics(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, float | None]:
    from neobench.results.directions import direction_of

    found: dict[str, float | None] = {}
    for text in texts:
        name, _, limit = text.partition(":")
        try:
            direction_of(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        found[name] = _share(limit) if limit else None
    return found


def _fields(_context: click.Context, _option: click.Parameter, names: Sequence[str]) -> frozenset[str]:
    from neobench.results.compare import COMPARED_FIELDS

    for name in names:
        if name not in COMPARED_FIELDS:
            nearest = difflib.get_close_matches(name, COMPARED_FIELDS, n=1, cutoff=0.0)[0]
            known = ", ".join(COMPARED_FIELDS)
            raise click.BadParameter(f"{name!r} is none of {known}; the nearest one is {nearest!r}")
    return frozenset(names)


_JUDGING = (
    click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="NAME[:SHARE]",
        callback=_metrics,
        help="Judge this figure of summary.json, with a threshold of its own; may be repeated, and replaces the usual "
        "ones.",
    ),
    click.option(
        "--noise-threshold",
        "threshold",
        metavar="SHARE",
        default="3%",
        show_default=True,
        callback=_shared,
        help="Changes up to this share of the baseline are tolerated.",
    ),
    click.option(
        "--allow",
        "allowed",
        multiple=True,
        metavar="FIELD",
        callback=_fields,
        help="Compare although this field differs: workload, load, model, dtype, hardware, provenance, tool, draws, "
        "validity.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout."),
)
_SIDES = (
    click.option(
        "--paired",
        is_flag=True,
        help="Runs of both sides belong together two by two: by their requests where those are the same (as in repeats "
        "of a sweep), else by their starts. What both share cancels.",
    ),
    click.option(
        "--baseline-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default="baselines",
        show_default=True,
        help="Where saved baselines are.",
    ),
)


def rules_of(
    metrics: dict[str, float | None],
    threshold: float,
    allowed: frozenset[str],
    *,
    paired: bool,
    usual: Sequence[str] = (),
) -> Rules:
    from neobench.results.compare import Rules

    chosen = metrics or dict.fromkeys(usual)
    return Rules(
        thresholds={name: threshold if limit is None else limit for name, limit in chosen.items()},
        default_threshold=threshold,
        allowed=allowed,
        paired=paired,
    )


def side_of(arguments: Sequence[str], baseline_dir: Path) -> Side:
    """Runs of folders and patterns, or one saved baseline. Raises click.UsageError where there is nothing."""
    from neobench.results.baseline import is_baseline, known_baselines, load_baseline
    from neobench.results.points import expand, read_side
    from neobench.results.store import StoreError

    name = " ".join(arguments)
    paths = [path for argument in arguments for path in expand(argument)]
    if not paths and len(arguments) == 1 and is_baseline(name, baseline_dir):
        try:
            return load_baseline(name, baseline_dir)
        except StoreError as error:
            raise click.ClickException(str(error)) from None
    if not paths:
        near = difflib.get_close_matches(name, known_baselines(baseline_dir), n=1)
        hint = f"; did you mean the baseline {near[0]!r}?" if near else ""
        raise click.UsageError(
            f"{name!r} is no folder, no pattern that matches one, no baseline in {baseline_dir}{hint}"
        )
    side = read_side(name, paths)
    if not side.points:
        raise click.ClickException("\n".join([f"{name} holds no run that can be read:", *side.problems]))
    return side


def show_comparison(comparison: Comparison, *, as_json: bool) -> None:
    from neobench.reports.compare_table import comparison_document, comparison_table

    if as_json:
        click.echo(json.dumps(comparison_document(comparison), indent=2))
        return
    from rich.console import Console

    console = Console()
    # In a log without a terminal a table of ten columns would be cut to 80 characters.
    Console(width=max(console.width, 140) if not console.is_terminal else None).print(comparison_table(comparison))


def write_report(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
