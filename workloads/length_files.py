"""Request lengths from a local file: JSON, JSON lines or CSV, with the column names that public traces use."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.workload import TokenCounts, WorkloadError

PROMPT_COLUMNS = ("prompt", "prompt_tokens", "prompt_len", "input_tokens", "input_length", "contexttokens")
OUTPUT_COLUMNS = ("max_tokens", "output_tokens", "output_len", "output_length", "generatedtokens")
MAX_REPORTED_ROWS = 5


def read_lengths(path: Path) -> tuple[TokenCounts, TokenCounts]:
    """Prompt and output tokens, each [num_rows], in the order of the file.

    `.json` is a list of objects, `.jsonl` one object a line, `.csv` has a header. Column names are matched without
    regard to case. Raises WorkloadError that names the rows at fault: no row is ever dropped in silence.
    """
    readers = {".json": _json_rows, ".jsonl": _json_lines, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise WorkloadError(f"{path}: lengths are read from {', '.join(readers)} files, not {path.suffix or 'this'}")
    try:
        lengths = _collect(path, reader(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise WorkloadError(f"cannot read {path}: {error}") from error
    if not lengths:
        raise WorkloadError(f"{path} holds no requests")
    prompt_tokens, output_tokens = np.array(lengths, dtype=np.int64).T
    return prompt_tokens, output_tokens


def _collect(path: Path, rows: Iterable[tuple[str, Any]]) -> list[tuple[int, int]]:
    lengths = []
    problems = []
    for place, row in rows:
        try:
            lengths.append((_tokens(row, PROMPT_COLUMNS), _tokens(row, OUTPUT_COLUMNS)))
        except ValueError as error:
            problems.append(f"  {place}: {error}")
    if problems:
        hidden = len(problems) - MAX_REPORTED_ROWS
        more = [f"  and {hidden} more"] if hidden > 0 else []
        raise WorkloadError("\n".join([f"{path}: malformed rows", *problems[:MAX_REPORTED_ROWS], *more]))
    return lengths


def _tokens(row: Any, columns: tuple[str, ...]) -> int:
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with {columns[0]!r} is needed, not {json.dumps(row)[:60]}")
    known = {str(key).strip().lower(): value for key, value in row.items()}
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
                raise WorkloadError(f"{path}, line {number}: not JSON: {error.msg}") from error
            yield f"line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            yield f"line {reader.line_num}", row
