"""Run folders: run.json first, requests.jsonl as it happens, requests.parquet and summary.json at the end.

Nothing is ever overwritten, and a folder is readable at any moment, whatever killed the run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from neobench.results.columns import RecordColumns
from neobench.results.metrics import summarise
from neobench.results.prefix_cache import prefix_cache, unasked_hits
from neobench.results.record import RequestRecord
from neobench.results.telemetry import TELEMETRY_PARQUET_FILE, machine_summary, read_telemetry
from neobench.results.validity import judge

SCHEMA = "neobench/v1"

RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
CLIENT_REQUESTS_FILES = "requests-*.jsonl"
"""Of several client processes, one each."""
PARQUET_FILE = "requests.parquet"
SUMMARY_FILE = "summary.json"

OWN_TOOL = "neobench"
CLIENT_FACTS = (
    "client_processes",
    "client_cpu_percent",
    "client_loop_busy_share",
    "client_window_s",
    "client_peak_rss_bytes",
)

ProvenanceKind = Literal["measured", "emulated", "modelled"]


def requests_file(client: int) -> str:
    """The file of a client process among several."""
    return f"requests-{client:02d}.jsonl"


class StoreError(Exception):
    """A run folder cannot be written or read; the message names the file, and the line where there is one."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the numbers come from. Kinds are never mixed on one curve without a mark."""

    kind: ProvenanceKind
    command: list[str]
    commit: str | None
    """Of the neobench source tree; None outside a checkout, "-dirty" at the end with uncommitted changes."""
    started_at: str
    """ISO 8601, UTC; of another tool's run what its file says."""
    tool: str = OWN_TOOL
    """That measured. Runs of another one are converted from its files."""
    missing: list[str] = []
    """Keys of the summary that the tool did not record; "itl_ms" stands for all of its statistics. They are null."""
    notes: list[str] = []
    """How its figures differ from what docs/metrics.md says, a sentence each."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """run.json: everything known before the first request."""

    schema: str = SCHEMA
    spec: dict[str, Any]
    spec_hash: str
    num_requests: int
    """Measured requests asked for, so that a killed run knows what it lacks."""
    request_rate: float | None
    """Requests per second; None: all at once."""
    provenance: Provenance
    fingerprint: dict[str, Any]
    engine: dict[str, Any]
    workload: dict[str, Any] = {}
    """Where the lengths come from, what they are, and whether they were scaled down to the model's context."""


class RecordLog:
    """One file of records, appended as they happen."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd
        self._num_records = 0
        self._encoder = msgspec.json.Encoder()
        self._sync_failure: StoreError | None = None

    @classmethod
    def create(cls, path: Path) -> RecordLog:
        """Raises StoreError if it exists already."""
        try:
            return cls(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644))
        except OSError as error:
            raise StoreError(f"cannot create {path}: {error.strerror}") from error

    def append(self, record: RequestRecord) -> None:
        """One line, handed to the kernel before returning: a SIGKILL after this call does not lose it."""
        if self._sync_failure is not None:
            raise self._sync_failure
        line = memoryview(self._encoder.encode(record) + b"\n")
        try:
            # A full disk may take part of a line before it refuses the rest.
            while line:
                line = line[os.write(self._open_fd(), line) :]
        except OSError as error:
            raise self._write_error(error) from error
        self._num_records += 1

    def sync(self) -> None:
        """Push what was appended to the disk itself, against a power cut. Blocks; call it beside the event loop.

        A failure is raised here and again by the next `append`.
        """
        try:
            os.fsync(self._open_fd())
        except OSError as error:
            self._sync_failure = self._write_error(error)
            raise self._sync_failure from error

    def close(self) -> None:
        """Safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_fd(self) -> int:
        assert self._fd is not None, "the file of records is closed"
        return self._fd

    def _write_error(self, error: OSError) -> StoreError:
        kept = f"{self._num_records} records are kept in it"
        if error.errno == errno.ENOSPC:
            return StoreError(f"the disk is full: cannot write {self.path}; {kept}")
        return StoreError(f"cannot write {self.path}: {error.strerror}; {kept}")


