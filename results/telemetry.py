"""telemetry.jsonl, the machine and the engine beside a run over time, and what summary.json says of it.

A row is {"at_ns": instant on the requests' clock, name: value, ...}; a value is a number, null, or a list with one
entry a CPU or GPU. A row with "note" says which sampler could not work, and why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

TELEMETRY_FILE = "telemetry.jsonl"
TELEMETRY_PARQUET_FILE = "telemetry.parquet"

Float64Array = npt.NDArray[np.float64]

MEANS = (
    "cpu_percent",
    "cpu_steal_percent",
    "other_cpu_percent",
    "client_cpu_percent",
    "engine_cpu_percent",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "host_memory_read_bytes_per_s",
    "host_memory_write_bytes_per_s",
    "gpu_utilization_percent",
    "gpu_power_w",
    "gpu_sm_clock_mhz",
)
"""Of summary.json's `machine`: means over time of the series of that name, one a GPU where it is a list."""
MAXIMA = {
    "max_core_percent": "core_percent",
    "max_client_rss_bytes": "client_rss_bytes",
    "max_engine_rss_bytes": "engine_rss_bytes",
    "max_gpu_memory_used_bytes": "gpu_memory_used_bytes",
    "max_gpu_temperature_c": "gpu_temperature_c",
    "max_running_requests": "running_requests",
    "max_waiting_requests": "waiting_requests",
    "max_device_kv_used_fraction": "device_kv_used_fraction",
    "max_host_kv_used_fraction": "host_kv_used_fraction",
}
"""Key of `machine` -> the series whose largest value it is."""
SUMS = ("cpu_throttled_ms", "gpu_energy_j")
"""Added up over the run: what each sample grew by."""


class TelemetryLog:
    """The writing side: one line a row, handed to the kernel before `append` returns. Any thread may append."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._fd: int | None = os.open(folder / TELEMETRY_FILE, flags, 0o644)

    def append(self, row: Mapping[str, Any]) -> None:
        """Raises OSError; after `close` it does nothing."""
        if self._fd is not None:
            os.write(self._fd, msgspec.json.encode(row) + b"\n")

    def close(self) -> None:
        """Safe to call twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


@dataclass(frozen=True)
class Telemetry:
    """The rows of a run, in the order of their instants."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """Sampler -> why it gave nothing, or nothing more."""

    def series(self, name: str) -> tuple[Float64Array, Float64Array]:
        """Instants in seconds [n] and values [n] or, of a list, [n, entries]; empty where nothing was sampled."""
        found = [(row["at_ns"] / 1e9, row[name]) for row in self.rows if row.get(name) is not None]
        width = max((len(value) for _, value in found if isinstance(value, list)), default=None)
        if width is not None:
            found = [(at_s, value) for at_s, value in found if isinstance(value, list) and len(value) == width]
        return np.array([at_s for at_s, _ in found]), np.array([value for _, value in found], dtype=np.float64)

    def to_arrow(self) -> pa.Table:
        """One row a row; a column that only some rows have is null in the others."""
        import pyarrow as pa

        names = dict.fromkeys(name for row in self.rows for name in row)
        return pa.table({name: _column([row.get(name) for row in self.rows]) for name in names})


def _column(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    entries = [entry for value in values if isinstance(value, list) for entry in value]
    if any(isinstance(entry, str) for entry in entries):
        return pa.array(values, pa.list_(pa.string()))
    if any(isinstance(value, list) for value in values):
        return pa.array(values, pa.list_(pa.float64()))
    is_whole = all(value is None or isinstance(value, int) for value in values)
    return pa.array(values, pa.int64() if is_whole else pa.float64())


def read_telemetry(folder: Path) -> Telemetry | None:
    """None for a run without telemetry. Half a last line, as a kill leaves it, is skipped; so is any other damage."""
    try:
        lines = (folder / TELEMETRY_FILE).read_bytes().splitlines()
    except OSError:
        return None
    telemetry = Telemetry()
    for line in lines:
        try:
            row = msgspec.json.decode(line)
        except msgspec.MsgspecError:
            continue
        if "note" in row:
            telemetry.notes[row["sampler"]] = row["note"]
        else:
            telemetry.rows.append(row)
    telemetry.rows.sort(key=lambda row: row["at_ns"])
    return telemetry


def machine_summary(telemetry: Telemetry | None) -> dict[str, Any]:
    """summary.json's `machine`; every key is there, None where it is unknown."""
    telemetry = telemetry or Telemetry()
    return {
        "telemetry_samples": len(telemetry.rows),
        **{name: _mean_over_time(*telemetry.series(name)) for name in MEANS},
        **{key: _reduced(np.nanmax, telemetry.series(name)[1]) for key, name in MAXIMA.items()},
        **{name: _reduced(np.nansum, telemetry.series(name)[1]) for name in SUMS},
        "gpu_throttle_reasons": _throttle_reasons(telemetry.rows),
        "notes": dict(telemetry.notes),
    }


def _mean_over_time(at_s: Float64Array, values: Float64Array) -> float | list[float | None] | None:
    """Each sample stands for the time since the one before; the first one's since the schedule's start."""
    if values.ndim == 2:
        return [_column_mean(at_s, column) for column in values.T]
    return _column_mean(at_s, values)


def _column_mean(at_s: Float64Array, values: Float64Array) -> float | None:
    weights = np.clip(np.diff(at_s, prepend=0.0), 1e-9, None)
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else None


def _reduced(reduce: Any, values: Float64Array) -> float | None:
    return float(reduce(values)) if values.size and not np.isnan(values).all() else None


def _throttle_reasons(rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Seen at any sample on any GPU; empty: sampled, and none seen; None: not known."""
    sampled = [row["gpu_throttle_reasons"] for row in rows if row.get("gpu_throttle_reasons") is not None]
    return sorted({reason for reasons in sampled for reason in reasons}) if sampled else None
