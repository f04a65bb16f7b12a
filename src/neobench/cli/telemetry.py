"""The option of `neobench run` for what is sampled beside a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def telemetry_options(command: _Command) -> _Command:
    return click.option(
        "--telemetry-interval",
        "telemetry_interval_s",
        type=click.FloatRange(0),
        metavar="SECONDS",
        default=0.5,
        show_default=True,
        help="Between samples of CPUs, GPUs, processes, the engine's queues and KV use; 0 samples nothing.",
    )(command)
