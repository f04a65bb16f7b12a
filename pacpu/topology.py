"""Which CPUs there are, how they hang together, and which of them a worker pool should be pinned to."""

from __future__ import annotations

import os
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")


def usable_cpus() -> tuple[int, ...]:
    """CPUs that this process may run on, in order; none where the system has no notion of it (only Linux has)."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def numa_nodes(system: Path = _SYSTEM) -> dict[int, tuple[int, ...]]:
    """Usable CPUs of each NUMA node that has some; those that the system puts on no node count as node 0's."""
    nodeless = set(usable_cpus())
    nodes: dict[int, set[int]] = {}
    for folder in system.glob("node/node[0-9]*"):
        nodes[int(folder.name.removeprefix("node"))] = cpus = _read_cpu_list(folder / "cpulist") & nodeless
        nodeless -= cpus
    nodes[0] = nodes.get(0, set()) | nodeless
    return {node: tuple(sorted(cpus)) for node, cpus in sorted(nodes.items()) if cpus}


def smt_siblings(system: Path = _SYSTEM) -> dict[int, tuple[int, ...]]:
    """For each usable CPU the usable CPUs of its physical core, in order, itself included."""
    usable = usable_cpus()
    siblings = {}
    for cpu in usable:
        core = _read_cpu_list(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings[cpu] = tuple(sorted(core.intersection(usable) | {cpu}))
    return siblings


def choose_cpus(num_threads: int, *, reserved: int = 1, system: Path = _SYSTEM) -> tuple[int, ...] | None:
    """A CPU for each thread of a pool, or None: do not pin.

    - None when there are more threads than usable CPUs, since two pinned to one CPU wait for each other while another
      idles, and when there is at most one usable CPU.
    - `reserved` CPUs stay free for the caller, whose Python thread feeds the pool and the GPU: those of the first
      usable core, as a rule CPU 0's, where most interrupts arrive too, then of the next. Fewer, down to none, when the
      threads need them.
    - All threads on one NUMA node if one is large enough, the one with the most CPUs left: memory that they touch first
      is then local to all of them. Otherwise one CPU from each node in turn, for the bandwidth of all.
    - One CPU of each physical core before the second SMT siblings, which add little to work bound by memory; last the
      siblings of reserved CPUs.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads: expected 1 or more, got {num_threads}")
    if reserved < 0:
        raise ValueError(f"reserved: expected 0 or more, got {reserved}")
    usable, siblings = usable_cpus(), smt_siblings(system)
    if len(usable) < max(2, num_threads):
        return None
    by_core = sorted(usable, key=lambda cpu: (siblings[cpu], cpu))
    free = set(by_core[: min(reserved, len(usable) - num_threads)])

    def preference(cpu: int) -> tuple[int, bool, int]:
        return siblings[cpu].index(cpu), not free.isdisjoint(siblings[cpu]), cpu

    nodes = [sorted(set(cpus) - free, key=preference) for cpus in numa_nodes(system).values()]
    largest = max(nodes, key=len)
    if len(largest) >= num_threads:
        return tuple(largest[:num_threads])
    in_turn = [
        (preference(cpu)[:2], turn, node, cpu) for node, cpus in enumerate(nodes) for turn, cpu in enumerate(cpus)
    ]
    return tuple(cpu for *_, cpu in sorted(in_turn)[:num_threads])


def _read_cpu_list(path: Path) -> set[int]:
    """The CPUs of a list like 0-3,8; none where there is no such file."""
    try:
        ranges = path.read_text().strip()
    except OSError:
        return set()
    cpus: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
