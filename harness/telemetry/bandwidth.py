"""What memory controllers read and write, whoever asks them to: Intel's IMC and AMD's UMC counters.

Virtual machines rarely show them, and most kernels show them to root alone; the run's notes say which it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neobench.harness.telemetry.perf_events import EVENT_SOURCES, Counter, cpus_of, encode_event, parse_terms
from neobench.harness.telemetry.sampler import SamplerError

MIB = 2.0**20
CACHE_LINE_BYTES = 64.0
AMD_EVENTS = {"read": {"event": 0x0A, "rdwrmask": 1}, "write": {"event": 0x0A, "rdwrmask": 2}}
"""CAS commands of a unified memory controller (Zen 4 and later), a cache line each."""
INTEL_EVENTS = {"read": ("cas_count_read", "data_read", "data_reads"), "write": ("cas_count_write", "data_write")}
"""Names of the same event under uncore_imc_<n> of servers and uncore_imc_free_running_<n> of clients."""


class Event(NamedTuple):
    direction: str
    """read or write"""
    kind: int
    config: int
    cpus: list[int]
    bytes_a_count: float


class BandwidthSampler:
    name = "host memory bandwidth"

    def __init__(self, sources: Path = EVENT_SOURCES) -> None:
        self._sources = sources
        self._counters: list[tuple[Event, Counter]] = []
        self._bytes: dict[str, float] = {}
        self._at_s = 0.0

    def open(self) -> None:
        events = find_events(self._sources)
        if not events:
            raise SamplerError(f"no memory controller counters under {self._sources}, as is usual in virtual machines")
        try:
            for event in events:
                for cpu in event.cpus:
                    self._counters.append((event, Counter(event.kind, event.config, cpu)))
        except OSError as error:
            self.close()
            raise SamplerError(
                f"memory controller counters cannot be opened ({error.strerror}): "
                "they need CAP_PERFMON or kernel.perf_event_paranoid=0"
            ) from error
        self._read()

    def close(self) -> None:
        for _, counter in self._counters:
            counter.close()
        self._counters.clear()

    def sample(self) -> Mapping[str, Any]:
        before, before_s = self._bytes, self._at_s
        self._read()
        return {
            f"host_memory_{direction}_bytes_per_s": (count - before[direction]) / (self._at_s - before_s)
            for direction, count in self._bytes.items()
        }

    def _read(self) -> None:
        self._at_s = time.perf_counter()
        totals: dict[str, float] = {}
        for event, counter in self._counters:
            totals[event.direction] = totals.get(event.direction, 0.0) + event.bytes_a_count * counter.read()
        self._bytes = totals


def find_events(sources: Path) -> list[Event]:
    """Reads and writes of every memory controller that the kernel describes."""
    events: list[Event] = []
    for source in sorted(sources.glob("uncore_imc*")):
        events += _intel_events(source)
    for source in sorted(sources.glob("amd_umc_*")):
        kind = int((source / "type").read_text())
        for direction, terms in AMD_EVENTS.items():
            config = encode_event(source, terms)
            events.append(Event(direction, kind, config, cpus_of(source), CACHE_LINE_BYTES))
    return events


def _intel_events(source: Path) -> list[Event]:
    kind = int((source / "type").read_text())
    events = []
    for direction, names in INTEL_EVENTS.items():
        described = [path for name in names if (path := source / "events" / name).exists()]
        for path in described[:1]:
            config = encode_event(source, parse_terms(path.read_text().strip()))
            events.append(Event(direction, kind, config, cpus_of(source), _bytes_a_count(path)))
    return events


def _bytes_a_count(event: Path) -> float:
    """The kernel's own scale, which is in MiB; without one a count is a cache line."""
    scale = event.with_name(f"{event.name}.scale")
    return float(scale.read_text()) * MIB if scale.exists() else CACHE_LINE_BYTES
