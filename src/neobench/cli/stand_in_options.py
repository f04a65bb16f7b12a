"""Options of `neobench run` for the servers whose true latencies are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--first-token-ms",
        type=click.FloatRange(0),
        metavar="MS",
        show_default="at once",
        help="null_server: from a request to its first token.",
    ),
    click.option(
        "--inter-token-ms",
        type=click.FloatRange(0),
        metavar="MS",
        show_default="at once",
        help="null_server: from one token to the next.",
    ),
    click.option(
        "--log-instants",
        is_flag=True,
        default=None,
        help="null_server, modelled: keep when each request came in there and each token left, beside the engine's log "
        "(<engine>.instants.jsonl).",
    ),
)


def stand_in_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
