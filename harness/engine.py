"""The seam between the instrument and an engine under test. Adapters live in neobench.engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome


class EngineError(Exception):
    """The engine cannot be started, has died or cannot be reached; the message says what to do about it."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine ended one request. `output_tokens` is the engine's own count (usage), not a count of events."""

    outcome: Outcome
    output_tokens: int = 0
    prompt_tokens: int | None = None
    """The engine's own count, where it reports one."""
    cached_tokens: int | None = None
    """Of the prompt, found in a prefix cache; where it is reported."""
    http_status: int | None = None
    retry_after_s: float | None = None
    """What a refusal (429, 503) asked for. A load generator does not retry; it tells."""
    error: str | None = None
    ended_ns: int | None = None
    """time.perf_counter_ns when the end of the answer came in; None: when `generate` returns."""


class TokenSink(Protocol):
    """Given to an engine for one request; keeps the instant of each call."""

    def tokens_arrived(self, at_ns: int | None = None) -> None:
        """Call once for each streamed event that carries at least one token.

        `at_ns` is time.perf_counter_ns when the event came in, where that was before this call; None: now.
        """


class Client(Protocol):
    """Sends requests to an engine from a process of its own; opened and closed once."""

    async def open(self) -> None:
        """Raises EngineError."""

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        """As Engine.generate."""

    async def close(self) -> None:
        """Safe to call twice, and after a failed `open`."""


class ClientRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How another process makes a Client of an engine that is started."""

    factory: str
    """"module:callable", imported there."""
    arguments: dict[str, Any] = {}
    """Its keyword arguments; plain JSON values."""


class Engine(Protocol):
    """An engine under test. One instance serves one run after another between `start` and `stop`."""

    name: str

    async def start(self) -> None:
        """Make the engine ready to serve. Raises EngineError with the reason (and the log's end) if it cannot."""

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        """Serve one request to its end. Failures of the request are returned, not raised; cancellation aborts it."""

    async def check_alive(self) -> None:
        """Raise EngineError if the engine has died; called while a run is going on."""

    async def describe(self) -> Mapping[str, Any]:
        """Facts about the engine as it runs (model, dtype, KV blocks, threads, versions), stored in run.json."""

    async def stats(self) -> Mapping[str, int | float]:
        """What the engine counts, by name; empty when it counts nothing.

        A whole number is a counter since start, of which a run stores what it grew by. A float is a level, e.g. a
        median, of which a run stores the last.
        """

    async def stop(self) -> None:
        """Free everything. Safe to call twice, and after a failed start."""


@runtime_checkable
class SharedEngine(Protocol):
    """An Engine that several client processes can drive. One without this lives in the process that measures."""

    def client_recipe(self) -> ClientRecipe:
        """Of an engine that is started."""
