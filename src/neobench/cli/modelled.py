"""Options of `neobench run` for hardware that is modelled, and what differs in a run that is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from neobench.harness.driver import DriveOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])
_T = TypeVar("_T")

_OPTIONS = (
    click.option(
        "--hardware",
        metavar="MACHINE",
        help="Model the engine on this machine, in virtual time: a name of `neobench list hardware`, GPU+HOST, "
        "your own catalogue (FILE.yaml or FILE.yaml:MACHINE), or the file of a profile from `neobench profile`.",
    ),
    click.option(
        "--host-bandwidth",
        type=click.Choice(["low", "typical", "high"]),
        help="With --hardware: where in the range of what a slice of a host may read from its memory.",
        show_default="typical",
    ),
    click.option(
        "--noise",
        type=click.FloatRange(0),
        help="With --hardware: each iteration's time varies by this standard deviation of its logarithm.",
        show_default="none",
    ),
)

HELPER_INTERVAL_S = 30.0
"""Virtual seconds between looks at the engine, and between steps of the progress display."""


def modelled_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_modelled(engine_options: Collection[str]) -> bool:
    return "hardware" in engine_options


def run_in_its_time(main: Coroutine[Any, Any, _T], engine_options: Collection[str]) -> _T:
    """In virtual time where engines are modelled, else in real time."""
    if is_modelled(engine_options):
        from neobench.harness.virtual_time import run_in_virtual_time

        return run_in_virtual_time(main)
    from neobench.harness.runner import run_async

    return run_async(main)


def in_its_time(options: DriveOptions, engine_options: Mapping[str, Any]) -> DriveOptions:
    """With the clock of the loop that `run_in_its_time` chooses."""
    if not is_modelled(engine_options):
        return options
    from dataclasses import replace

    from neobench.harness.virtual_time import VirtualClock

    return replace(
        options,
        clock=VirtualClock(),
        progress_interval_s=HELPER_INTERVAL_S,
        liveness_interval_s=HELPER_INTERVAL_S,
    )
