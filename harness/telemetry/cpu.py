"""Processors, the client's and the engine's processes, cgroup throttling and disks, by psutil and /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

TREE_REFRESH_S = 5.0
"""How often child processes are looked for: a walk over all processes of the machine takes milliseconds."""
CGROUP_ROOT = Path("/sys/fs/cgroup")


class CoreTimes(NamedTuple):
    """Seconds of one CPU since boot."""

    total: float
    busy: float
    steal: float
    """Time in which it had work but the hypervisor ran somebody else; not part of `busy`."""


class ProcessTree:
    """CPU time and memory of a process and its descendants, without those of the process `apart`."""

    def __init__(self, pid: int, apart: int | None = None) -> None:
        self._pid = pid
        self._apart = apart
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._refreshed_s = -TREE_REFRESH_S

    def read(self) -> tuple[float, int]:
        """CPU seconds since the last call, and resident bytes now. Pages that processes share count in each."""
        if time.monotonic() - self._refreshed_s >= TREE_REFRESH_S:
            self._refresh()
        grown_s, rss_bytes = 0.0, 0
        for pid, process in list(self._processes.items()):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss_bytes += process.memory_info().rss
            except psutil.Error:
                del self._processes[pid]
                self._cpu_s.pop(pid, None)
                continue
            cpu_s = times.user + times.system
            grown_s += cpu_s - self._cpu_s.get(pid, cpu_s)
            self._cpu_s[pid] = cpu_s
        return grown_s, rss_bytes

    def _refresh(self) -> None:
        self._refreshed_s = time.monotonic()
        apart = set() if self._apart is None else set(_family(self._apart))
        for pid, process in _family(self._pid).items():
            if pid not in apart:
                self._processes.setdefault(pid, process)


def _family(pid: int) -> dict[int, psutil.Process]:
    try:
        root = psutil.Process(pid)
        return {process.pid: process for process in (root, *root.children(recursive=True))}
    except psutil.Error:
        return {}


class CpuSampler:
    """`engine_pid`: the engine's process; this one's own for an engine inside it; None where it is not known, and with
    it neither are the engine's figures nor the load of others."""

    name = "cpu"

    def __init__(self, engine_pid: int | None) -> None:
        inside = engine_pid == os.getpid()
        self._is_engine_known = engine_pid is not None
        self._client = ProcessTree(os.getpid(), apart=None if inside else engine_pid)
        self._engine = None if engine_pid is None or inside else ProcessTree(engine_pid)
        self._cgroup = cpu_stat_path()
        self._cores: list[CoreTimes] = []
        self._disk: tuple[int, int] | None = None
        self._throttled_ms: float | None = None
        self._at_s = 0.0

    def open(self) -> None:
        self.sample()

    def close(self) -> None:
        pass

    def sample(self) -> Mapping[str, Any]:
        now_s = time.perf_counter()
        elapsed_s = now_s - self._at_s
        self._at_s = now_s
        values = self._sample_cores()
        num_cores = len(self._cores)
        client_s, client_rss_bytes = self._client.read()
        values |= {"client_cpu_percent": 100 * client_s / elapsed_s, "client_rss_bytes": client_rss_bytes}
        own_s = client_s
        if self._engine is not None:
            engine_s, engine_rss_bytes = self._engine.read()
            values |= {"engine_cpu_percent": 100 * engine_s / elapsed_s, "engine_rss_bytes": engine_rss_bytes}
            own_s += engine_s
        if self._is_engine_known and values.get("cpu_percent") is not None:
            others = values["cpu_percent"] - 100 * own_s / elapsed_s / num_cores
            values["other_cpu_percent"] = max(0.0, others)
        return {**values, **self._sample_throttling(), **self._sample_disk(elapsed_s)}

    def _sample_cores(self) -> dict[str, Any]:
        before, self._cores = self._cores, read_cores()
        if len(before) != len(self._cores):
            return {}
        return core_shares(before, self._cores)

    def _sample_throttling(self) -> dict[str, Any]:
        before, self._throttled_ms = self._throttled_ms, None
        if self._cgroup is not None:
            self._throttled_ms = throttled_ms(self._cgroup.read_text())
        if before is None or self._throttled_ms is None:
            return {}
        return {"cpu_throttled_ms": self._throttled_ms - before}

    def _sample_disk(self, elapsed_s: float) -> dict[str, Any]:
        counters = psutil.disk_io_counters()
        before, self._disk = self._disk, None if counters is None else (counters.read_bytes, counters.write_bytes)
        if before is None or self._disk is None:
            return {}
        read, written = (now - then for now, then in zip(self._disk, before, strict=True))
        return {"disk_read_bytes_per_s": read / elapsed_s, "disk_write_bytes_per_s": written / elapsed_s}


def read_cores() -> list[CoreTimes]:
    """[num_cpus] of the machine, also where this process may use only some of them."""
    cores = []
    for times in psutil.cpu_times(percpu=True):
        steal = getattr(times, "steal", 0.0)
        # Guests' time is part of user's and nice's already.
        total = sum(value for name, value in times._asdict().items() if not name.startswith("guest"))
        cores.append(CoreTimes(total, total - times.idle - getattr(times, "iowait", 0.0) - steal, steal))
    return cores


def core_shares(before: list[CoreTimes], after: list[CoreTimes]) -> dict[str, Any]:
    """Percent of the time of all CPUs, and `core_percent` [num_cpus] of each one's; empty if no time has passed."""
    # An idle core's share is a difference of sums, which rounding can make less than nothing.
    grown = [
        CoreTimes(*(max(0.0, now - then) for now, then in zip(*pair, strict=True)))
        for pair in zip(after, before, strict=True)
    ]
    total = sum(core.total for core in grown)
    if total <= 0:
        return {}
    return {
        "cpu_percent": 100 * sum(core.busy for core in grown) / total,
        "cpu_steal_percent": 100 * sum(core.steal for core in grown) / total,
        "core_percent": [100 * core.busy / core.total if core.total > 0 else None for core in grown],
    }


def cpu_stat_path(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> Path | None:
    """cpu.stat of this process' cgroup, version 2 or 1; of the mounted root where a container hides the rest."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        for mount in (root, root / "unified") if not controllers else (root / "cpu", root / controllers):
            for folder in (mount / group.lstrip("/"), mount):
                path = folder / "cpu.stat"
                if path.exists() and throttled_ms(path.read_text()) is not None:
                    return path
    return None


def throttled_ms(cpu_stat: str) -> float | None:
    """Time for which the cgroup's CPU quota held its tasks back; None where there is no such count.

    `throttled_usec` in version 2, `throttled_time` in nanoseconds in version 1 (kernel: admin-guide/cgroup-v2,
    scheduler/sched-bwc).
    """
    fields = dict(line.split(maxsplit=1) for line in cpu_stat.splitlines() if " " in line)
    if "throttled_usec" in fields:
        return int(fields["throttled_usec"]) / 1e3
    return int(fields["throttled_time"]) / 1e6 if "throttled_time" in fields else None
