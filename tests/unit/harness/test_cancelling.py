from __future__ import annotations

import asyncio

import pytest

from neobench.harness.cancelling import cancel_and_wait


async def forever(swallowed: list[int], times: int) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if len(swallowed) == times:
                raise
            swallowed.append(times)


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    swallowed: list[int] = []
    task = asyncio.create_task(forever(swallowed, 2))
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(task), 30)
    assert task.cancelled()
    assert len(swallowed) == 2


async def test_what_has_failed_or_ended_is_left_at_that() -> None:
    async def fails() -> None:
        raise ValueError("before the end")

    failed, ended = asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0))
    await asyncio.wait({failed, ended})
    await cancel_and_wait(failed, ended)
    with pytest.raises(ValueError, match="before the end"):
        failed.result()
