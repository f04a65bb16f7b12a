"""An OpenAI-compatible server with a known law: one request after another, each for a time that is drawn.

    python -m neobench.engines.modelled_queue PORT [--service-ms MS] [--service-law LAW] [--seed N] [--log FILE]

Requests are served one at a time, in the order in which they come in. Request k, whose last byte is read at a(k),
begins at b(k) = max(a(k), b(k-1) + s(k-1)) and is served for s(k), of mean `service_ms`, whatever its lengths are. Its
token i of n is due at b(k) + s(k) i/n: the first after its share of the service, the last at its end. So, but for what
the client and HTTP add,

    TTFT = b - a + s/n (waiting, and one share),   E2EL = b - a + s (the sojourn),   TPOT = s/n

and for Poisson arrivals of rate lambda, with mu = 1 / service_ms and rho = lambda / mu < 1, in the steady state

    exponential, M/M/1:    sojourn ~ Exp(mu - lambda), mean waiting rho / (mu - lambda), P(waiting = 0) = 1 - rho
    deterministic, M/D/1:  mean waiting rho / (2 mu (1 - rho)), by the Pollaczek-Khinchine formula

(L. Kleinrock, Queueing Systems, vol. 1, Wiley 1975, chapters 3 and 5). All of it is planned when a request comes in: a
token that leaves late delays no other, and a client that hangs up leaves its turn empty.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from neobench.engines.launch import Launch, nearest_names
from neobench.engines.service_laws import DEFAULT_MEAN_MS, EXPONENTIAL, LAWS, service_times_ns
from neobench.engines.stand_in import StandInEngine, check_options, limits, number_of
from neobench.engines.stand_in_http import Plan, argument_parser, run_server
from neobench.harness.engine import EngineError

__all__ = ["SingleServer", "engine", "limits"]

MODEL = "modelled"
OPTIONS = ("service_ms", "service_law", "seed", "max_model_tokens", "log_instants")


def engine(launch: Launch) -> StandInEngine:
    """Raises EngineError for an option that is unknown or cannot be."""
    options = launch.options
    check_options(options, OPTIONS)
    law, seed = options.get("service_law", EXPONENTIAL), options.get("seed", 0)
    if law not in LAWS:
        raise EngineError(f"service_law {law!r} is none; did you mean {nearest_names(str(law), LAWS)}?")
    if not isinstance(seed, int) or seed < 0:
        raise EngineError(f"seed must be a whole number of at least 0, not {seed!r}")
    service_ms = number_of(options, "service_ms", DEFAULT_MEAN_MS, above_zero=True)
    return StandInEngine(
        "modelled",
        launch,
        module="neobench.engines.modelled_queue",
        model=MODEL,
        flags=[f"--service-ms={service_ms!r}", f"--service-law={law}", f"--seed={seed}"],
        facts={"service_ms": service_ms, "service_law": law, "seed": seed},
    )


class SingleServer:
    """First come, first served: a Timing of the HTTP server."""

    def __init__(self, service_ns: Iterator[int]) -> None:
        """`service_ns` has the service of each request, in the order in which they come in."""
        self._service_ns = service_ns
        self._free_ns = 0

    def __call__(self, received_ns: int, output_tokens: int) -> Plan:
        began_ns, service_ns = max(received_ns, self._free_ns), next(self._service_ns)
        self._free_ns = began_ns + service_ns
        return Plan(began_ns, [began_ns + service_ns * token // output_tokens for token in range(1, output_tokens + 1)])


def main(arguments: list[str]) -> None:
    assert __doc__ is not None
    parser = argument_parser("neobench.engines.modelled_queue", __doc__.splitlines()[0])
    parser.add_argument(
        "--service-ms", type=float, metavar="MS", default=DEFAULT_MEAN_MS, help="mean service (default: %(default)s)"
    )
    parser.add_argument("--service-law", choices=LAWS, default=EXPONENTIAL, help="default: %(default)s")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the services (default: %(default)s)")
    given = parser.parse_args(arguments)
    if not 0 < given.service_ms < float("inf"):
        parser.error("--service-ms is a number of milliseconds above 0")
    services_ns = service_times_ns(given.service_law, given.service_ms, given.seed)
    run_server(MODEL, SingleServer(services_ns), port=given.port, log=given.log)


if __name__ == "__main__":
    main(sys.argv[1:])
