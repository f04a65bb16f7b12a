"""Records of a run while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from neobench.results.record import RequestRecord

TAIL_BLOCK_BYTES = 2**20


class RecordTail:
    """Reads the records of a file that another process still appends to, and that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        self._decoder = msgspec.json.Decoder(RequestRecord)

    def read(self) -> Iterator[RequestRecord]:
        """Those whose lines are whole by now and that were not read before."""
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return
        while block := self._file.read(TAIL_BLOCK_BYTES):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                yield self._decoder.decode(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
