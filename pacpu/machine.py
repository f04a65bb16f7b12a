"""What a benchmark must know of the machine: how much cache its CPUs have, and who else uses them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")
_UNKNOWN_L3_BYTES = 64 * 2**20
_BUSY_FRACTION = 0.10


def l3_bytes(cpus: Sequence[int]) -> int:
    """All L3 caches of these CPUs together; 64 MiB where the machine does not tell."""
    caches: dict[str, int] = {}
    for cpu in cpus:
        folder = _CPUS / f"cpu{cpu}/cache/index3"
        match = re.fullmatch(r"(\d+)([KM])", _read(folder / "size") or "")
        if match:
            shared_by = _read(folder / "shared_cpu_list") or str(cpu)
            caches[shared_by] = int(match[1]) * (2**20 if match[2] == "M" else 2**10)
    return sum(caches.values()) or _UNKNOWN_L3_BYTES


@contextmanager
def on_cpus(cpus: Sequence[int]) -> Iterator[None]:
    """Keeps every thread of this process, those made meanwhile included, on these CPUs; nothing outside of Linux."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {}
    for thread in (int(path.name) for path in Path("/proc/self/task").iterdir()):
        with suppress(ProcessLookupError):
            before[thread] = os.sched_getaffinity(thread)
            os.sched_setaffinity(thread, cpus)
    everywhere = before[os.getpid()]
    try:
        yield
    finally:
        for thread in (int(path.name) for path in Path("/proc/self/task").iterdir()):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, before.get(thread, everywhere))


@dataclass(frozen=True)
class CpuTimes:
    """Counters at one instant: wall clock, this process, and the CPUs under test with everybody on them."""

    wall_ns: int
    own_ns: int
    busy_ns: int = 0
    stolen_ns: int = 0
    """By the hypervisor."""


def cpu_times(cpus: Sequence[int]) -> CpuTimes:
    """Now. Without /proc/stat the counters of the CPUs stay 0."""
    busy_ticks = stolen_ticks = 0
    for line in (_read(_STAT) or "").splitlines():
        name, *ticks = line.split()
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy_ticks += user + nice + system + irq + softirq
            stolen_ticks += steal
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK") if busy_ticks else 0
    return CpuTimes(time.perf_counter_ns(), time.process_time_ns(), busy_ticks * tick_ns, stolen_ticks * tick_ns)


def busy_reason(
    before: CpuTimes, after: CpuTimes, *, num_cpus: int, working: Sequence[tuple[int, int]]
) -> tuple[float, str | None]:
    """The share of the CPUs under test that this process did not get, and a sentence when it is over 10 percent.

    `working`: (wall ns, own CPU ns) of stretches in which `num_cpus` threads had work all the time.
    """
    capacity_ns = num_cpus * (after.wall_ns - before.wall_ns)
    own_ns = after.own_ns - before.own_ns
    others = max(0.0, (after.busy_ns - before.busy_ns - own_ns) / capacity_ns)
    stolen = (after.stolen_ns - before.stolen_ns) / capacity_ns
    wanted_ns = num_cpus * sum(wall for wall, _ in working)
    missing = max(0.0, 1 - sum(own for _, own in working) / wanted_ns) if wanted_ns else 0.0
    cpus = f"the {num_cpus} CPUs" if num_cpus > 1 else "the CPU"
    shares = [
        (others, f"other processes used {others:.0%} of {cpus} under test"),
        (stolen, f"the hypervisor took {stolen:.0%} of {cpus} under test"),
        (missing, f"the threads got only {1 - missing:.0%} of the CPU time that they had work for"),
    ]
    share, sentence = max(shares)
    return share, sentence if share > _BUSY_FRACTION else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
