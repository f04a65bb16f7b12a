"""What the client itself takes of the machine while it measures: a client that is busy all the time measures itself."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec


class ClientUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process, or of several together, from the start of the schedule to the end of the last request."""

    processes: int = 1
    cpu_s: float
    """Of all threads."""
    wall_s: float
    loop_busy_share: float
    """CPU time of the event loop's thread / wall time; of several processes that of the busiest."""
    peak_rss_bytes: int
    """Since the process began, prompts and all; of several processes their sum."""

    @classmethod
    def of_all(cls, parts: Sequence[ClientUsage]) -> ClientUsage | None:
        """None for no parts."""
        if not parts:
            return None
        return cls(
            processes=sum(part.processes for part in parts),
            cpu_s=sum(part.cpu_s for part in parts),
            wall_s=max(part.wall_s for part in parts),
            loop_busy_share=max(part.loop_busy_share for part in parts),
            peak_rss_bytes=sum(part.peak_rss_bytes for part in parts),
        )

    def facts(self) -> dict[str, int | float]:
        """For summary.json; docs/metrics.md defines them."""
        return {
            "client_processes": self.processes,
            "client_cpu_percent": 100 * self.cpu_s / self.wall_s,
            "client_loop_busy_share": self.loop_busy_share,
            "client_window_s": self.wall_s,
            "client_peak_rss_bytes": self.peak_rss_bytes,
        }


class UsageMeter:
    """Starts when it is made; to be made and read in the event loop's thread."""

    def __init__(self) -> None:
        self._cpu_ns = time.process_time_ns()
        self._loop_ns = time.thread_time_ns()
        self._wall_ns = time.perf_counter_ns()

    def read(self) -> ClientUsage:
        wall_ns = max(1, time.perf_counter_ns() - self._wall_ns)
        return ClientUsage(
            cpu_s=(time.process_time_ns() - self._cpu_ns) / 1e9,
            wall_s=wall_ns / 1e9,
            loop_busy_share=min(1.0, (time.thread_time_ns() - self._loop_ns) / wall_ns),
            peak_rss_bytes=peak_rss_bytes(),
        )


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Not getrusage's on Linux: there it begins with that of the process that started this one.
    """
    if sys.platform == "linux":
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found is not None:
            return 1024 * int(found[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
