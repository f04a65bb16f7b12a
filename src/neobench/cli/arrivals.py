"""Options of `neobench run` that say when requests arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from neobench.harness.spec import ArrivalSpec

KINDS = ("poisson", "constant", "gamma")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--arrival",
        "kind",
        type=click.Choice(KINDS),
        default="poisson",
        show_default=True,
        help="Gaps between requests: exponential, all alike, or gamma with --burstiness.",
    ),
    click.option(
        "--burstiness",
        type=click.FloatRange(0, min_open=True),
        help="Shape of gamma gaps: 1 is Poisson, less is burstier.",
    ),
    click.option(
        "--end-rate",
        type=click.FloatRange(0, min_open=True),
        help="The rate changes linearly in time from --rate to this one.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        help="Most requests in flight; what arrives beyond it waits in the client, and its latency counts that wait.",
    ),
)


def arrival_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def arrival_spec(rate: float, **options: Any) -> ArrivalSpec:
    """Raises click.UsageError with the spec's own sentence for options that do not go together."""
    from neobench.harness.spec import ArrivalSpec, SpecError

    try:
        return ArrivalSpec(rate=rate, **options)
    except SpecError as error:
        raise click.UsageError(str(error)) from None
