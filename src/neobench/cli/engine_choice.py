"""Which engine gets which options of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from neobench.engines.entry import EngineEntry

_Command = TypeVar("_Command", bound=Callable[..., Any])


def extra_options(command: _Command) -> _Command:
    """--engine-option, for what has no flag of its own: engines of other packages."""
    return click.option(
        "--engine-option",
        "extra",
        multiple=True,
        metavar="NAME=VALUE",
        help="For engines of other packages; VALUE is JSON, or else text. May be repeated.",
    )(command)


def given_options(options: Mapping[str, Any], extra: Iterable[str] = ()) -> dict[str, Any]:
    """What was given: not None, nor the empty list of a flag that may be repeated; and `extra`, NAME=VALUE each.

    Raises click.UsageError for an extra that is no NAME=VALUE, or that has a flag of its own.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    for text in extra:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--engine-option {text} is not NAME=VALUE")
        if name in options:
            raise click.UsageError(f"--engine-option {text} has a flag of its own: {flag(name)} {value}")
        given[name] = _json_or_text(value)
    return given


def check_engines(chosen: Iterable[str], given: Collection[str]) -> None:
    """Raises click.UsageError for an unknown engine, and for a given option that none of the chosen ones takes."""
    from neobench.engines.registry import find
    from neobench.harness.engine import EngineError

    try:
        entries = {name: find(name, given)[0] for name in chosen}
    except EngineError as error:
        raise click.UsageError(str(error)) from None
    model_given = click.get_current_context().get_parameter_source("model") is ParameterSource.COMMANDLINE
    for option in [*given, *(["model"] if model_given else [])]:
        if not any(entry.takes(option) for entry in entries.values()):
            if option == "model" and any(entry.takes("served_model") for entry in entries.values()):
                raise click.UsageError("a server that runs already has its model: --served-model names it")
            takers = _takers(option)
            raise click.UsageError(
                f"{flag(option)} is no option of {' or '.join(entries)}; "
                + (f"engines that take it: {', '.join(takers)}" if takers else _nearest(option, entries.values()))
            )


def _nearest(option: str, entries: Iterable[EngineEntry]) -> str:
    from neobench.engines.launch import nearest_names

    known = dict.fromkeys(flag(name) for entry in entries for name in entry.options if name not in entry.settings)
    hint = f"; did you mean {nearest_names('--' + option.replace('_', '-'), known)}?" if known else ""
    return "no engine takes it" + hint


def flag(option: str) -> str:
    """As it stands on the command line of the command that is running."""
    known = {parameter.name for parameter in click.get_current_context().command.params}
    return "--" + option.replace("_", "-") if option in known else f"--engine-option {option}"


def options_of(engine: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that this engine takes."""
    from neobench.engines.registry import find

    entry, _ = find(engine, given)
    return {name: value for name, value in given.items() if entry.takes(name)}


def model_of(engine: str, options: Mapping[str, Any], model: str) -> str:
    """What a run measures: `model`, or for a server that is running already the name it is asked by."""
    from neobench.engines.registry import find

    entry, _ = find(engine, options)
    return str(options.get("served_model", "the one served")) if entry.takes("served_model") else model


def _takers(option: str) -> list[str]:
    from neobench.engines.plugins import plugins
    from neobench.engines.registry import ENGINES

    entries = {**{found.name: found.entry for found in plugins()}, **ENGINES}
    return sorted(name for name, entry in entries.items() if entry is not None and entry.takes(option))


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
