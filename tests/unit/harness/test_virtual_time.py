from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from neobench.harness.runner import stop_on_signals
from neobench.harness.virtual_time import NothingWillHappenError, VirtualClock, run_in_virtual_time


def test_waiting_takes_virtual_time_alone() -> None:
    async def main() -> int:
        await asyncio.sleep(3600)
        await VirtualClock().sleep_until_ns(4_000_000_000_001)
        return VirtualClock().now_ns()

    start = time.perf_counter()
    assert run_in_virtual_time(main()) == 4_000_000_000_001
    assert time.perf_counter() - start < 30


def test_timers_of_one_instant_run_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        order: list[int] = []
        for index in range(100):
            timer = loop.call_at(1.0, order.append, index)
            if index % 3 == 0:
                timer.cancel()
        await asyncio.sleep(2)
        return order

    assert run_in_virtual_time(main()) == [index for index in range(100) if index % 3]


def test_a_wait_that_nothing_can_end_is_an_error() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappenError, match="no timer is left"):
        run_in_virtual_time(main())


def test_threads_take_no_virtual_time_and_their_errors_arrive() -> None:
    async def main() -> int:
        await asyncio.to_thread(time.sleep, 0.01)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        return VirtualClock().now_ns()

    assert run_in_virtual_time(main()) == 0


def test_a_signal_is_heard_while_virtual_time_races() -> None:
    async def main() -> bool:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            asyncio.get_running_loop().call_later(100, os.kill, os.getpid(), signal.SIGINT)
            while not stop.is_set():
                await asyncio.sleep(1)
        return stop.is_set()

    assert run_in_virtual_time(main())


async def test_the_clock_needs_its_loop() -> None:
    with pytest.raises(RuntimeError, match="run_in_virtual_time"):
        VirtualClock().now_ns()
