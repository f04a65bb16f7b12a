"""The option of `neobench run` for how many processes send the requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def client_options(command: _Command) -> _Command:
    return click.option(
        "--client-processes",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="That send the requests, each its share; for loads that one core cannot send (see `neobench selftest`).",
    )(command)
