"""The HTTP side: routes, the way from a body to submitted requests, and from their tokens to an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from neobench.neo_engine.async_engine import AsyncEngine, EngineUnavailableError
from neobench.neo_engine.request import RequestRejectedError, SamplingParams, check_request
from neobench.neo_engine.server import metrics
from neobench.neo_engine.server.events import AnswerFormat, ChatFormat, error_event
from neobench.neo_engine.server.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    TokenIds,
    parse_chat,
    parse_completion,
)
from neobench.neo_engine.server.streaming import Choice, Delta
from neobench.neo_engine.tokenizer import TextTokenizer, TokenizerError

_logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 << 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(engine: AsyncEngine, *, served_model_name: str, tokenizer: TextTokenizer) -> web.Application:
    """The application around a started engine. Run it with `handler_cancellation`: a client that goes away must end
    its handler, which is what frees the request's blocks."""
    server = _Server(engine, served_model_name, tokenizer)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_in_openai_shape])
    app.add_routes(
        [
            web.post("/v1/completions", server.completions),
            web.post("/v1/chat/completions", server.chat_completions),
            web.get("/v1/models", server.models),
            web.get("/health", server.health),
            web.get("/metrics", server.metrics),
            web.get("/stats", server.stats),
            web.get("/info", server.info),
        ]
    )
    return app


@web.middleware
async def _errors_in_openai_shape(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:
        answer = _api_error(error, request)
        return _json(answer.body(), status=answer.status)


def _api_error(error: Exception, request: web.Request) -> ApiError:
    """What the client is told; what is nobody's fault but ours is logged and told as such."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestRejectedError | TokenizerError):
        return ApiError(400, str(error), parameter="prompt")
    if isinstance(error, EngineUnavailableError):
        return ApiError(503, str(error))
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(413, f"the body is larger than this server takes, {MAX_BODY_BYTES} bytes")
    if isinstance(error, web.HTTPException):
        return ApiError(error.status, f"{request.method} {request.path}: {error.reason}")
    _logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why")


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


class _Server:
    def __init__(self, engine: AsyncEngine, served_model_name: str, tokenizer: TextTokenizer) -> None:
        self._engine = engine
        self._model = served_model_name
        self._tokenizer = tokenizer
        self._started = int(time.time())

    async def models(self, _request: web.Request) -> web.Response:
        model = {
            "id": self._model,
            "object": "model",
            "created": self._started,
            "owned_by": "neobench",
            "max_model_len": self._engine.config.max_request_tokens,
        }
        return _json({"object": "list", "data": [model]})

    async def health(self, _request: web.Request) -> web.Response:
        reason = self._engine.unavailable_reason
        if reason is not None:
            raise EngineUnavailableError(reason)
        return _json({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.Response:
        body = metrics.exposition(await self._engine.stats(), self._model)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def stats(self, _request: web.Request) -> web.Response:
        stats = await self._engine.stats()
        return _json({name: value for name, value in stats.items() if name not in metrics.GAUGES})

    async def info(self, _request: web.Request) -> web.Response:
        return _json({"served_model_name": self._model, **await self._engine.info()})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = parse_completion(await request.read())
        self._check_servable(body)
        prompts = [await self._token_ids(prompt) for prompt in body.prompts()]
        return await self._answer(request, body, prompts, AnswerFormat)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body = parse_chat(await request.read())
        self._check_servable(body)
        messages = [message.plain() for message in body.messages]
        prompt = await asyncio.to_thread(self._tokenizer.encode_chat, messages)
        return await self._answer(request, body, [prompt], ChatFormat)

    def _check_servable(self, body: CompletionRequest | ChatRequest) -> None:
        if body.model is not None and body.model != self._model:
            message = f"the model {body.model!r} does not exist; this server serves {self._model!r}"
            raise ApiError(404, message, parameter="model", code="model_not_found")
        if self._engine.unavailable_reason is not None:
            raise EngineUnavailableError(self._engine.unavailable_reason)

    async def _token_ids(self, prompt: str | TokenIds) -> TokenIds:
        # Long texts take milliseconds, during which streams of others must go on.
        return await asyncio.to_thread(self._tokenizer.encode, prompt) if isinstance(prompt, str) else prompt

    async def _answer(
        self,
        request: web.Request,
        body: CompletionRequest | ChatRequest,
        prompts: Sequence[TokenIds],
        answer_format: type[AnswerFormat],
    ) -> web.StreamResponse:
        options = body.stream_options
        answer = answer_format(
            self._model,
            include_usage=options is not None and options.include_usage,
            continuous_usage=options is not None and options.continuous_usage_stats,
            token_ids=body.return_token_ids,
        )
        choices = self._submit(body, prompts)
        try:
            if body.stream:
                return await _stream(request, choices, answer)
            answers = await asyncio.gather(*(_collect(choice) for choice in choices))
            return web.Response(body=answer.whole(choices, answers), content_type="application/json")
        finally:
            # Reached on success, on errors, and by cancellation when the client has gone.
            for choice in choices:
                choice.abort()

    def _submit(self, body: CompletionRequest | ChatRequest, prompts: Sequence[TokenIds]) -> list[Choice]:
        """Submits all prompts or, raising, none."""
        config = self._engine.config
        checked: list[tuple[TokenIds, SamplingParams]] = []
        for prompt in prompts:
            max_tokens = body.max_tokens_for(len(prompt), config.max_request_tokens)
            params = body.sampling_params(max_tokens, config.shape.vocab_size)
            check_request(config, prompt, params)
            checked.append((prompt, params))
        return [
            Choice(index, self._engine.submit(prompt, params), self._tokenizer.decoder())
            for index, (prompt, params) in enumerate(checked)
        ]


async def _collect(choice: Choice) -> Delta:
    """The whole answer as one delta."""
    deltas = [delta async for delta in choice.deltas()]
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        finish_reason=deltas[-1].finish_reason if deltas else None,
    )


async def _stream(request: web.Request, choices: Sequence[Choice], answer: AnswerFormat) -> web.StreamResponse:
    """Server-sent events. Headers go out with the first token, so that errors before it have a status of their own."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    preparing = asyncio.Lock()

    async def send(choice: Choice) -> None:
        async for delta in choice.deltas():
            if not response.prepared:
                async with preparing:
                    await response.prepare(request)
            await response.write(answer.event(choice, delta))

    try:
        try:
            await asyncio.gather(*(send(choice) for choice in choices))
        except ConnectionError:
            raise
        except Exception as error:
            if not response.prepared:
                raise
            for choice in choices:
                choice.abort()
            # Without the end mark: nobody shall take what came for a whole answer.
            await response.write(error_event(_api_error(error, request).body()))
        else:
            await response.write(answer.last_events(choices))
        await response.write_eof()
    except ConnectionError:
        _logger.debug("a client went away while it was written to")
    return response
