"""Where lengths come from, whatever the workload is called: a shipped table, a file of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.length_files import FileRows, read_rows
from neobench.workloads.lengths import load_table
from neobench.workloads.workload import Replay, TokenCounts, WorkloadError, draw_rows


class TableLengths:
    """Independent draws from a joint length table."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._table = load_table(path)

    def describe(self) -> dict[str, Any]:
        table = self._table
        return {
            "name": self.name,
            "source": table.source,
            "licence": table.licence,
            "tokenizer": table.tokenizer,
            "table": self._path.name,
            "table_derived_on": table.derived_on,
            "table_derived_from_requests": table.num_requests,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        return self._table.draw(num_requests, rng)

    def longest_request_tokens(self) -> int:
        return self._table.longest_request_tokens()


class FileLengths:
    """Rows of a file, drawn without repetition until all were drawn once; or replayed, when the file has times."""

    def __init__(self, name: str, path: Path, *, skip_malformed: bool = False) -> None:
        self.name = name
        self._path = path
        self._skip_malformed = skip_malformed
        self._rows = read_rows(path, skip_malformed=skip_malformed)

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "name": self.name,
            "source": f"local file {self._path}",
            "file_requests": len(self._rows.prompt_tokens),
        }
        if self._rows.malformed:
            facts["malformed_rows_left_out"] = len(self._rows.malformed)
        return facts

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        rows = draw_rows(len(self._rows.prompt_tokens), num_requests, rng)
        return self._rows.prompt_tokens[rows], self._rows.output_tokens[rows]

    def longest_request_tokens(self) -> int:
        return int((self._rows.prompt_tokens + self._rows.output_tokens).max())

    def replay(self, num_requests: int) -> Replay:
        """Rows that are not in the order of their times are sorted by them first."""
        self._rows = read_rows(self._path, with_times=True, skip_malformed=self._skip_malformed)
        return _replay(self._rows, num_requests, self._path)


def _replay(rows: FileRows, num_requests: int, path: Path) -> Replay:
    if rows.time_ns is None:
        raise WorkloadError(
            f"{path} has no times to replay: add a column timestamp_s or timestamp_ms, or choose another --arrival"
        )
    if num_requests > len(rows.time_ns):
        raise WorkloadError(f"{path} has {len(rows.time_ns)} requests to replay, not {num_requests}: use fewer")
    by_time = np.argsort(rows.time_ns, kind="stable")[:num_requests]
    time_ns = rows.time_ns[by_time]
    return Replay(rows.prompt_tokens[by_time], rows.output_tokens[by_time], time_ns - time_ns[0])
