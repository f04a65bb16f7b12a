"""The memory of a KV cache: one aligned slab on huge pages, touched by the threads that will read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import psutil

from neobench.pacpu import _native

if TYPE_CHECKING:
    from neobench.pacpu.plan import WorkerPool

# Ctrl-C and progress wait for a piece: a fraction of a second for one thread, and still 2 MiB each for 128.
PIECE_BYTES = 256 << 20
_HUGE_PAGE_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/smaps")
_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# Controller (and folder of its mount), files with limit and use, and in memory.stat the file pages that the kernel
# drops before it would kill. Version 2, then version 1.
_CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class KvMemoryFacts(TypedDict):
    """What a run's fingerprint says of its KV memory."""

    bytes: int
    huge_page_bytes: int
    huge_pages: Literal["all", "some", "none"]
    note: str | None


class KvMemory:
    """One slab of zeros for a KV cache, every page of it in RAM, aligned to 2 MiB and so to pages.

    The threads of `pool` write the zeros: on a machine with several NUMA nodes a page then lies on the node of the
    thread that wrote it, so keep a pool to one node (`choose_cpus`) or let it spread over all; without a pool the
    caller writes. 2 MiB pages are asked for, and `describe` says what was granted. `on_progress` is called with the
    bytes touched so far, every 256 MiB and at the end; when it raises, and at Ctrl-C, the memory is freed.

    ValueError: num_bytes below 1. MemoryError: more than is available, or refused by the system. RuntimeError: the
    pool is closed.
    """

    def __init__(
        self,
        num_bytes: int,
        *,
        pool: WorkerPool | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        if num_bytes < 1:
            raise ValueError(f"num_bytes: expected 1 or more, got {num_bytes}")
        available = available_bytes()
        if num_bytes > available:
            raise MemoryError(
                f"num_bytes: expected at most the {_in_words(available)} of memory that are available to this process "
                f"(MemAvailable, or the limit of its cgroup), got {_in_words(num_bytes)}"
            )
        self._num_bytes = num_bytes
        try:
            self._memory = _native.Memory(num_bytes)
        except MemoryError as error:
            raise MemoryError(
                f"num_bytes: the system refused {_in_words(num_bytes)} although {_in_words(available)} are available: "
                "see the limits of ulimit -v and of vm.overcommit_memory=2"
            ) from error
        try:
            self._touch(pool, on_progress)
        except BaseException:
            del self._memory  # the traceback keeps self
            raise

    def _touch(self, pool: WorkerPool | None, on_progress: Callable[[int], None] | None) -> None:
        threads = None if pool is None else pool._pool  # noqa: SLF001
        for begin in range(0, self._num_bytes, PIECE_BYTES):
            end = min(begin + PIECE_BYTES, self._num_bytes)
            self._memory.touch(threads, begin, end)
            if on_progress is not None:
                on_progress(end)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """Writable uint8 [num_bytes]; the memory lives as long as this object or any such array or view of it."""
        return np.frombuffer(memoryview(self._memory), dtype=np.uint8)

    @property
    def huge_page_bytes(self) -> int:
        """Bytes that lie in 2 MiB pages now, the rest of the last such page included; 0 where the system won't say."""
        begin = self.array.ctypes.data
        return _huge_page_bytes(begin, begin + self._num_bytes)

    def describe(self) -> KvMemoryFacts:
        """Sizes, and, where not all bytes lie in 2 MiB pages, why and what to do about it."""
        huge = self.huge_page_bytes
        return {
            "bytes": self._num_bytes,
            "huge_page_bytes": huge,
            "huge_pages": "all" if huge >= self._num_bytes else "some" if huge else "none",
            "note": _huge_page_note(self._num_bytes, huge),
        }


def available_bytes() -> int:
    """Memory that this process can still touch before the kernel must kill someone, its cgroups' limits included."""
    limits = _cgroup_available_bytes(_CGROUP_MOUNT, _OWN_CGROUPS)
    return max(0, min([psutil.virtual_memory().available, *limits]))


def _cgroup_available_bytes(mount: Path, own_cgroups: Path) -> list[int]:
    """What is left below each limit over this process, negative when it is exceeded; none where there is no limit."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller, *files in _CGROUP_FILES:
            if controller in controllers.split(","):
                group = mount / controller
                # The limits of the groups around it bind too. A container may see the group only as the mount itself.
                for part in ("", *Path(path).parts[1:]):
                    group /= part
                    left += _below_limit(group, *files)
    return left


def _below_limit(group: Path, limit: str, used: str, reclaimable: str) -> list[int]:
    try:
        limit_bytes, used_bytes = (int((group / file).read_text()) for file in (limit, used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or the limit "max"
        return []
    return [limit_bytes - used_bytes + int(statistics.get(reclaimable, 0))]


def _huge_page_bytes(begin: int, end: int, mappings: Path = _MAPPINGS) -> int:
    """AnonHugePages of the mappings that overlap the addresses [begin, end)."""
    total, inside = 0, False
    try:
        with mappings.open() as lines:
            for line in lines:
                key, *values = line.split()
                if not key.endswith(":"):
                    first, last = (int(address, 16) for address in key.split("-"))
                    inside = first < end and begin < last
                elif inside and key == "AnonHugePages:":
                    total += int(values[0]) << 10
    except OSError:
        return 0
    return total


def _huge_page_note(num_bytes: int, huge_bytes: int, setting: Path = _HUGE_PAGE_SETTING) -> str | None:
    if huge_bytes >= num_bytes:
        return None
    try:
        never = "[never]" in setting.read_text()
    except OSError:
        return f"this system has no transparent huge pages: there is no {setting}"
    if never:
        return f"{setting} is [never]; to allow 2 MiB pages: echo madvise | sudo tee {setting}"
    return (
        f"only {_in_words(huge_bytes)} of {_in_words(num_bytes)} are in 2 MiB pages, most likely because free memory "
        "is fragmented; before the next start: echo 1 | sudo tee /proc/sys/vm/compact_memory"
    )


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes} bytes ({num_bytes / 2**30:.2f} GiB)"
