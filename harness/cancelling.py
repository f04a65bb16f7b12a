"""Ending tasks for sure."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_AFTER_S = 0.1


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel until all have ended, whatever they end with.

    Once is not enough: before Python 3.12 asyncio.wait_for swallows a cancellation that arrives just as its work ends.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=AGAIN_AFTER_S)
    await asyncio.gather(*tasks, return_exceptions=True)
