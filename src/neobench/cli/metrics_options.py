"""Options of `neobench run` that say which figures to make of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def percentiles(value: str) -> tuple[float, ...]:
    """Different numbers between 0 and 100, comma-separated; rising."""
    try:
        numbers = tuple(sorted({float(part) for part in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of percentiles, e.g. 50,90,99.9") from None
    if not all(0 < number < 100 for number in numbers):
        raise click.BadParameter(f"percentiles lie between 0 and 100, both left out, not {value!r}")
    return numbers


def goodput_limits(_ctx: click.Context, _param: click.Parameter, pairs: Sequence[str]) -> dict[str, float]:
    """{"ttft": 500.0} of ttft:500; vLLM's several pairs in one argument are taken too."""
    from neobench.harness.spec import SpecError, check_goodput

    limits_ms: dict[str, float] = {}
    for pair in (part for argument in pairs for part in argument.split()):
        name, _, limit = pair.partition(":")
        try:
            limit_ms = float(limit)
        except ValueError:
            raise click.BadParameter(f"{pair!r} is not a metric and its limit in ms, e.g. ttft:500") from None
        if name in limits_ms:
            raise click.BadParameter(f"{name} has two limits")
        limits_ms[name] = limit_ms
    try:
        check_goodput(limits_ms)
    except SpecError as error:
        raise click.BadParameter(str(error)) from None
    return limits_ms


_OPTIONS = (
    click.option(
        "--percentiles",
        type=percentiles,
        metavar="LIST",
        help="Reported beside the median and p99, e.g. 90,95,99.9. With fewer requests than one needs the run is "
        "INVALID (p99.9 needs 4603, see docs/metrics.md).",
    ),
    click.option(
        "--goodput",
        "goodput_ms",
        multiple=True,
        callback=goodput_limits,
        metavar="METRIC:MS",
        help="Limit on ttft, tpot or e2el; several may be given. Reports the requests/s that keep to all of them.",
    ),
)


def metrics_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
