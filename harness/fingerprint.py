"""The machine and the software a run was measured on. Never fails: what cannot be read is None."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from neobench import __version__

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Those that decide which kernel of the CPU attention runs."""
PACKAGES = ("numpy", "torch", "triton", "transformers", "vllm", "aiohttp", "uvloop", "msgspec", "pyarrow")
COMMAND_TIMEOUT_S = 5.0

_SYSTEM = Path("/sys/devices/system")
_T = TypeVar("_T")


def take_fingerprint() -> dict[str, Any]:
    """{"cpu", "memory", "gpus", "software", "source"}; plain JSON values throughout."""
    return {
        "cpu": _or_none(_cpu),
        "memory": _or_none(_memory),
        "gpus": _or_none(_gpus),
        "software": _or_none(_software),
        "source": source_state(),
    }


def source_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout this module runs from; None when it is installed without one."""
    return _or_none(_source_state)


def _or_none(read: Callable[[], _T]) -> _T | None:
    """Drivers, containers and odd kernels fail in ways nobody can list; a run must not end for that."""
    try:
        return read()
    except Exception:
        return None


def _cpu() -> dict[str, Any]:
    import psutil

    cpuinfo = _or_none(lambda: Path("/proc/cpuinfo").read_text()) or ""
    flags = set((_cpuinfo_value(cpuinfo, "flags") or "").split())
    return {
        "model": _cpuinfo_value(cpuinfo, "model name") or platform.processor() or None,
        "sockets": len(set(re.findall(r"^physical id\s*:\s*(\d+)", cpuinfo, re.MULTILINE))) or None,
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "available_cores": _or_none(lambda: len(os.sched_getaffinity(0))),
        "quota_cores": _or_none(_cgroup_cores),
        "flags": [flag for flag in CPU_FLAGS if flag in flags] if flags else None,
        "l3_bytes": _or_none(_l3_bytes),
        "numa_nodes": len(list((_SYSTEM / "node").glob("node[0-9]*"))) or None,
        "governor": _or_none(lambda: _read(_SYSTEM / "cpu/cpu0/cpufreq/scaling_governor")),
        "virtualised": "hypervisor" in flags if flags else None,
    }


def _cpuinfo_value(cpuinfo: str, key: str) -> str | None:
    found = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else None


def _cgroup_cores() -> float | None:
    quota_us, period_us = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    return None if quota_us == "max" else int(quota_us) / int(period_us)


def _l3_bytes() -> int | None:
    """All L3 caches together; each is listed once for every core that shares it."""
    caches = {}
    for cache in (_SYSTEM / "cpu").glob("cpu[0-9]*/cache/index3"):
        size = _read(cache / "size")
        caches[_read(cache / "shared_cpu_list")] = int(size.rstrip("KM")) * (2**20 if size.endswith("M") else 2**10)
    return sum(caches.values()) or None


def _memory() -> dict[str, Any]:
    import psutil

    thp = _or_none(lambda: _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")))
    chosen = re.search(r"\[(\w+)\]", thp or "")
    limit = _or_none(lambda: _read(Path("/sys/fs/cgroup/memory.max")))
    return {
        "total_bytes": psutil.virtual_memory().total,
        "limit_bytes": int(limit) if limit and limit.isdigit() else None,
        "transparent_hugepages": chosen.group(1) if chosen else None,
    }


def _gpus() -> list[dict[str, Any]] | None:
    """Empty without nvidia-smi; None when it is there and cannot tell."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = _output_of("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    return [
        {"name": name, "memory_bytes": int(mebibytes) * 2**20 if mebibytes.isdigit() else None, "driver": driver}
        for name, mebibytes, driver in rows
    ]


def _software() -> dict[str, Any]:
    return {
        "neobench": __version__,
        "os": _or_none(lambda: platform.freedesktop_os_release()["PRETTY_NAME"]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {package: _version_of(package) for package in PACKAGES},
    }


def _version_of(package: str) -> str | None:
    """From the installed metadata: importing torch only to ask would take seconds."""
    return _or_none(lambda: importlib.metadata.version(package))


def _source_state() -> dict[str, Any] | None:
    here = Path(__file__).resolve()
    root = Path(_output_of("git", "-C", str(here.parent), "rev-parse", "--show-toplevel"))
    # An environment installed inside somebody's own repository must not pass for a checkout of neobench.
    if not (root / "harness" / here.name).samefile(here):
        return None
    commit = _or_none(lambda: _output_of("git", "-C", str(root), "rev-parse", "--verify", "HEAD"))
    return {"commit": commit, "dirty": bool(_output_of("git", "-C", str(root), "status", "--porcelain"))}


def _read(path: Path) -> str:
    return path.read_text().strip()


def _output_of(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL
    ).stdout.strip()
