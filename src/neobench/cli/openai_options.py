"""Options of `neobench run` for the `openai` engine: which server, how to speak to it, and what is not stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
HIDDEN = "***"


def header(value: str) -> tuple[str, str]:
    name, equals, content = value.partition("=")
    if not (name.strip() and equals) or any(character in value for character in "\r\n"):
        raise click.BadParameter("a header is written NAME=VALUE, on one line")
    return name.strip(), content.strip()


def json_object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter('it must be a JSON object, such as {"top_k": 1}')
    return found


_OPTIONS = (
    click.option("--base-url", metavar="URL", help="Of the server that --engine openai measures; with or without /v1."),
    click.option(
        "--api", type=click.Choice(["completions", "chat"]), show_default="completions", help="Which of its two APIs."
    ),
    click.option("--served-model", metavar="NAME", show_default="the only one", help="Its name in the API."),
    click.option(
        "--api-key-env",
        metavar="NAME",
        show_default="OPENAI_API_KEY",
        help="Environment variable with the API key, which is never stored.",
    ),
    click.option(
        "--header", type=header, multiple=True, metavar="NAME=VALUE", help="With each request; only the name is stored."
    ),
    click.option("--extra-body", type=json_object, metavar="JSON", help="More fields of each request's body."),
    click.option(
        "--exact-output/--no-exact-output",
        default=None,
        show_default="exact",
        help="Force the number of output tokens (ignore_eos), and call another number an error; or take what comes.",
    ),
    click.option(
        "--prompt",
        type=click.Choice(["ids", "text"]),
        show_default="ids; text for chat",
        help="Token ids have an exact length; text of about that many tokens is for services that take no ids.",
    ),
    click.option(
        "--vocab-size",
        type=click.IntRange(2),
        show_default="32000",
        help="Token ids of prompts are below it; a smaller one than the model's is harmless.",
    ),
)


def openai_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def stored(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a spec keeps them: without the values of headers. exact_output has a place of its own there."""
    kept = {name: value for name, value in options.items() if name != "exact_output"}
    return {**kept, "header": [[name, HIDDEN] for name, _ in kept["header"]]} if "header" in kept else kept


def stored_command(words: Sequence[str]) -> list[str]:
    """A command line without the values of headers."""
    kept: list[str] = []
    for word in words:
        after_flag = bool(kept) and kept[-1] == "--header"
        start = "" if after_flag else "--header="
        if word.startswith(start) and (after_flag or word.startswith("--header=")):
            word = start + word[len(start) :].partition("=")[0] + "=" + HIDDEN
        kept.append(word)
    return kept
