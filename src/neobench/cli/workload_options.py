"""Options of `neobench run` that say what is asked: the workload, its source, its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from neobench.cli.session_options import SESSION_OPTIONS, pop_sessions

WORKLOAD_SEEDS = ("length_seed", "order_seed", "prompt_seed", "session_seed")
FIELDS = (*WORKLOAD_SEEDS, "prefix_groups", "prefix_tokens")
"""Options that are fields of WorkloadSpec under the same name."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _assignment(value: str) -> tuple[str, str]:
    name, equals, text = value.partition("=")
    if not (equals and name.strip() and text.strip()):
        raise click.BadParameter(f"{value!r} is not NAME=VALUE, such as sigma=0.5")
    return name.strip().replace("-", "_"), text.strip()


_OPTIONS = (
    click.option(
        "--workload",
        default="carperai",
        show_default=True,
        help="What is asked: a name, trace:FILE, synthetic:IN,OUT ...; see `neobench list workloads`.",
    ),
    click.option(
        "--workload-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Requests from a local file instead of the shipped table: JSON, JSONL or CSV.",
    ),
    click.option(
        "--workload-tokenizer",
        help="Count a dataset's lengths with this tokenizer.json or hub model ([data] and [engine] extras).",
    ),
    click.option(
        "--workload-option",
        "workload_assignments",
        type=_assignment,
        metavar="NAME=VALUE",
        multiple=True,
        help="Another option of the workload, such as sigma=0.5 of synthetic:lognormal; may be repeated.",
    ),
    click.option(
        "--skip-malformed",
        is_flag=True,
        help="Leave malformed rows of the workload's file out, and record how many; else they are an error.",
    ),
    click.option("--length-seed", type=click.IntRange(0), show_default="from --seed", help="Of the lengths drawn."),
    click.option("--order-seed", type=click.IntRange(0), show_default="from --seed", help="Of their order."),
    click.option("--prompt-seed", type=click.IntRange(0), show_default="from --seed", help="Of the prompts' tokens."),
    click.option(
        "--prefix-groups",
        type=click.IntRange(1),
        help="Each prompt begins with one of so many shared prefixes; without it no two prompts begin alike.",
    ),
    click.option(
        "--prefix-tokens",
        type=click.IntRange(1),
        help="Length of a shared prefix, in front of the prompt's own length.",
    ),
)


def workload_options(command: _Command) -> _Command:
    for option in reversed((*_OPTIONS, *SESSION_OPTIONS)):
        command = option(command)
    return command


def pop_workload(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what workload_options added out of `options` and returns it as fields of a Session."""
    if (options["prefix_groups"] is None) != (options["prefix_tokens"] is None):
        raise click.UsageError("--prefix-groups and --prefix-tokens go together")
    given = {"file": options.pop("workload_file"), "tokenizer": options.pop("workload_tokenizer")}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.pop("skip_malformed"):
        chosen["skip_malformed"] = True
    for name, value in options.pop("workload_assignments"):
        if name in chosen:
            raise click.UsageError(f"the option {name} of the workload is given twice")
        chosen[name] = value
    return {
        "workload": options.pop("workload"),
        "workload_options": chosen,
        "workload_fields": {"sessions": pop_sessions(options), **{name: options.pop(name) for name in FIELDS}},
    }


def workload_notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the user should know of the requests before they are sent, from the facts of build_requests."""
    if left_out := facts["workload"].get("malformed_rows_left_out"):
        yield f"{left_out} malformed rows of the workload's file were left out."
    for name in ("scaling", "sessions"):
        if facts[name]:
            yield facts[name]["sentence"]
