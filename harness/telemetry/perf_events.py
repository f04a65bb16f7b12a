"""Counters of the kernel's perf_event_open, as /sys/bus/event_source describes them. Linux alone."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Mapping
from pathlib import Path

EVENT_SOURCES = Path("/sys/bus/event_source/devices")
_SYSCALL_NUMBERS = {"x86_64": 298, "aarch64": 241}
_ATTRIBUTE_BYTES = 64
"""PERF_ATTR_SIZE_VER0 of linux/perf_event.h: type, size and config are all that counting needs."""


def cpus_of(source: Path) -> list[int]:
    """On which CPUs a source's counters are opened: one a socket, by its cpumask."""
    cpus: list[int] = []
    for part in (source / "cpumask").read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def encode_event(source: Path, terms: Mapping[str, int]) -> int:
    """`config` of an event given by its terms, e.g. {"event": 4, "umask": 3}, laid out by the source's format files.

    A format is "config:0-7", or "config:0-7,32-35" where the bits are in pieces. Raises ValueError for one that is in
    another word than config.
    """
    config = 0
    for term, value in terms.items():
        layout = (source / "format" / term).read_text().strip()
        word, _, ranges = layout.partition(":")
        if word != "config":
            raise ValueError(f"{source.name}: {term} is in {word}")
        for piece in ranges.split(","):
            low, _, high = piece.partition("-")
            width = int(high or low) - int(low) + 1
            config |= (value & ((1 << width) - 1)) << int(low)
            value >>= width
    return config


def parse_terms(event: str) -> dict[str, int]:
    """ "event=0x04,umask=0x03" -> {"event": 4, "umask": 3}; a term alone is 1."""
    return {name: int(value or "1", 0) for name, value in re.findall(r"(\w+)(?:=(\w+))?", event)}


class Counter:
    """One counter of one CPU, all processes of it."""

    def __init__(self, kind: int, config: int, cpu: int) -> None:
        """Raises OSError: EACCES without CAP_PERFMON (or perf_event_paranoid 0), ENOENT for an event it lacks."""
        number = _SYSCALL_NUMBERS.get(platform.machine())
        if number is None:
            raise OSError(f"perf_event_open is not known on {platform.machine()}")
        attributes = struct.pack("<IIQ", kind, _ATTRIBUTE_BYTES, config).ljust(_ATTRIBUTE_BYTES, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        every_process, no_group, no_flags = ctypes.c_int(-1), ctypes.c_int(-1), ctypes.c_ulong(0)
        fd = libc.syscall(ctypes.c_long(number), attributes, every_process, ctypes.c_int(cpu), no_group, no_flags)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._fd: int | None = fd

    def read(self) -> int:
        assert self._fd is not None
        return int.from_bytes(os.read(self._fd, 8), "little")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
