"""What the options of the `openai` engine say before anything is asked of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from neobench.engines.launch import DEFAULT_VOCAB_SIZE, PromptLimits
from neobench.harness.engine import EngineError

OPTIONS = (
    "base_url",
    "api",
    "header",
    "api_key_env",
    "extra_body",
    "served_model",
    "exact_output",
    "prompt",
    "vocab_size",
    "max_model_tokens",
)


def limits(_model: str, options: Mapping[str, Any]) -> PromptLimits:
    """Raises EngineError for an address that is missing or none, and for token ids where a chat needs text."""
    checked_url(options)
    chat = options.get("api") == "chat"
    if chat and options.get("prompt") == "ids":
        raise EngineError("a chat takes text, no token ids: leave out --prompt ids, or use --api completions")
    return PromptLimits(
        vocab_size=options.get("vocab_size", DEFAULT_VOCAB_SIZE),
        max_model_tokens=options.get("max_model_tokens"),
        text=chat or options.get("prompt") == "text",
    )


def checked_url(options: Mapping[str, Any]) -> str:
    """The address before /v1, which may or may not be given."""
    url = options.get("base_url")
    if not url:
        raise EngineError("the openai engine needs --base-url, such as http://localhost:8000")
    try:
        parts = urlsplit(str(url))
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise EngineError(f"--base-url {url} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise EngineError(f"--base-url {url} is no address of a server; write it like http://localhost:8000")
    if parts.username is not None:
        raise EngineError("--base-url must not hold a password, for it is stored: use --api-key-env or --header")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")
