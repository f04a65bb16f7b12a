"""Which engine gets which options of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click
from click.core import ParameterSource


def check_engines(chosen: Iterable[str], given: Iterable[str]) -> None:
    """Raises click.UsageError for an unknown engine, and for a given option that none of the chosen ones takes."""
    from neobench.engines.registry import ENGINES, find
    from neobench.harness.engine import EngineError

    try:
        entries = {name: find(name)[0] for name in chosen}
    except EngineError as error:
        raise click.UsageError(str(error)) from None
    for option in given:
        if not any(entry.takes(option) for entry in entries.values()):
            takers = [name for name, entry in ENGINES.items() if entry.takes(option)]
            raise click.UsageError(
                f"{flag(option)} is no option of {' or '.join(entries)}; engines that take it: {', '.join(takers)}"
            )


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that were left out: None, or an empty list of a flag that may be repeated."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def given_names(options: Mapping[str, Any]) -> list[str]:
    """Of the options that were given; "model" has a default, and counts when it stands on the command line."""
    source = click.get_current_context().get_parameter_source("model")
    return [*options, *(["model"] if source is ParameterSource.COMMANDLINE else [])]


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def options_of(engine: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that this engine takes."""
    from neobench.engines.registry import find

    entry, _ = find(engine)
    return {name: value for name, value in given.items() if entry.takes(name)}
