"""Options of `neobench run` that make its requests turns of sessions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from neobench.harness.spec import SessionSpec, ThinkTimeKind

_KINDS: dict[str, ThinkTimeKind] = {"exponential": "exponential", "fixed": "fixed", "lognormal": "lognormal"}
_TURNS = re.compile(r"(\d+)(?:-(\d+))?")


def _turns(value: str) -> tuple[int, int]:
    parts = _TURNS.fullmatch(value.strip())
    fewest, most = (0, 0) if parts is None else (int(parts[1]), int(parts[2] or parts[1]))
    if not 1 <= fewest <= most:
        raise click.BadParameter(f"{value!r} is not a number of turns, such as 4, or a range of them, such as 1-8")
    return fewest, most


def _think_time(value: str) -> tuple[float, ThinkTimeKind]:
    number, colon, kind = value.strip().partition(":")
    try:
        seconds = float(number)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise click.BadParameter(f"{value!r} does not begin with a number of seconds, such as 2 or 0.5:fixed")
    if not colon:
        return seconds, "exponential"
    if kind not in _KINDS:
        from neobench.engines.launch import nearest_names

        raise click.BadParameter(f"{kind!r} is no distribution; did you mean {nearest_names(kind, _KINDS)}?")
    return seconds, _KINDS[kind]


SESSION_OPTIONS = (
    click.option(
        "--turns",
        type=_turns,
        metavar="N|LOW-HIGH",
        help="Requests are turns of sessions, each prompt behind the history of its session: so many a session, or a "
        "number drawn from a range. --rate and --arrival are then about sessions, for a later turn follows from the "
        "answer before it. --concurrency counts sessions, --num-requests turns.",
    ),
    click.option(
        "--think-time",
        type=_think_time,
        metavar="SECONDS[:KIND]",
        help="With --turns: mean time from the end of a turn to the next, exponential (unless given), fixed or "
        "lognormal. Without it the next turn follows at once.",
    ),
    click.option(
        "--session-seed", type=click.IntRange(0), show_default="from --seed", help="Of turns and times to think."
    ),
)


def pop_sessions(options: dict[str, Any]) -> SessionSpec | None:
    """Takes --turns and --think-time out of `options`. Raises click.UsageError."""
    turns, think_time = options.pop("turns"), options.pop("think_time")
    if turns is None:
        if think_time is not None:
            raise click.UsageError("--think-time goes with --turns: nobody thinks after a request on its own")
        return None
    from neobench.harness.spec import SessionSpec

    if think_time is None:
        return SessionSpec(fewest_turns=turns[0], most_turns=turns[1])
    think_time_s, kind = think_time
    return SessionSpec(fewest_turns=turns[0], most_turns=turns[1], think_time_s=think_time_s, think_time_kind=kind)