class RunFolder:
    """The writing side of one run folder."""

    def __init__(self, path: Path, log: RecordLog | None) -> None:
        self.path = path
        self.columns = RecordColumns()
        self._log = log

    @classmethod
    def create(cls, path: Path, *, shared: bool = False) -> RunFolder:
        """Raises StoreError if something is there already: a run never overwrites another.

        In a `shared` folder client processes write the records; it has REQUESTS_FILE only once one is appended here.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise StoreError(f"{path} is not empty; runs are never overwritten: choose another folder or remove it")
        except OSError as error:
            raise StoreError(f"cannot create the run folder {path}: {error.strerror}") from error
        return cls(path, None if shared else RecordLog.create(path / REQUESTS_FILE))

    def write_run(self, run: RunInfo) -> None:
        _write_atomically(self.path / RUN_FILE, encode_pretty(run))

    def append(self, record: RequestRecord) -> None:
        """As RecordLog.append; the record is in `columns` too."""
        if self._log is None:
            self._log = RecordLog.create(self.path / REQUESTS_FILE)
        self._log.append(record)
        self.columns.append(record)

    def sync(self) -> None:
        """As RecordLog.sync."""
        if self._log is not None:
            self._log.sync()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the Parquet files and summary.json, and close. After an error the raw rows are still there."""
        import pyarrow.parquet as pq

        self.sync()
        with _atomic_path(self.path / PARQUET_FILE) as parquet_path:
            pq.write_table(self.columns.to_arrow(), parquet_path, compression="zstd")
        telemetry = read_telemetry(self.path)
        if telemetry is not None and telemetry.rows:
            with _atomic_path(self.path / TELEMETRY_PARQUET_FILE) as parquet_path:
                pq.write_table(telemetry.to_arrow(), parquet_path, compression="zstd")
        _write_atomically(self.path / SUMMARY_FILE, encode_pretty(summary))
        self.close()

    def close(self) -> None:
        """Safe to call twice."""
        if self._log is not None:
            self._log.close()


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    info: RunInfo
    columns: RecordColumns
    summary: dict[str, Any]
    """As stored, or recomputed from the rows when the run was killed before it could write one."""
    complete: bool
    """False when the summary had to be recomputed."""
    problems: tuple[str, ...]
    """What was tolerated while reading: a sentence each."""


def load_run(path: Path) -> Run:
    """Read a run folder, also of a run that was killed at any moment after run.json was written.

    Raises StoreError, naming file and line, for anything that is not a run or is not what this version writes.
    """
    info = read_run_info(path)
    problems: list[str] = []
    columns = RecordColumns(iter_records(path, problems))
    complete = (path / SUMMARY_FILE).exists()
    if complete:
        summary = read_summary(path)
    else:
        num_measured = int((~columns.warmup).sum())
        cut_short = f"The run was cut short: {num_measured} of {info.num_requests} requests were recorded."
        machine = machine_summary(read_telemetry(path))
        summary = build_summary(info, columns, engine_stats={}, machine=machine, incidents=[cut_short, *problems])
    return Run(path, info, columns, summary, complete, tuple(problems))


