"""The limit on open files: every request in flight is a connection, and a connection is an open file."""

from __future__ import annotations

import resource
import sys

from neobench.harness.engine import EngineError

RESERVE = 128
"""For everything else that a client has open."""


def connections_that_fit() -> int:
    """At once, under this process's soft limit, so that it can still open what else it needs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - RESERVE, soft // 2)


def allow_connections(wanted: int, *, needed: int = 0) -> int:
    """Raise this process's soft limit so that `wanted` connections fit, or as far as it goes; returns how many fit.

    Raises EngineError when fewer than `needed` do. What is started later inherits the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = max(wanted, needed) + RESERVE
    if soft != resource.RLIM_INFINITY and soft < target:
        soft = target if hard == resource.RLIM_INFINITY else min(target, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= target:
        return max(wanted, needed)
    fit = connections_that_fit()
    if fit < needed:
        raise EngineError(
            f"{needed} requests in flight need {needed + RESERVE} open files, but a process may have {hard}: "
            f"raise the hard limit (`ulimit -Hn {needed + RESERVE}` as root, or LimitNOFILE of the service), or keep "
            f"--concurrency at {fit} or less"
        )
    return fit
