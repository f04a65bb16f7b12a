"""An OpenAI-compatible server that answers at once, or after delays that are known, in a process of its own.

    python -m neobench.engines.null_server PORT [--first-token-ms MS] [--inter-token-ms MS] [--log FILE]

Without delays it measures the client and its HTTP: a reply's tokens leave in one write, for a server that takes time
for each would be what is measured. With delays token i of a request that came in at t is due at
t + first_token_ms + (i - 1) inter_token_ms, however many requests there are.
"""

from __future__ import annotations

import sys

from neobench.engines.launch import Launch
from neobench.engines.stand_in import StandInEngine, check_options, limits, number_of
from neobench.engines.stand_in_http import Plan, Timing, argument_parser, run_server

__all__ = ["engine", "fixed_delays", "limits"]

MODEL = "null"
OPTIONS = ("max_model_tokens", "first_token_ms", "inter_token_ms", "log_instants")
_DELAYS = ("first_token_ms", "inter_token_ms")


def engine(launch: Launch) -> StandInEngine:
    """Raises EngineError for an option that is unknown or no delay."""
    check_options(launch.options, OPTIONS)
    delays = {name: number_of(launch.options, name, None) for name in _DELAYS}
    flags = [f"--{name.replace('_', '-')}={delay!r}" for name, delay in delays.items() if delay is not None]
    return StandInEngine(
        "null_server", launch, module="neobench.engines.null_server", model=MODEL, flags=flags, facts=delays
    )


def fixed_delays(first_token_ms: float, inter_token_ms: float) -> Timing:
    first_ns, inter_ns = round(first_token_ms * 1e6), round(inter_token_ms * 1e6)

    def plan(received_ns: int, output_tokens: int) -> Plan:
        first_due_ns = received_ns + first_ns
        return Plan(received_ns, [first_due_ns + index * inter_ns for index in range(output_tokens)])

    return plan


def main(arguments: list[str]) -> None:
    assert __doc__ is not None
    parser = argument_parser("neobench.engines.null_server", __doc__.splitlines()[0])
    parser.add_argument("--first-token-ms", type=float, metavar="MS", help="from a request to its first token")
    parser.add_argument("--inter-token-ms", type=float, metavar="MS", help="from one token of an answer to the next")
    given = parser.parse_args(arguments)
    delays = (given.first_token_ms, given.inter_token_ms)
    if any(delay is not None and not 0 <= delay < float("inf") for delay in delays):
        parser.error("a delay is a number of milliseconds of at least 0")
    timing = None if delays == (None, None) else fixed_delays(*(delay or 0.0 for delay in delays))
    run_server(MODEL, timing, port=given.port, log=given.log)


if __name__ == "__main__":
    main(sys.argv[1:])