def read_run_info(path: Path) -> RunInfo:
    """run.json alone. Raises StoreError, first for a schema of another version."""
    document = _decode_file(path / RUN_FILE, dict[str, Any])
    _check_schema(path / RUN_FILE, document.get("schema"))
    info: RunInfo = _decode_file(path / RUN_FILE, RunInfo)
    return info


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json as stored. Raises StoreError."""
    summary: dict[str, Any] = _decode_file(path / SUMMARY_FILE, dict[str, Any])
    _check_schema(path / SUMMARY_FILE, summary.get("schema"))
    return summary


def iter_records(path: Path, problems: list[str] | None = None) -> Iterator[RequestRecord]:
    """The rows of a run folder, file after file, each in the order that they were recorded.

    A last line without its end, as a kill or a full disk leaves it, is skipped and put into `problems` as a sentence.
    """
    for requests_path in _requests_files(path):
        try:
            with requests_path.open("rb") as lines:
                yield from _decoded(lines, requests_path, problems)
        except OSError as error:
            raise StoreError(f"cannot read {requests_path}: {error.strerror}") from error


def _requests_files(path: Path) -> list[Path]:
    """A run of several client processes has no REQUESTS_FILE, and none at all when it was killed before they began."""
    own, shared = path / REQUESTS_FILE, sorted(path.glob(CLIENT_REQUESTS_FILES))
    if own.exists():
        return [own, *shared]
    return shared if shared or read_run_info(path).spec.get("client_processes", 1) > 1 else [own]


def _decoded(lines: BinaryIO, path: Path, problems: list[str] | None) -> Iterator[RequestRecord]:
    decoder = msgspec.json.Decoder(RequestRecord)
    for line_number, line in enumerate(lines, start=1):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError as error:
            if line.endswith(b"\n"):
                raise StoreError(f"{path}, line {line_number}: {error}") from error
            if problems is not None:
                problems.append(f"The last line of {path.name} (line {line_number}) was half written.")


def build_summary(
    info: RunInfo,
    columns: RecordColumns,
    *,
    engine_stats: Mapping[str, int | float],
    machine: Mapping[str, Any] | None = None,
    incidents: Sequence[str] = (),
    client: Mapping[str, int | float] | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """summary.json: metrics, validity, the engine's counters over the schedule, the machine, provenance.

    `client` is what the load generator took of its machine; None: unknown, as of a run that was killed. `known` are
    metrics that come from elsewhere, of a run without rows.
    """
    metrics = summarise(
        columns,
        request_rate=info.request_rate,
        percentiles=info.spec.get("percentiles", ()),
        goodput_ms=info.spec.get("goodput_ms"),
    )
    metrics |= dict.fromkeys(CLIENT_FACTS)
    metrics |= client or {}
    metrics |= known or {}
    metrics |= dict.fromkeys(_keys_of(info.provenance.missing, metrics))
    cache = prefix_cache(columns, info.workload)
    validity = judge(metrics, incidents, machine)
    prompt_tokens = int(columns.integers("prompt_tokens")[~columns.warmup].sum())
    validity["warnings"] += [*unasked_hits(cache, prompt_tokens), *info.provenance.notes]
    return {
        "schema": SCHEMA,
        "spec_hash": info.spec_hash,
        "backend": info.spec["engine"]["name"],
        "model_id": info.spec["model"],
        "workload": info.spec["workload"]["name"],
        "validity": validity,
        **metrics,
        "prefix_cache": cache,
        "engine_stats": dict(engine_stats),
        "machine": dict(machine_summary(None) if machine is None else machine),
        "provenance": msgspec.to_builtins(info.provenance),
    }


def _keys_of(names: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """The keys that have one of these names, or a statistic in front of it."""
    return [key for key in metrics if any(key == name or key.endswith(f"_{name}") for name in names)]


def encode_pretty(value: Any) -> bytes:
    """Indented JSON with a final newline; what JSON has no type for is written as text."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"


def _decode_file(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise StoreError(f"{path.parent} is not a run folder: cannot read {path.name}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path}: {error}") from error


def _check_schema(path: Path, schema: object) -> None:
    if schema != SCHEMA:
        raise StoreError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}")


@contextmanager
def _atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to; it gets the name `path` only once all of it is on the disk."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    except OSError as error:
        # After a full disk even this may fail, and the reason to report is the first one.
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
        raise StoreError(f"cannot write {path}: {reason}; the rows in {REQUESTS_FILE} are kept") from error


def _write_atomically(path: Path, content: bytes) -> None:
    with _atomic_path(path) as unfinished:
        unfinished.write_bytes(content)
