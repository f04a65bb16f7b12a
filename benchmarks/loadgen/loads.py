"""What is asked of a tool, and what it says it got: the terms that all tools are compared in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PROMPT_TOKENS = 128
CLOSED_LOOP_CONCURRENCY = 32

Arrival = Literal["poisson", "constant", "closed"]
"""closed: so many requests in flight, whatever rate that makes."""


@dataclass(frozen=True, kw_only=True)
class Load:
    arrival: Arrival
    rate: float | None = None
    """Requests per second, of an open loop."""
    concurrency: int | None = None
    """Of a closed one."""
    num_requests: int
    output_tokens: int

    @property
    def name(self) -> str:
        if self.arrival == "closed":
            return f"closed-{self.concurrency}-{self.output_tokens}-tokens"
        return f"{self.arrival}-{self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A tool's own figures, by its own definitions; None where it has none."""

    completed: int
    failed: int
    requests_per_s: float | None
    ttft_from: Literal["scheduled", "sent"]
    """The instant at which its headline TTFT starts."""
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    sent_ttft_p50_ms: float | None
    sent_ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    """(last token - first token) / (tokens - 1), of each request."""
    itl_p50_ms: float | None
    """Gaps between tokens, of all requests."""
    itl_p99_ms: float | None
    lag_p99_ms: float | None
    """From when a request was due until it was sent."""
    objections: tuple[str, ...] = ()
    """What the tool itself says against its figures."""
