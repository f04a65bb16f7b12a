"""Any OpenAI-compatible server or service at a URL. It is never started or stopped from here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from neobench.engines.launch import DEFAULT_VOCAB_SIZE, Launch, nearest_names
from neobench.engines.openai_http import CompletionsClient
from neobench.engines.openai_limits import OPTIONS, checked_url, limits
from neobench.engines.sse import error_message
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome

DEFAULT_API_KEY_ENV = "OPENAI_API_KEY"
CONTROL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0


class OpenAIEngine:
    """The key is read from the environment at start, and is in nothing that is stored."""

    name = "openai"

    def __init__(self, launch: Launch) -> None:
        for option in launch.options:
            if option not in OPTIONS:
                raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, OPTIONS)}?")
        self._launch = launch
        options = launch.options
        self._url = checked_url(options)
        self._api = options.get("api", "completions")
        self._key_env = options.get("api_key_env", DEFAULT_API_KEY_ENV)
        self._key_env_is_chosen = "api_key_env" in options
        self._headers: dict[str, str] = dict(options.get("header", {}))
        self._wanted_model: str | None = options.get("served_model")
        self._extra_body: dict[str, Any] = dict(options.get("extra_body", {}))
        self._exact_output: bool = options.get("exact_output", True)
        self._client: CompletionsClient | None = None
        self._facts: dict[str, Any] = {}
        self._client_arguments: dict[str, Any] = {}
        self._suspicious = False

    async def start(self) -> None:
        """Raises EngineError with the remedy: nothing there, no such address, no key or a wrong one, no such model."""
        assert self._client is None, "the openai engine is started already"
        self._say_which_ids()
        headers = self._all_headers()
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            model, facts = await self._choose_model(session)
            version = await self._version(session)
        self._facts = {
            "name": self.name,
            "base_url": self._url,
            "api": self._api,
            "served_model": model,
            "served_model_facts": facts,
            "version": version,
            "exact_output": self._exact_output,
            "extra_body": self._extra_body,
            "header_names": sorted(self._headers),
            "api_key_env": self._key_env if self._key() else None,
        }
        self._client_arguments = {
            "base_url": self._url,
            "model": model,
            "api": self._api,
            "headers": headers,
            "extra_body": self._extra_body,
            "exact_output": self._exact_output,
        }
        client = CompletionsClient(**self._client_arguments)
        await client.open()
        self._client = client

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        if self._client is None:
            raise EngineError("openai is not started")
        completion = await self._client.generate(request, sink)
        if completion.outcome is Outcome.CONNECTION_ERROR:
            self.connection_lost()
        return completion

    def connection_lost(self) -> None:
        """The next `check_alive` asks; called for the client processes too, whose requests do not pass through here."""
        self._suspicious = True

    async def check_alive(self) -> None:
        """After a lost connection: whether anybody still listens. A healthy service is never asked."""
        if self._client is None:
            raise EngineError("openai is not started")
        if not self._suspicious:
            return
        self._suspicious = False
        address = urlsplit(self._url)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address.hostname, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise EngineError(f"nobody answers at {self._url} any more: {error}") from error
        except asyncio.TimeoutError:
            raise EngineError(f"{self._url} takes no connections any more") from None
        writer.close()

    async def describe(self) -> Mapping[str, Any]:
        """What /v1/models says of the model, and /version where there is one."""
        if self._client is None:
            raise EngineError("openai is not started")
        return self._facts

    async def stats(self) -> Mapping[str, int | float]:
        """The API has no counters."""
        return {}

    def client_recipe(self) -> ClientRecipe:
        assert self._client is not None, "openai is not started"
        return ClientRecipe(factory="neobench.engines.openai_http:CompletionsClient", arguments=self._client_arguments)

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _say_which_ids(self) -> None:
        if "vocab_size" not in self._launch.options and not limits("", self._launch.options).text:
            self._launch.progress(
                f"Note: prompts are token ids below {DEFAULT_VOCAB_SIZE}; a model that knows fewer needs --vocab-size"
            )

    def _key(self) -> str | None:
        return os.environ.get(self._key_env) or None

    def _all_headers(self) -> dict[str, str]:
        key = self._key()
        if key is None and self._key_env_is_chosen:
            raise EngineError(f"the environment variable {self._key_env}, named by --api-key-env, is not set")
        return {**({"Authorization": f"Bearer {key}"} if key else {}), **self._headers}

    async def _choose_model(self, session: aiohttp.ClientSession) -> tuple[str, dict[str, Any]]:
        """The name to ask for, and what the server says of it; nothing where it has no list."""
        status, body = await self._get(session, "/v1/models")
        if status == 404 and self._wanted_model is not None:
            return self._wanted_model, {}
        self._check_status(status, body)
        served = _served(body)
        if not served:
            raise EngineError(f"{self._url}/v1/models lists no model: {body[:200]!r}; name one with --served-model")
        if self._wanted_model is None:
            if len(served) > 1:
                raise EngineError(f"{self._url} serves several models; choose with --served-model: {_some(served)}")
            return next(iter(served.items()))
        if self._wanted_model not in served:
            raise EngineError(f"{self._url} does not serve {self._wanted_model!r}; it serves {_some(served)}")
        return self._wanted_model, served[self._wanted_model]

    def _check_status(self, status: int, body: bytes) -> None:
        if status in (401, 403):
            state = "refuses the key in" if self._key() else "wants an API key: put it into"
            raise EngineError(
                f"{self._url} {state} the environment variable {self._key_env} "
                f"(--api-key-env names another one). It answered {status}: {error_message(body)}"
            )
        if status == 404:
            raise EngineError(
                f"{self._url}/v1/models does not exist (404). --base-url is the address before /v1, such as "
                f"http://localhost:8000; a service without a list of models needs --served-model"
            )
        if status != 200:
            raise EngineError(f"{self._url}/v1/models answered {status}: {error_message(body)}")

    async def _version(self, session: aiohttp.ClientSession) -> Any:
        """None where /version is not there or not JSON."""
        try:
            status, body = await self._get(session, "/version")
            return msgspec.json.decode(body) if status == 200 else None
        except (EngineError, msgspec.MsgspecError):
            return None

    async def _get(self, session: aiohttp.ClientSession, path: str) -> tuple[int, bytes]:
        url = self._url + path
        try:
            async with session.get(url, allow_redirects=False) as response:
                return response.status, await response.read()
        except asyncio.TimeoutError:
            raise EngineError(
                f"{url} did not answer within {CONTROL_TIMEOUT_S:g} s: is the server overloaded?"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"cannot reach {url}: {reason}. Is the server up, and --base-url right?") from error


def _served(body: bytes) -> dict[str, dict[str, Any]]:
    """What /v1/models says, by model; empty if it cannot be read."""
    try:
        return {str(model["id"]): dict(model) for model in msgspec.json.decode(body)["data"]}
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return {}


def _some(served: Mapping[str, Any]) -> str:
    names = list(served)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
