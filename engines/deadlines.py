"""Callbacks at absolute instants of time.perf_counter_ns, to some ten microseconds on Linux.

An event loop's own timers are a thousand times as coarse (1 ms in uvloop and epoll), which would be seen in latencies
of a few milliseconds. The kernel's timer wakes the loop through a file descriptor instead; elsewhere the loop's own do.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

_CLOCK_MONOTONIC = 1
"""What time.perf_counter_ns reads on Linux."""
_TFD_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1


class Deadlines:
    """Of one running event loop."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._numbers = count()
        self._armed_ns: int | None = None
        loop = asyncio.get_running_loop()
        self._arm = _kernel_timer(loop, self._wake) or _loop_timer(loop, self._wake)

    def at(self, due_ns: int, callback: Callable[[int], None]) -> None:
        """Calls it with the instant then, soon after `due_ns`; those of one instant in the order of these calls."""
        heapq.heappush(self._due, (due_ns, next(self._numbers), callback))
        self._arm_next()

    def _wake(self) -> None:
        self._armed_ns = None
        while self._due and self._due[0][0] <= (now_ns := time.perf_counter_ns()):
            heapq.heappop(self._due)[2](now_ns)
        self._arm_next()

    def _arm_next(self) -> None:
        if self._due and (self._armed_ns is None or self._due[0][0] < self._armed_ns):
            self._armed_ns = self._due[0][0]
            self._arm(self._armed_ns)


def _loop_timer(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> Callable[[int], None]:
    """One that is early is armed again by the one that it wakes."""

    def arm(due_ns: int) -> None:
        loop.call_later(max(0, due_ns - time.perf_counter_ns()) / 1e9, wake)

    return arm


class _Time(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


def _kernel_timer(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> Callable[[int], None] | None:
    """None where there is no timerfd (Linux has it; Python's own os.timerfd_create comes with 3.13)."""
    if sys.platform != "linux":
        return None
    libc: Any = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
    if descriptor < 0:
        return None
    setting = _Time()

    def arm(due_ns: int) -> None:
        # At 0 it would be disarmed.
        setting.value_s, setting.value_ns = divmod(max(1, due_ns), 10**9)
        libc.timerfd_settime(descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(setting), None)

    def expired() -> None:
        try:
            os.read(descriptor, 8)
        except BlockingIOError:
            # Armed for a later instant after it had expired.
            return
        wake()

    loop.add_reader(descriptor, expired)
    return arm
