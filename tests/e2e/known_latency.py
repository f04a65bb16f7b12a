"""A run of the command line against a server of known latency, each request joined with the server's account of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neobench.cli.run import run, session_of
from neobench.cli.session import draw_prompts
from neobench.engines.instant_log import PROMPT_START_BYTES, Instants, read_instants
from neobench.results.columns import RecordColumns
from neobench.results.store import iter_records

Milliseconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KnownRun:
    """Measured requests and the server's instants of the same ones, both by index."""

    summary: dict[str, Any]
    columns: RecordColumns
    instants: list[Instants]
    exit_code: int

    def measured_ms(self, name: str) -> Milliseconds:
        """[num_requests], of a field of the records."""
        return self.columns.instants_ms(name)

    def true_ms(self, name: str) -> Milliseconds:
        """[num_requests], of a field of the instants."""
        return np.array([getattr(one, name) for one in self.instants]) / 1e6

    def true_token_ms(self, token: int) -> Milliseconds:
        return np.array([one.token_ns[token] for one in self.instants]) / 1e6


def known_run(folder: Path, *arguments: str) -> KnownRun:
    """One engine at one rate, without warm-up, in a process of its own."""
    given = [*arguments, "--log-instants", "--num-warmup", "0"]
    command = [sys.executable, "-m", "neobench", "run", *given, "--output", str(folder), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode in (0, 4), ended.stderr
    (measured,) = folder.glob("*/summary.json")
    (instants,) = folder.glob("*.instants.jsonl")
    by_start = {one.prompt_start: one for one in read_instants(instants)}
    columns = RecordColumns(sorted(iter_records(measured.parent), key=lambda record: record.index))
    return KnownRun(
        json.loads(ended.stdout), columns, [by_start[start] for start in _prompt_starts(given)], ended.returncode
    )


def _prompt_starts(arguments: list[str]) -> list[str]:
    with run.make_context("run", arguments) as context:
        left_out = ("output", "as_json", "dry_run")
        options = {name: value for name, value in context.params.items() if name not in left_out}
        session = session_of(options, Path("unused"), quiet=True)
        prompts = draw_prompts(session, session.rates[0])
    return [request.prompt_json[:PROMPT_START_BYTES].decode() for request in prompts.requests]
