"""An OpenAI-compatible server that misbehaves on purpose: python fault_server.py FAULT [EVERY].

Every EVERY-th completion has the fault, the others are served as they should be. It prints its port and serves until
it is killed. It speaks HTTP by hand, for a proper library would not let it break the rules.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN_S = 0.002
Fault = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


def plain(status: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    return chunk(b"data: " + data + b"\n\n")


TOKEN = event(b'{"choices":[{"text":"x","finish_reason":null}]}')


def ending(completion_tokens: int) -> bytes:
    usage = {"choices": [], "usage": {"completion_tokens": completion_tokens, "prompt_tokens": 4}}
    return event(json.dumps(usage).encode()) + event(b"[DONE]") + chunk(b"")


async def tokens(writer: asyncio.StreamWriter, count: int) -> None:
    writer.write(STREAM_HEAD)
    for _ in range(count):
        writer.write(TOKEN)
        await writer.drain()
        await asyncio.sleep(TOKEN_S)


async def healthy(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted)
    writer.write(ending(wanted))


async def killed(_writer: asyncio.StreamWriter, _wanted: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def hung(_writer: asyncio.StreamWriter, _wanted: int) -> None:
    await asyncio.sleep(3600)


async def slow_loris(writer: asyncio.StreamWriter, _wanted: int) -> None:
    """A byte a second, from the status line on."""
    for byte in STREAM_HEAD + TOKEN * 10:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)


async def endless(writer: asyncio.StreamWriter, _wanted: int) -> None:
    await tokens(writer, 10**9)


async def half_closed(writer: asyncio.StreamWriter, wanted: int) -> None:
    """The server's side ends in the middle of the stream, as when a proxy is restarted."""
    await tokens(writer, wanted // 2)
    writer.write_eof()


async def reset(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted // 2)
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def invalid_utf8(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted // 2)
    writer.write(event(b'{"choices":[{"text":"\xff\xfe\xfa"}]}') + ending(wanted))


async def invalid_json(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted // 2)
    writer.write(event(b'{"choices":[{"text":') + ending(wanted))


async def error_event(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted // 2)
    writer.write(event(b'{"error":{"message":"out of KV blocks","code":500}}') + event(b"[DONE]") + chunk(b""))


async def too_few(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted - 1)
    writer.write(ending(wanted - 1))


async def too_many(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted + 1)
    writer.write(ending(wanted + 1))


async def no_usage(writer: asyncio.StreamWriter, wanted: int) -> None:
    await tokens(writer, wanted)
    writer.write(event(b"[DONE]") + chunk(b""))


def refusing(answer: bytes) -> Fault:
    async def refuse(writer: asyncio.StreamWriter, _wanted: int) -> None:
        writer.write(answer)

    return refuse


FAULTS: dict[str, Fault] = {
    "healthy": healthy,
    "killed": killed,
    "hung": hung,
    "slow_loris": slow_loris,
    "endless": endless,
    "half_closed": half_closed,
    "reset": reset,
    "invalid_utf8": invalid_utf8,
    "invalid_json": invalid_json,
    "error_event": error_event,
    "too_few": too_few,
    "too_many": too_many,
    "no_usage": no_usage,
    "status_429": refusing(plain("429 Too Many Requests", b'{"error":{"message":"slow down"}}', "Retry-After: 7")),
    "status_503": refusing(plain("503 Service Unavailable", b'{"error":{"message":"loading"}}', "Retry-After: 30")),
    "status_500": refusing(
        plain("500 Internal Server Error", b"<html><h1>Internal error</h1></html>", kind="text/html")
    ),
    "not_http": refusing(b"220 mail.example.com ESMTP\r\n\r\n"),
}


class Server:
    def __init__(self, fault: str, every: int) -> None:
        self._fault = FAULTS[fault]
        self._every = every
        self._completions = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, until its client or a fault ends it."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                await self._answer(head, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith("get /v1/models"):
            writer.write(plain("200 OK", b'{"data":[{"id":"faulty"}]}'))
        elif head.startswith("post"):
            self._completions += 1
            fault = self._fault if self._completions % self._every == 0 else healthy
            await fault(writer, json.loads(body)["max_tokens"])
        else:
            writer.write(plain("404 Not Found", b"{}"))


async def main(fault: str, every: int = 1) -> None:
    server = await asyncio.start_server(Server(fault, every).connected, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(word) for word in sys.argv[2:])))
