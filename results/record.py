"""What happened to one request. The only schema that driver, store and metrics share."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

GOODPUT_METRICS = ("ttft", "tpot", "e2el")
"""What a goodput limit may be set on, as in `vllm bench serve`."""


class Outcome(str, enum.Enum):
    """How a request ended; everything but OK is a failure and stays in the records."""

    OK = "ok"
    SHORT_OUTPUT = "short_output"
    """The engine ended the stream before the forced number of tokens."""
    LONG_OUTPUT = "long_output"
    HTTP_ERROR = "http_error"
    CONNECTION_ERROR = "connection_error"
    PROTOCOL_ERROR = "protocol_error"
    """The stream could not be understood: bad JSON, no usage, an error event."""
    TIMEOUT = "timeout"
    SESSION_ENDED = "session_ended"
    """An earlier turn of its session failed, so that this one was never due."""
    UNKNOWN_ERROR = "unknown_error"
    """Another tool counted it as failed and did not say why."""
    INTERRUPTED = "interrupted"
    """The run was stopped (Ctrl-C, dead engine) while the request was in flight or before it was issued."""


Int64 = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""What fits a column of 64 bits, with room for differences; a damaged row must not get further than its reader."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request of a run.

    All `_ns` values are integer nanoseconds of a monotonic clock relative to the start of the run's schedule; those of
    a warm-up request are relative to the start of the warm-up, which ends before the schedule starts.
    `scheduled_ns` is the arrival drawn up front, of a later turn of a session the end of the turn before plus the time
    to think; `issued_ns` is when the client really sent it.
    """

    index: Int64
    warmup: bool = False
    prompt_tokens: Int64
    requested_output_tokens: Int64
    output_tokens: Int64 = 0
    """As counted by the engine's usage report; events of a stream may carry more than one token."""
    scheduled_ns: Int64
    ready_ns: Int64 | None = None
    """When a limit on concurrency let it go, if one held it back after `scheduled_ns`: a queue in the client."""
    issued_ns: Int64 | None = None
    first_token_ns: Int64 | None = None
    token_ns: list[Int64] = []
    """Arrival of each streamed event that carried at least one token, in order."""
    ended_ns: Int64 | None = None
    outcome: Outcome
    http_status: Int64 | None = None
    retry_after_s: float | None = None
    """Asked for by the engine when it refused the request."""
    reported_prompt_tokens: Int64 | None = None
    """The engine's own count of the prompt."""
    cached_tokens: Int64 | None = None
    """Of the prompt, which the engine found in a prefix cache."""
    error: str | None = None
    session: Int64 | None = None
    """The conversation that it belongs to; None where requests are on their own."""
    turn: Int64 | None = None
    """Of its session, from 0."""
    client: int | None = None
    """The client process that sent it, of several; None where the process that measures did."""
