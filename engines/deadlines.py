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

_CLOCK_MONOTONIC = 1
"""What time.perf_counter_ns reads on Linux."""
_TFD_TIMER_ABSTIME = 1


class Deadlines:
    """Of one running event loop."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._numbers = count()
        self._armed_ns: int | None = None
        loop = asyncio.get_running_loop()
        self._timer = _kernel_timer(loop, self._wake) or _LoopTimer(loop, self._wake)

    def close(self) -> None:
        """What is not due yet is never called."""
        self._due.clear()
        self._timer.close()

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
            self._timer.arm(self._armed_ns)


class _LoopTimer:
    """One that wakes too early is armed again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, due_ns: int) -> None:
        self.close()
        self._handle = self._loop.call_later(max(0, due_ns - time.perf_counter_ns()) / 1e9, self._wake)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class _Time(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


def _kernel_timer(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> _KernelTimer | None:
    """None where there is no timerfd. Linux has it; Python's own os.timerfd_create comes with 3.13."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    descriptor = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    return None if descriptor < 0 else _KernelTimer(loop, wake, libc, descriptor)


class _KernelTimer:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None], libc: ctypes.CDLL, descriptor: int
    ) -> None:
        self._loop = loop
        self._wake = wake
        self._set = libc.timerfd_settime
        self._descriptor = descriptor
        self._time = _Time()
        loop.add_reader(descriptor, self._expired)

    def arm(self, due_ns: int) -> None:
        # At 0 it would be disarmed.
        self._time.value_s, self._time.value_ns = divmod(max(1, due_ns), 10**9)
        self._set(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(self._time), None)

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _expired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            # It was armed for another instant after it had expired.
            return
        self._wake()
