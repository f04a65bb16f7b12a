"""Whether the engine under test still lives."""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from neobench.harness.engine import EngineError

LIVENESS_TIMEOUT_S = 10.0
"""A liveness check without an answer says that the engine is busy, not that it is dead."""


class Alive(Protocol):
    async def check_alive(self) -> None: ...


@runtime_checkable
class Suspecting(Protocol):
    """An engine that `check_alive` asks after a lost connection alone, to be told of those of other processes."""

    def connection_lost(self) -> None: ...


async def why_dead(engine: Alive) -> EngineError | None:
    """None while it lives, or while it is too busy to say."""
    try:
        await asyncio.wait_for(engine.check_alive(), LIVENESS_TIMEOUT_S)
    except asyncio.TimeoutError:
        return None
    except EngineError as error:
        return error
    except Exception as error:
        return EngineError(f"cannot tell whether the engine is alive: {error!r}")
    return None
