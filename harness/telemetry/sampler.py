"""What a sampler is. One file a source: processors, GPUs, memory controllers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class SamplerError(Exception):
    """There is nothing to sample here; the message says why, for the run's notes."""


class Sampler(Protocol):
    """Called from one thread, `open` first. Any other exception ends the sampler too, with its text as the note."""

    name: str

    def open(self) -> None:
        """Find the counters and remember where they stand. Raises SamplerError."""

    def sample(self) -> Mapping[str, Any]:
        """Name -> number, None, or a list with one entry a CPU or GPU. Rates are over the time since the last call."""

    def close(self) -> None:
        """Safe to call after a failed `open`."""
