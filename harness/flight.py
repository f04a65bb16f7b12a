"""One request on its way: stamps its instants and decides how it ended."""

from __future__ import annotations

import asyncio

import msgspec

from neobench.harness.clock import Clock
from neobench.harness.engine import Completion
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome, RequestRecord


class Counts:
    """Live totals over the measured requests, for a display; `tokens` counts streamed events until a request ends.

    `lost_connections` are of the warm-up too: what they say is whether the engine lives.
    """

    __slots__ = ("completed", "failed", "issued", "lost_connections", "tokens", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.issued = 0
        self.completed = 0
        self.failed = 0
        self.lost_connections = 0
        self.tokens = 0


class Flight:
    """The TokenSink of one request. All instants are relative to `origin_ns`, the start of its schedule."""

    __slots__ = (
        "_clock",
        "_counts",
        "issued_ns",
        "origin_ns",
        "ready_ns",
        "recorded",
        "request",
        "scheduled_ns",
        "task",
        "timed_out",
        "token_ns",
        "warmup",
    )

    def __init__(
        self, request: PromptRequest, scheduled_ns: int, *, clock: Clock, counts: Counts, warmup: bool = False
    ) -> None:
        self.request = request
        self.scheduled_ns = scheduled_ns
        self.warmup = warmup
        self.origin_ns = 0
        self.ready_ns: int | None = None
        self.issued_ns: int | None = None
        self.token_ns: list[int] = []
        self.timed_out = False
        self.recorded = False
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._counts = counts

    def tokens_arrived(self, at_ns: int | None = None) -> None:
        if self.recorded:
            return
        self.token_ns.append((self._clock.now_ns() if at_ns is None else at_ns) - self.origin_ns)
        if not self.warmup:
            self._counts.tokens += 1

    def issue(self) -> None:
        self.issued_ns = self._clock.now_ns() - self.origin_ns
        if not self.warmup:
            self._counts.issued += 1

    def expire(self) -> None:
        """The timeout has struck: abort, and remember that this was why."""
        self.timed_out = True
        if self.task is not None:
            self.task.cancel()

    def end(self, completion: Completion) -> RequestRecord:
        """Close the sink and turn what happened into the record."""
        self.recorded = True
        judged = self._judge(completion)
        if judged.outcome is Outcome.CONNECTION_ERROR:
            self._counts.lost_connections += 1
        if not self.warmup:
            if judged.outcome is Outcome.OK:
                self._counts.completed += 1
            else:
                self._counts.failed += 1
        return RequestRecord(
            index=self.request.index,
            warmup=self.warmup,
            prompt_tokens=self.request.prompt_tokens,
            requested_output_tokens=self.request.output_tokens,
            output_tokens=judged.output_tokens,
            scheduled_ns=self.scheduled_ns,
            ready_ns=self.ready_ns,
            issued_ns=self.issued_ns,
            first_token_ns=self.token_ns[0] if self.token_ns else None,
            token_ns=self.token_ns,
            ended_ns=None if self.issued_ns is None else self._ended_ns(completion),
            outcome=judged.outcome,
            http_status=judged.http_status,
            retry_after_s=judged.retry_after_s,
            reported_prompt_tokens=judged.prompt_tokens,
            cached_tokens=judged.cached_tokens,
            error=judged.error,
            session=self.request.session,
            turn=None if self.request.session is None else self.request.turn,
        )

    def _ended_ns(self, completion: Completion) -> int:
        at_ns = self._clock.now_ns() if completion.ended_ns is None else completion.ended_ns
        return at_ns - self.origin_ns

    def _judge(self, completion: Completion) -> Completion:
        """Hold what the engine calls a success against what was asked for and what was seen."""
        if completion.outcome is not Outcome.OK:
            return completion
        wanted, got, seen = self.request.output_tokens, completion.output_tokens, len(self.token_ns)
        if not self.request.exact_output:
            return completion if got and seen else _failed(completion, Outcome.SHORT_OUTPUT, "no output token")
        if got < wanted:
            return _failed(completion, Outcome.SHORT_OUTPUT, f"{got} of {wanted} output tokens")
        if got > wanted:
            return _failed(completion, Outcome.LONG_OUTPUT, f"{got} output tokens where {wanted} were asked for")
        if not seen or seen > got:
            return _failed(completion, Outcome.PROTOCOL_ERROR, f"{got} output tokens reported, {seen} events streamed")
        return completion


def _failed(completion: Completion, outcome: Outcome, error: str) -> Completion:
    return msgspec.structs.replace(completion, outcome=outcome, error=error)
