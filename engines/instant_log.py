"""A server's own account of when what happened, to hold a client's figures against.

One JSON object a request, in the order in which the requests ended. All `_ns` are of time.perf_counter_ns, which is one
clock for all processes of a Linux machine:

    request_id       of the header X-Request-Id, or null
    prompt_start     the first bytes from where the prompt begins; neobench's prompts begin differently
    prompt_tokens    as reported to the client
    output_tokens    as asked for
    received_ns      when the request's last byte had been read
    began_ns         when its service was to begin: later than received_ns where it waits for its turn
    last_due_ns      when its last token was to leave
    token_ns         before each token was handed to the socket: no client can have had it earlier
    completed        false: the client hung up
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from neobench.harness.engine import EngineError

IDLE_S = 0.5
"""After so long without a request on its way, what is known is written."""
PROMPT_START_BYTES = 40


class Instants(msgspec.Struct, kw_only=True):
    """Of one request. Its fields are explained at the top of this module."""

    request_id: str | None
    prompt_start: str
    prompt_tokens: int
    output_tokens: int
    received_ns: int
    began_ns: int
    last_due_ns: int
    token_ns: list[int]
    completed: bool = False


class InstantLog:
    """Encoded as each request ends, which takes microseconds, and written once none has been on its way for a while."""

    def __init__(self, path: Path) -> None:
        """Empties the file. Raises EngineError where it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        except OSError as error:
            raise EngineError(f"cannot write the instants to {path}: {error}") from error
        self._path = path
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode
        self._on_their_way = 0
        self._writing: asyncio.TimerHandle | None = None

    def began(self) -> None:
        self._on_their_way += 1
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def ended(self, instants: Instants) -> None:
        self._lines += (self._encode(instants), b"\n")
        self._on_their_way -= 1
        if not self._on_their_way:
            self._writing = asyncio.get_running_loop().call_later(IDLE_S, self.write)

    def write(self) -> None:
        """What has ended since the last time."""
        with self._path.open("ab") as file:
            file.writelines(self._lines)
        self._lines.clear()


def read_instants(path: Path) -> list[Instants]:
    """Raises EngineError for a file that is none."""
    decoder = msgspec.json.Decoder(Instants)
    try:
        return [decoder.decode(line) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(f"{path} holds no instants of a server: {error}") from error
