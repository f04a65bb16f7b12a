"""Options of `neobench run` for the servers whose true latencies are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from neobench.engines.service_laws import DEFAULT_MEAN_MS, EXPONENTIAL, LAWS

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
        "--service-ms",
        type=click.FloatRange(0, min_open=True),
        metavar="MS",
        show_default=f"{DEFAULT_MEAN_MS:g}",
        help="modelled: mean time for which a request is served, alone and after those before it.",
    ),
    click.option(
        "--service-law",
        type=click.Choice(LAWS),
        show_default=EXPONENTIAL,
        help="modelled: of these times; with Poisson arrivals an M/M/1 or an M/D/1 queue.",
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
