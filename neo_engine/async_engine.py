"""Runs a synchronous engine in a thread of its own and hands its tokens to asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.request import (
    FinishReason,
    RequestRejectedError,
    SamplingParams,
    TokenOutput,
    check_request,
)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_JOIN_SECONDS = 30


class StepEngine(Protocol):
    """The synchronous engine. After construction every call comes from one thread."""

    config: EngineConfig

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams) -> int:
        """Queue a request and return its id. Raises RequestRejectedError for one that could never finish."""
        ...

    def abort(self, request_id: int) -> None:
        """Forget a request and free its blocks; an unknown id is left alone."""

    def step(self) -> list[TokenOutput]:
        """One iteration; empty if there is nothing to do."""
        ...

    @property
    def has_work(self) -> bool: ...

    def stats(self) -> dict[str, int | float]: ...

    def info(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class EngineUnavailableError(Exception):
    """The engine takes no requests: it is not running, draining or has failed. The message says which."""


class RequestStream:
    """The tokens of one request, for one consumer on the event loop. The last one carries a finish reason."""

    def __init__(self, prompt_token_ids: list[int], params: SamplingParams, abort: Callable[[RequestStream], None]):
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.request_id: int | None = None  # the engine thread's, once it has the request
        self.aborted = False
        self._abort = abort
        self._queued: deque[TokenOutput] = deque()
        self._finished = False
        self._rejection: RequestRejectedError | None = None
        self._wakeup: asyncio.Future[None] | None = None

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> TokenOutput:
        await self._wait()
        if not self._queued:
            raise StopAsyncIteration
        return self._queued.popleft()

    async def next_batch(self) -> list[TokenOutput]:
        """All outputs that have come and were not taken, waiting for the first; empty once the request has ended."""
        await self._wait()
        batch = list(self._queued)
        self._queued.clear()
        return batch

    def abort(self) -> None:
        """End the request and free its blocks. Nothing more comes. May be called at any time, and again."""
        if not self._finished:
            self.aborted = True
            self._abort(self)
            self._queued.clear()
            self.end()

    async def _wait(self) -> None:
        while not self._queued and not self._finished:
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        if self._rejection is not None:
            raise self._rejection

    def put(self, output: TokenOutput) -> None:
        """For AsyncEngine alone: one more output has come."""
        if self._finished:
            return
        self._queued.append(output)
        if output.finish_reason is not None:
            self._finished = True
        self._wake()

    def end(self, rejection: RequestRejectedError | None = None) -> None:
        """For AsyncEngine alone: nothing more will come."""
        self._finished = True
        self._rejection = rejection
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class AsyncEngine:
    """The engine as the server sees it. All methods belong to the event loop that called `start`.

    The engine thread takes commands between steps, in the order in which they were given, and sleeps on a condition
    when it has neither command nor work. A step that raises ends every request with an error and fails the engine for
    good; the thread then still answers `stats` and `info`, until `shutdown`.
    """

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="neo-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unavailable: str | None = "the engine has not been started"
        self._active: set[RequestStream] = set()
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        # Shared with the engine thread, under the condition:
        self._condition = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        # The engine thread's own:
        self._streams: dict[int, RequestStream] = {}
        self._step_failed = False

    @property
    def config(self) -> EngineConfig:
        return self._engine.config

    @property
    def unavailable_reason(self) -> str | None:
        """Why no request is taken now; None while healthy."""
        return self._unavailable

    @property
    def num_active(self) -> int:
        return len(self._active)

    def start(self) -> None:
        """Start the thread. Call it on the event loop that will use the engine."""
        self._loop = asyncio.get_running_loop()
        self._unavailable = None
        self._thread.start()

    def submit(self, prompt_token_ids: list[int], params: SamplingParams) -> RequestStream:
        """Queue a request.

        Raises EngineUnavailableError, or RequestRejectedError for what `check_request` sees; what only the engine
        itself can see is raised by the stream, in place of its first token.
        """
        if self._unavailable is not None:
            raise EngineUnavailableError(self._unavailable)
        check_request(self.config, prompt_token_ids, params)
        stream = RequestStream(prompt_token_ids, params, self._abort)
        self._active.add(stream)
        self._all_ended.clear()
        self._command(partial(self._add, stream))
        return stream

    async def stats(self) -> dict[str, int | float]:
        """The engine's counters, taken between two steps."""
        return await self._ask(self._engine.stats)

    async def info(self) -> dict[str, Any]:
        """The engine's facts, taken between two steps."""
        return await self._ask(self._engine.info)

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests and let the running ones finish; whether they all did in time."""
        self._unavailable = self._unavailable or "the server is shutting down"
        try:
            await asyncio.wait_for(self._all_ended.wait(), timeout_seconds)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            return False
        return True

    def end_requests(self) -> None:
        """End what still runs with FinishReason.ABORT and refuse new requests."""
        self._unavailable = self._unavailable or "the engine has been shut down"
        for stream in self._active:
            self._command(partial(self._abort_in_engine, stream))
        self._end_all(FinishReason.ABORT, "the server was shut down before this request finished")

    async def shutdown(self) -> None:
        """End what still runs, stop the thread and close the engine."""
        self.end_requests()
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)
            if self._thread.is_alive():
                _logger.error("the engine is still in a step after %d s: left behind", _JOIN_SECONDS)

    def _abort(self, stream: RequestStream) -> None:
        self._forget(stream)
        self._command(partial(self._abort_in_engine, stream))

    def _command(self, command: Callable[[], None]) -> None:
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    async def _ask(self, question: Callable[[], _T]) -> _T:
        if not self._thread.is_alive():
            return question()
        if self._stopping:
            raise EngineUnavailableError("the engine is shutting down")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def ask() -> None:
            try:
                result = question()
            except Exception as error:
                self._to_loop(_answer, answer, None, error)
            else:
                self._to_loop(_answer, answer, result, None)

        self._command(ask)
        return await answer

    def _forget(self, stream: RequestStream) -> None:
        self._active.discard(stream)
        if not self._active:
            self._all_ended.set()

    def _deliver(self, outputs: list[tuple[RequestStream, TokenOutput]]) -> None:
        for stream, output in outputs:
            stream.put(output)
            if output.finish_reason is not None:
                self._forget(stream)

    def _reject(self, stream: RequestStream, error: RequestRejectedError) -> None:
        stream.end(error)
        self._forget(stream)

    def _fail(self, message: str) -> None:
        self._unavailable = message
        self._end_all(FinishReason.ERROR, message)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        # Requests that the engine thread has not seen yet have no id: the number means nothing to the consumer.
        self._deliver(
            [
                (stream, TokenOutput(request_id=-1, token_id=None, finish_reason=reason, error=error))
                for stream in list(self._active)
            ]
        )

    # From here on: the engine thread.

    def _run(self) -> None:
        running = True
        while running:
            try:
                running = self._take_commands()
                if running and self._can_step:
                    self._step()
            except Exception as error:
                _logger.exception("the engine failed")
                self._step_failed = True
                self._to_loop(self._fail, f"the engine failed: {type(error).__name__}: {error}")
        self._engine.close()

    @property
    def _can_step(self) -> bool:
        return not self._step_failed and self._engine.has_work

    def _take_commands(self) -> bool:
        """Run the commands given so far, sleeping until there is a command or work; False to stop."""
        with self._condition:
            while not (self._commands or self._stopping or self._can_step):
                self._condition.wait()
            stopping = self._stopping
        while self._commands:
            self._commands.popleft()()
        return not stopping

    def _step(self) -> None:
        delivery: list[tuple[RequestStream, TokenOutput]] = []
        for output in self._engine.step():
            ended = output.finish_reason is not None
            stream = self._streams.pop(output.request_id, None) if ended else self._streams.get(output.request_id)
            if stream is not None:
                delivery.append((stream, output))
        if delivery:
            self._to_loop(self._deliver, delivery)

    def _add(self, stream: RequestStream) -> None:
        if stream.aborted or self._step_failed:
            return
        try:
            request_id = self._engine.add_request(stream.prompt_token_ids, stream.params)
        except RequestRejectedError as error:
            self._to_loop(self._reject, stream, error)
            return
        stream.request_id = request_id
        self._streams[request_id] = stream

    def _abort_in_engine(self, stream: RequestStream) -> None:
        if stream.request_id is not None and self._streams.pop(stream.request_id, None) is not None:
            self._engine.abort(stream.request_id)

    def _to_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody is left to hear
            with self._condition:
                self._stopping = True


def _answer(future: asyncio.Future[_T], result: _T, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
