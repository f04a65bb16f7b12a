"""Serves an engine until it is told to stop, then lets running requests finish."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from neobench.neo_engine.async_engine import AsyncEngine
from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.server.app import create_app
from neobench.neo_engine.tokenizer import TextTokenizer

_logger = logging.getLogger(__name__)
_FLUSH_SECONDS = 5.0
"""For handlers to write out their last bytes once their requests have ended."""


async def serve(
    engine: AsyncEngine,
    *,
    host: str,
    port: int,
    served_model_name: str,
    tokenizer: TextTokenizer,
    drain_seconds: float,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Start the engine and serve until SIGTERM or SIGINT. Call it on the main thread's event loop.

    At the signal /health and new requests get 503 at once; running ones have `drain_seconds` to finish and are then
    ended with an error. A second signal ends them at once. Port 0 takes a free one; `on_ready` gets the URL.
    Raises ConfigError if the address cannot be bound. The engine is closed in every case.
    """
    app = create_app(engine, served_model_name=served_model_name, tokenizer=tokenizer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_FLUSH_SECONDS)
    engine.start()
    try:
        url = await _listen(runner, host, port)
        if on_ready is not None:
            on_ready(url)
        await _until_stopped(engine, drain_seconds)
    finally:
        engine.end_requests()
        await runner.cleanup()
        await engine.shutdown()


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use: choose another, or 0 for any that is free") from None
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    bound_host, bound_port = runner.addresses[0][:2]
    return f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"


async def _until_stopped(engine: AsyncEngine, drain_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, signals.put_nowait, None)
    try:
        await signals.get()
        _logger.info("draining: %d requests have %g s to finish", engine.num_active, drain_seconds)
        drain = asyncio.create_task(engine.drain(drain_seconds))
        second_signal = asyncio.create_task(signals.get())
        await asyncio.wait((drain, second_signal), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, second_signal):
            task.cancel()
        if engine.num_active:
            _logger.warning("ending %d requests that have not finished", engine.num_active)
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
