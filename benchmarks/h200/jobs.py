"""What one measurement is, and how the process that does it is told and answers. Standard library only.

A child is `python -m benchmarks.h200.<child> JOB.json RESULT.json`. vLLM's runs where neobench is not installed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One process. Jobs of the same case and system are repeats of each other.

    The files of `prompts` and `also` are in `settings["parts"]`: {"case", "path"} of each in order.
    """

    case: str
    system: str
    child: str
    """The module of this folder that does it: neo_child, iterations_child, vllm_child or check_child."""
    settings: dict[str, Any]
    limit_s: float
    prompts: dict[str, Any] | None = None
    """Arguments of `prompts.draw`."""
    also: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By case the prompts of further cases that the same process measures afterwards, where a start costs much."""
    once: bool = False
    """Not repeated, and not again where it has succeeded: a preparation."""

    @property
    def name(self) -> str:
        return f"{self.case}/{self.system}"


@dataclass
class Result:
    """What a child answers with: numbers for the table, facts about the system, and the raw series behind them."""

    metrics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    again: list[dict[str, Any]] = field(default_factory=list)
    """{"case", "metrics", "facts", "raw"} of each further measurement in the same process."""
    rest: Callable[[], None] | None = None
    """Adds to the result once what is in it is safe: nothing that befalls the child meanwhile loses that."""
    save: Callable[[], None] = lambda: None
    """Makes what `rest` has added so far safe as well."""


class MeasurementError(Exception):
    """The measurement ran and its number would mean nothing; the message says why."""


def child_main(measure: Callable[[dict[str, Any]], Result]) -> None:
    """The main function of a child: settings from JOB.json through `measure` into RESULT.json.

    An error is told as a traceback and, in the last line, as type and message.
    """
    job_path, result_path = map(Path, sys.argv[1:])
    try:
        result = measure(json.loads(job_path.read_text())["settings"])
        result.save = lambda: _write(result, result_path)
        result.save()
        if result.rest is not None:
            result.rest()
            result.save()
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _write(result: Result, path: Path) -> None:
    """Atomically: the child may be killed while it writes."""
    unfinished = path.with_suffix(".unfinished")
    parts = ("metrics", "facts", "raw", "again")
    unfinished.write_text(json.dumps({part: getattr(result, part) for part in parts}))
    unfinished.replace(path)
