"""Options of `neobench run` that only vLLM takes; those that it shares with neobench's own engine are in options.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_VLLM_OPTIONS = (
    click.option(
        "--engine-python",
        type=click.Path(dir_okay=False),
        help="vllm: the Python of the environment that has it; default: this one.",
    ),
    click.option(
        "--prefix-caching",
        is_flag=True,
        default=None,
        help="vllm: with its prefix cache; without it each prompt is computed in full, as by the other engines.",
    ),
    click.option(
        "--vllm-args",
        metavar="FLAGS",
        help="vllm: more flags for `vllm serve`, in one string; they prevail over those that neobench sets.",
    ),
)


def vllm_options(command: _Command) -> _Command:
    for option in reversed(_VLLM_OPTIONS):
        command = option(command)
    return command
