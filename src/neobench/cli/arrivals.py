"""Options of `neobench run` that say when requests arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from neobench.cli.options import rates

if TYPE_CHECKING:
    from neobench.harness.request import PromptRequest
    from neobench.harness.spec import ArrivalSpec, SessionSpec

KINDS = ("poisson", "constant", "gamma", "trace", "all-at-once", "closed")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--arrival",
        "kind",
        type=click.Choice(KINDS),
        default="poisson",
        show_default=True,
        help="Gaps between requests: exponential, all alike, gamma with --burstiness, or as recorded in a trace; or "
        "all requests at once; or a closed loop, which keeps --concurrency requests in flight.",
    ),
    click.option(
        "--speed",
        "speeds",
        type=rates,
        metavar="SPEEDS",
        show_default="1",
        help="With --arrival trace, instead of --rate: so many times as fast; several, comma-separated, make a curve.",
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
        help="Most requests in flight, with --turns most sessions in progress; what arrives beyond it waits in the "
        "client, and its latency counts that wait.",
    ),
    click.option("--arrival-seed", type=click.IntRange(0), show_default="from --seed", help="Of the gaps drawn."),
)


def arrival_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def arrival_specs(rates: Sequence[float], options: dict[str, Any]) -> dict[float, ArrivalSpec]:
    """The arrivals of each rate, or of each speed of a trace; takes what arrival_options added out of `options`.

    Raises click.UsageError with the spec's own sentence for options that do not go together.
    """
    from neobench.harness.spec import RATED_KINDS, ArrivalSpec, SpecError

    speeds = options.pop("speeds")
    common = {name: options.pop(name) for name in ("kind", "burstiness", "end_rate", "concurrency")}
    common["kind"] = common["kind"].replace("-", "_")
    common["seed"] = options.pop("arrival_seed")
    kind = common["kind"]
    if speeds is not None and kind != "trace":
        raise click.UsageError("--speed goes with --arrival trace; other arrivals have a --rate or a --concurrency")
    try:
        if kind in RATED_KINDS:
            return {rate: ArrivalSpec(rate=rate, **common) for rate in rates}
        if click.get_current_context().get_parameter_source("rates") is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--arrival {kind.replace('_', '-')} sets the rate itself: {_INSTEAD_OF_RATE[kind]}")
        if kind == "trace":
            return {speed: ArrivalSpec(speed=speed, **common) for speed in speeds or (1.0,)}
        if kind == "closed" and common["concurrency"] is None:
            raise click.UsageError("--arrival closed needs --concurrency: how many requests are in flight")
        return {float(common["concurrency"] or 0): ArrivalSpec(**common)}
    except SpecError as error:
        raise click.UsageError(str(error)) from None


_INSTEAD_OF_RATE = {
    "trace": "use --speed instead of --rate",
    "closed": "use --concurrency instead of --rate",
    "all_at_once": "leave out --rate",
}


def load_slug(arrival: ArrivalSpec) -> str:
    """Of folder names."""
    if arrival.rate is not None:
        return f"rate-{arrival.rate:g}"
    if arrival.kind == "closed":
        return f"concurrency-{arrival.concurrency}"
    return "all-at-once" if arrival.kind == "all_at_once" else f"speed-{arrival.speed:g}"


def load_label(arrival: ArrivalSpec, sessions: SessionSpec | None = None) -> str:
    if arrival.rate is not None:
        return f"{arrival.rate:g} {'req/s' if sessions is None else 'sessions/s'}"
    if arrival.kind == "closed":
        return f"{arrival.concurrency} {'in flight' if sessions is None else 'sessions at a time'}"
    return "once" if arrival.kind == "all_at_once" else f"{arrival.speed:g} x its trace"


def expected_span_s(arrival: ArrivalSpec, requests: Sequence[PromptRequest]) -> float:
    """From the start of the schedule to the last arrival: exact for a trace, else on average over seeds.

    Of sessions to the last one's last turn, were answers there at once.
    """
    if arrival.kind == "trace":
        return (requests[-1].arrival_ns or 0) / 1e9 / (arrival.speed or 1.0)
    num_arrivals = sum(request.turn == 0 for request in requests)
    think_s = sum(request.think_ns for request in requests) / num_arrivals / 1e9
    return arrival.expected_span_s(num_arrivals) + think_s
