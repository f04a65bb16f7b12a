"""Requests from a local file: JSON, JSON lines or CSV, with the column names that public traces use."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neobench.workloads.timestamps import timestamp_ns
from neobench.workloads.workload import TokenCounts, WorkloadError

PROMPT_COLUMNS = (
    "prompt",
    "prompt_tokens",
    "prompt_len",
    "input_tokens",
    "input_length",
    "contexttokens",
    "request tokens",
)
OUTPUT_COLUMNS = (
    "max_tokens",
    "output_tokens",
    "output_len",
    "output_length",
    "generatedtokens",
    "response tokens",
)
MAX_REPORTED_ROWS = 5


@dataclass(frozen=True)
class FileRows:
    """Each array int64 [num_rows], in the order of the file."""

    prompt_tokens: TokenCounts
    output_tokens: TokenCounts
    time_ns: npt.NDArray[np.int64] | None
    """Of an epoch of the file's own; None when they were not asked for or the file has none."""
    malformed: list[str]
    """One sentence with its place in the file for each row that was left out."""


def read_lengths(path: Path) -> tuple[TokenCounts, TokenCounts]:
    """Prompt and output tokens, each [num_rows], in the order of the file. Raises WorkloadError."""
    rows = read_rows(path)
    return rows.prompt_tokens, rows.output_tokens


def read_rows(path: Path, *, with_times: bool = False, skip_malformed: bool = False) -> FileRows:
    """The requests of a file.

    `.json` is a list of objects, `.jsonl` one object a line, `.csv` has a header. Column names are matched without
    regard to case: those of Mooncake, BurstGPT, Azure and vLLM among them (PROMPT_COLUMNS, OUTPUT_COLUMNS,
    TIME_COLUMNS). A time that cannot be read is at fault only `with_times`.
    Raises WorkloadError that names the rows at fault; with `skip_malformed` only if no row is left.
    """
    readers = {".json": _json_rows, ".jsonl": _json_lines, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise WorkloadError(f"{path}: requests are read from {', '.join(readers)} files, not {path.suffix or 'this'}")
    try:
        rows, malformed = _collect(reader(path), with_times=with_times)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise WorkloadError(f"cannot read {path}: {error}") from error
    if malformed and not (skip_malformed and rows):
        raise WorkloadError(malformed_rows(path, malformed))
    if not rows:
        raise WorkloadError(f"{path} holds no requests")
    numbers = np.array([row[:2] for row in rows], dtype=np.int64)
    times = [row[2] for row in rows if row[2] is not None]
    return FileRows(
        prompt_tokens=numbers[:, 0],
        output_tokens=numbers[:, 1],
        time_ns=np.array(times, dtype=np.int64) if times else None,
        malformed=malformed,
    )


def malformed_rows(path: Path, malformed: list[str]) -> str:
    """The error that names the first of them and says how to go on without."""
    hidden = len(malformed) - MAX_REPORTED_ROWS
    more = [f"  and {hidden} more"] if hidden > 0 else []
    lines = [f"  {problem}" for problem in malformed[:MAX_REPORTED_ROWS]]
    hint = "Correct them, or leave them out with --skip-malformed (option skip_malformed)."
    return "\n".join([f"{path}: malformed rows", *lines, *more, hint])


class _NotJson:
    """A line that could not be parsed, in place of its row."""

    def __init__(self, message: str) -> None:
        self.message = message


def _collect(
    rows: Iterable[tuple[str, Any]], *, with_times: bool
) -> tuple[list[tuple[int, int, int | None]], list[str]]:
    good: list[tuple[int, int, int | None]] = []
    malformed = []
    for place, row in rows:
        try:
            known = _columns(row)
            time_ns = timestamp_ns(known) if with_times else None
            if good and (time_ns is None) != (good[0][2] is None):
                raise ValueError(f"{'no' if time_ns is None else 'a'} time, unlike the rows before it")
            good.append((_tokens(known, PROMPT_COLUMNS), _tokens(known, OUTPUT_COLUMNS), time_ns))
        except ValueError as error:
            malformed.append(f"{place}: {error}")
    return good, malformed


def _columns(row: Any) -> dict[str, Any]:
    if isinstance(row, _NotJson):
        raise ValueError(f"not JSON: {row.message}")
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with {PROMPT_COLUMNS[0]!r} is needed, not {json.dumps(row)[:60]}")
    if None in row:
        raise ValueError(f"more fields than the header has: {row[None]}")
    return {key.strip().lower(): value for key, value in row.items()}


def _tokens(known: Mapping[str, Any], columns: tuple[str, ...]) -> int:
    column = next((column for column in columns if column in known), None)
    if column is None:
        raise ValueError(f"none of the columns {', '.join(columns)}")
    value = known[column]
    # int() would take true for 1 and cut 3.7 to 3.
    try:
        tokens = int(value) if isinstance(value, str) else value
    except ValueError:
        tokens = None
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"{column} must be a whole number of tokens, at least 1, not {value!r}")
    return tokens


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise WorkloadError(f"{path}: a list of objects is needed")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = _NotJson(error.msg)
            yield f"line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            yield f"line {reader.line_num}", row
