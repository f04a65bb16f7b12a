"""One of several client processes of a run: python -m neobench.harness.worker, which reads a Plan from stdin.

It drives its shard with the driver that a run in one process uses, and writes its records to a file of its own. It ends
when its stdin does, so that it does not outlive the process that measures, and keeps its records then too.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from neobench.harness.driver import DriveOptions, drive
from neobench.harness.engine import Client, ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.flight import Counts
from neobench.harness.request import PromptRequest
from neobench.harness.runner import run_async, synced
from neobench.harness.worker_protocol import Ended, FromWorker, Plan, Progress, Ready, Shard, Start, ToWorker
from neobench.results.record import RequestRecord
from neobench.results.store import RecordLog, StoreError, requests_file

MAX_LINE_BYTES = 2**24


class _Target:
    """A client as the driver wants it; whether the engine lives is watched by the process that started it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        return await self._client.generate(request, sink)

    async def check_alive(self) -> None:
        return


class _Orders:
    """Those on stdin: when to start, and when to stop."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.stop = asyncio.Event()
        self._reader = reader
        self._origin_ns: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def plan(self) -> Plan:
        return msgspec.json.decode(await self._reader.readline(), type=Plan)

    async def origin_ns(self) -> int:
        return await self._origin_ns

    async def follow(self) -> None:
        decoder: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
        while line := await self._reader.readline():
            order = decoder.decode(line)
            if not isinstance(order, Start):
                break
            self._origin_ns.set_result(order.origin_ns)
        self.stop.set()


def make_client(recipe: ClientRecipe) -> Client:
    """Raises EngineError when the factory cannot be imported or called."""
    module, _, name = recipe.factory.partition(":")
    try:
        client: Client = getattr(importlib.import_module(module), name)(**recipe.arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise EngineError(f"cannot make a client with {recipe.factory}: {error}") from error
    return client


async def work(plan: Plan, orders: _Orders) -> Ended:
    """From opening the client to the last record."""
    shard = msgspec.msgpack.decode(Path(plan.shard_path).read_bytes(), type=Shard)
    try:
        client = make_client(plan.recipe)
        await client.open()
    except EngineError as error:
        return Ended(client_error=str(error))
    try:
        log = RecordLog.create(Path(plan.run_folder) / requests_file(plan.client))
        try:
            return await _drive(plan, shard, client, log, orders)
        finally:
            log.close()
    except StoreError as error:
        return Ended(store_error=str(error))
    finally:
        await client.close()


async def _drive(plan: Plan, shard: Shard, client: Client, log: RecordLog, orders: _Orders) -> Ended:
    def keep(record: RequestRecord) -> None:
        log.append(msgspec.structs.replace(record, client=plan.client))

    async def ready() -> int:
        tell(Ready())
        return await orders.origin_ns()

    def show(counts: Counts) -> None:
        tell(Progress(counts.issued, counts.completed, counts.failed, counts.tokens, counts.lost_connections))

    async with synced(log):
        result = await drive(
            shard.requests,
            np.array(shard.offsets_ns, dtype=np.int64),
            _Target(client),
            keep,
            timeout_s=plan.timeout_s,
            concurrency=plan.concurrency,
            closed_loop=plan.closed_loop,
            warmup=shard.warmup,
            on_schedule_start=ready,
            options=DriveOptions(stop=orders.stop, on_progress=show, progress_interval_s=plan.progress_interval_s),
        )
    log.sync()
    return Ended(interrupted=result.interrupted, usage=result.usage)


def tell(message: FromWorker) -> None:
    # Nobody may be left to read it; the records are in their file all the same.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(message) + b"\n")


async def main() -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport: Any
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    orders = _Orders(reader)
    plan = await orders.plan()
    following = asyncio.create_task(orders.follow())
    try:
        tell(await work(plan, orders))
    finally:
        following.cancel()
        transport.close()


if __name__ == "__main__":
    run_async(main())
