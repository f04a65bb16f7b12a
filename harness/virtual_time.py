"""An event loop in which waiting takes no time: its clock jumps to the next timer.

Driver, metrics and an in-process engine run on it as they are; what they take is Python's time alone. All they do
follows from the order of timers, so that the same seed gives the same records to the byte.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class NothingWillHappenError(RuntimeError):
    """Every task waits, and no timer is left that could wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a clock of its own, which starts at 0.

    What would run in a thread runs on the spot and takes no virtual time. Signals are still heard: their pipe is looked
    at, without waiting, between any two timers. Other files and sockets may be watched, but nobody waits for them.
    """

    _scheduled: list[asyncio.TimerHandle]  # asyncio's heap of timers

    def __init__(self) -> None:
        self.now_ns = 0
        self._order = itertools.count()
        super().__init__(_NeverWaits(self))

    def time(self) -> float:
        return self.now_ns / 1e9

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Timers of the same instant run in the order in which they were set, which asyncio leaves open."""
        timer = _Timer(when, callback, args, self, context, next(self._order))
        heapq.heappush(self._scheduled, timer)
        return timer

    def run_in_executor(self, _executor: Any, function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Timer(asyncio.TimerHandle):
    __slots__ = ("_order",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: Any,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
        order: int,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._order = order
        self._scheduled = True  # lets the loop count those that are cancelled, and sweep them out

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self._order) < (other.when(), other._order)


class _NeverWaits(selectors.DefaultSelector):
    """Instead of waiting for `timeout` seconds it puts the loop's clock forward by as much."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        happened = super().select(0)
        if happened or timeout == 0:
            return happened
        if timeout is None:
            raise NothingWillHappenError(
                "virtual time stands still: every task waits for another, and no timer is left that could wake one"
            )
        # Timers lie on whole nanoseconds. The difference of two floats is one up to an error far below one.
        self._loop.now_ns += round(timeout * 1e9)
        return happened


class VirtualClock:
    """The Clock of the VirtualTimeLoop that is running."""

    def now_ns(self) -> int:
        return _running_loop().now_ns

    async def sleep_until_ns(self, deadline_ns: int) -> None:
        loop = _running_loop()
        await asyncio.sleep(max(0, deadline_ns - loop.now_ns) / 1e9)
        while (remaining_ns := deadline_ns - loop.now_ns) > 0:
            await asyncio.sleep(remaining_ns / 1e9)


def _running_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise RuntimeError("virtual time passes on a VirtualTimeLoop alone: start it with run_in_virtual_time")
    return loop


def run_in_virtual_time(main: Coroutine[Any, Any, _T]) -> _T:
    """As asyncio.run. Raises NothingWillHappenError when `main` can never end."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(_end_all(asyncio.all_tasks(loop)))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _end_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
