"""What an engine tells of its queues and of its KV cache while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from neobench.harness.engine import Engine

LEVELS = ("running_requests", "waiting_requests", "device_kv_used_fraction", "host_kv_used_fraction")
"""Of Engine.stats(): requests that hold KV and those that wait for it, and used blocks over all blocks of each tier."""
STATS_TIMEOUT_S = 5.0


@runtime_checkable
class RunsInProcess(Protocol):
    """An engine whose process is known; this one's own id for an engine that lives in it."""

    @property
    def process_id(self) -> int | None: ...


def process_id_of(engine: Engine) -> int | None:
    """None: somewhere else, or not known."""
    return engine.process_id if isinstance(engine, RunsInProcess) else None


async def watch_levels(engine: Engine, on_levels: Callable[[Mapping[str, Any]], None], interval_s: float) -> None:
    """Until cancelled, or until the engine shows that it has no levels. Raises what the engine's stats() raises."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        due_s = max(due_s + interval_s, loop.time())
        await asyncio.sleep(due_s - loop.time())
        stats = await asyncio.wait_for(engine.stats(), STATS_TIMEOUT_S)
        levels = {name: float(stats[name]) for name in LEVELS if name in stats}
        if not levels:
            return
        on_levels(levels)
