"""What HTTP costs a load generator in Python: neobench's own connections against aiohttp and httpx.

    python -m benchmarks.loadgen.http_clients [--seconds 3] [--concurrency 32] [--tokens 1,32,128] [-o FILE]

Each client keeps so many streamed completions in flight against `neobench.engines.null_server`, in a process and with a
server of its own, and reads every one of them with the same code (engines/sse.py), so that only HTTP differs. CPU
seconds are the client's alone. Both processes share the machine: run nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import msgspec

from neobench.engines.http_pool import HttpPool
from neobench.engines.process import ServerProcess, free_port
from neobench.engines.sse import DONE, EventSplitter, decode_event
from neobench.harness.runner import RunContext, run_async
from neobench.results.store import encode_pretty

SCHEMA = "neobench/http-clients/v1"
PROMPT = list(range(128))
WARMUP_S = 0.5
START_TIMEOUT_S = 30.0


class Answer:
    """Counts the tokens of one stream."""

    def __init__(self) -> None:
        self.tokens = 0
        self._splitter = EventSplitter()

    def feed(self, chunk: bytes) -> None:
        for payload in self._splitter.feed(chunk):
            if payload != DONE:
                self.tokens += decode_event(payload).carries_tokens

    # --- as a receiver of HttpPool

    def headed(self, status: int, headers: Mapping[bytes, bytes]) -> bool:  # noqa: ARG002
        assert status == 200
        return True

    def arrived(self, body: bytes, at_ns: int) -> bool:  # noqa: ARG002
        self.feed(body)
        return True


class Exchange(Protocol):
    async def __call__(self, body: bytes, answer: Answer) -> None: ...


@asynccontextmanager
async def own_client(url: str) -> AsyncIterator[Exchange]:
    pool = HttpPool(url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()

    async def exchange(body: bytes, answer: Answer) -> None:
        await pool.exchange(b"%b%d\r\n\r\n%b" % (head, len(body), body), answer)

    try:
        yield exchange
    finally:
        pool.close()


@asynccontextmanager
async def aiohttp_client(url: str) -> AsyncIterator[Exchange]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def exchange(body: bytes, answer: Answer) -> None:
            headers = {"Content-Type": "application/json"}
            async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
                async for chunk in response.content.iter_any():
                    answer.feed(chunk)

        yield exchange


@asynccontextmanager
async def httpx_client(url: str) -> AsyncIterator[Exchange]:
    httpx: Any = importlib.import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None) as client:

        async def exchange(body: bytes, answer: Answer) -> None:
            headers = {"Content-Type": "application/json"}
            async with client.stream("POST", f"{url}/v1/completions", content=body, headers=headers) as response:
                async for chunk in response.aiter_raw():
                    answer.feed(chunk)

        yield exchange


CLIENTS = {"neobench": own_client, "aiohttp": aiohttp_client, "httpx": httpx_client}


async def closed_loop(exchange: Exchange, *, tokens: int, concurrency: int, seconds: float) -> dict[str, float]:
    """Rates and CPU of what ended within `seconds`; a run-in is not counted."""
    fields = {"model": "null", "stream": True, "prompt": PROMPT, "max_tokens": tokens}
    body = msgspec.json.encode({**fields, "stream_options": {"include_usage": True}})
    start_s = time.perf_counter() + WARMUP_S
    end_s = start_s + seconds
    done = itertools.count()

    async def stream_after_stream() -> None:
        while time.perf_counter() < end_s:
            answer = Answer()
            await exchange(body, answer)
            if answer.tokens != tokens:
                raise RuntimeError(f"{answer.tokens} tokens came, not {tokens}")
            next(done)

    streams = [asyncio.ensure_future(stream_after_stream()) for _ in range(concurrency)]
    await asyncio.sleep(start_s - time.perf_counter())
    first, cpu_s, began_s = next(done), time.process_time(), time.perf_counter()
    await asyncio.gather(*streams)
    requests = next(done) - first - 1
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began_s
    return {
        "requests": requests,
        "requests_per_s": requests / wall_s,
        "tokens_per_s": requests * tokens / wall_s,
        "cpu_us_per_request": cpu_s * 1e6 / requests,
        "cpu_percent": 100 * cpu_s / wall_s,
    }


async def measure(client: str, *, tokens: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """One row, against a server of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="neobench-http-") as folder:
        command = [sys.executable, "-m", "neobench.engines.null_server", str(port)]
        server = ServerProcess(command, port=port, log_path=Path(folder, "server.log"))
        await server.start(timeout_s=START_TIMEOUT_S, progress=lambda _: None)
        try:
            async with CLIENTS[client](server.url) as exchange:
                figures = await closed_loop(exchange, tokens=tokens, concurrency=concurrency, seconds=seconds)
        finally:
            await server.stop()
    return {"client": client, "tokens": tokens, "concurrency": concurrency, **figures}


def run_row(client: str, tokens: int, concurrency: int, seconds: float) -> dict[str, Any]:
    return run_async(measure(client, tokens=tokens, concurrency=concurrency, seconds=seconds))


def in_a_process_of_its_own(client: str, tokens: int, concurrency: int, seconds: float) -> dict[str, Any]:
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawning) as executor:
        return executor.submit(run_row, client, tokens, concurrency, seconds).result()


def available() -> dict[str, str]:
    """Client -> version; says which is not installed."""
    versions = {}
    for client in CLIENTS:
        try:
            versions[client] = version(client)
        except PackageNotFoundError:
            print(f"{client} is left out: pip install {client}")
    return versions


def format_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| tokens of a reply | client | requests/s | tokens/s | CPU, µs a request | CPU, % of a core |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = f"{row['requests_per_s']:,.0f} | {row['tokens_per_s']:,.0f}"
        cpu = f"{row['cpu_us_per_request']:,.0f} | {row['cpu_percent']:.0f}"
        lines.append(f"| {row['tokens']} | {row['client']} | {rates} | {cpu} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row, default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=32, help="streams in flight, default: %(default)s")
    parser.add_argument("--tokens", default="1,32,128", help="of a reply, default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the rows as JSON")
    given = parser.parse_args()
    if given.seconds <= 0 or given.concurrency < 1:
        parser.error("--seconds must be above 0 and --concurrency at least 1")
    context = RunContext.capture(["python", "-m", "benchmarks.loadgen.http_clients", *sys.argv[1:]])
    versions = available()
    rows = []
    for tokens in given.tokens.split(","):
        for client in versions:
            rows.append(in_a_process_of_its_own(client, int(tokens), given.concurrency, given.seconds))
            print(f"{client}, {tokens} tokens: {rows[-1]['requests_per_s']:,.0f} requests/s", flush=True)
    print(format_table(rows))
    if given.output is not None:
        provenance = msgspec.to_builtins(context.provenance())
        document = {"schema": SCHEMA, "rows": rows, "versions": versions, "provenance": provenance}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_bytes(encode_pretty({**document, "fingerprint": context.fingerprint}))


if __name__ == "__main__":
    main()
