"""Reads a result file of whichever tool wrote it."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import msgspec

from neobench.results.foreign import ConvertError, ForeignRun
from neobench.results.foreign_guidellm import looks_like_guidellm, read_guidellm
from neobench.results.foreign_vllm import looks_like_vllm, read_vllm

_KNOWN = "what `vllm bench serve --save-result` and GuideLLM's JSON output look like"
MOST_KEYS_SHOWN = 6


def read_content(path: Path) -> bytes:
    """Unpacked if it is gzipped. Raises ConvertError."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConvertError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_runs(content: bytes) -> list[ForeignRun]:
    """The runs of one file: a JSON document, a list of them, or one a line (`vllm bench serve --append-result`).

    Raises ConvertError.
    """
    runs: list[ForeignRun] = []
    documents = read_documents(content)
    for number, document in enumerate(documents, start=1):
        try:
            if looks_like_guidellm(document):
                runs += read_guidellm(document)
            elif looks_like_vllm(document):
                runs.append(read_vllm(document))
            else:
                raise ConvertError(f"it is not {_KNOWN}: it is {_described(document)}")
        except ConvertError as error:
            where = f"result {number} of {len(documents)}: " if len(documents) > 1 else ""
            raise ConvertError(where + str(error)) from None
    return runs


def read_documents(content: bytes) -> list[Any]:
    """Raises ConvertError."""
    if not content.strip():
        raise ConvertError("it is empty")
    try:
        document = _decode(content)
    except msgspec.DecodeError as error:
        documents = _lines(content)
        if documents is None:
            raise ConvertError(f"it is not JSON: {error}") from None
        return documents
    if isinstance(document, list):
        if not document:
            raise ConvertError("it is an empty list")
        return document
    return [document]


def _lines(content: bytes) -> list[Any] | None:
    """None unless every line is a JSON object of its own."""
    try:
        documents = [_decode(line) for line in content.splitlines() if line.strip()]
    except msgspec.DecodeError:
        return None
    return documents if len(documents) > 1 and all(isinstance(one, dict) for one in documents) else None


def _decode(content: bytes) -> Any:
    """Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        # vLLM writes with Python's json, for which an infinite burstiness is Infinity: no JSON, but its own reader's.
        if b"Infinity" not in content and b"NaN" not in content:
            raise
        try:
            return json.loads(content)
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from None


def _described(document: object) -> str:
    if not isinstance(document, dict):
        return f"a JSON {type(document).__name__}"
    keys = ", ".join(list(document)[:MOST_KEYS_SHOWN]) or "none"
    return f"an object with the keys {keys}" + (", ..." if len(document) > MOST_KEYS_SHOWN else "")
