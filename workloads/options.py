"""Options of a workload, checked before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from neobench.workloads.workload import WorkloadError


def check_options(workload: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises WorkloadError with the nearest name for an option that the workload does not have."""
    for name in options:
        if name not in known:
            if not known:
                raise WorkloadError(f"{workload} takes no options, but got {name}")
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise WorkloadError(f"unknown option {name!r} of {workload}; {hint}It has {', '.join(known)}")


def flag(options: Mapping[str, Any], name: str) -> bool:
    """An option that is on or off, off when left out; also as written on a command line or in YAML."""
    value = options.get(name, False)
    known = {"true": True, "false": False}
    value = known.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise WorkloadError(f"option {name} must be true or false, not {value!r}")
    return value


def positive_number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise WorkloadError(f"option {name} must be a positive number, not {value!r}")
    return number
