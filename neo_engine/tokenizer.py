"""Text to token ids and back, one token at a time; and a stand-in for models without a tokenizer."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neobench.neo_engine.config import ConfigError


class TokenizerError(ValueError):
    """This text or conversation cannot become token ids; the message says what can."""


class TokenDecoder(Protocol):
    """Turns the tokens of one output into text as they come."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still incomplete."""


class TextTokenizer(Protocol):
    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt. Raises TokenizerError."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer. Raises TokenizerError."""

    def decoder(self) -> TokenDecoder:
        """A decoder for one output."""


def load_tokenizer(folder: Path | None) -> TextTokenizer:
    """The tokenizer of a checkpoint folder, or IdTokenizer where there is none."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return IdTokenizer()
    return Tokenizer(folder)


class IdTokenizer:
    """For models without a tokenizer: token 17 reads " 17", so that streams carry text that is never empty."""

    def encode(self, text: str) -> list[int]:
        del text
        raise TokenizerError("this model has no tokenizer: send the prompt as a list of token ids")

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        del messages
        raise TokenizerError(
            "this model has no tokenizer and so no chat: send the prompt as a list of token ids to /v1/completions"
        )

    def decoder(self) -> TokenDecoder:
        return self

    def push(self, token_id: int) -> str:
        return f" {token_id}"


class Tokenizer:
    """The `tokenizer.json` of a checkpoint folder, with its chat template if it has one."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ConfigError(f"{path} is not a tokenizer: {error}") from None
        settings = _read_settings(folder)
        self._special_tokens = {
            name: _token_text(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)
        }
        self._chat_template = _compile_chat_template(folder, settings)

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).ids
        return token_ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self._chat_template is None:
            raise TokenizerError("this model has no chat template: use /v1/completions")
        try:
            text = self._chat_template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the model's chat template refuses these messages: {error}") from None
        # The template writes the special tokens itself.
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def decoder(self) -> TokenDecoder:
        return _IncrementalDecoder(self._tokenizer)


_REPLACEMENT = "\ufffd"
_WINDOW_TOKENS = 16
_MAX_WINDOW_TOKENS = 64


class _IncrementalDecoder:
    """Decodes a window of the last tokens again and hands out what is new and will not change.

    A window always starts where a character starts, and keeps some tokens already handed out: decoders treat the
    first token of a text unlike the rest. Text ending in U+FFFD may be a character cut in half, and waits; an output
    of bytes that never become characters is let go once the window holds `_MAX_WINDOW_TOKENS`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self._window: list[int] = []
        self._emitted = 0  # characters of the decoded window
        self._boundary = 0  # tokens of the window up to the last whole character but one

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text: str = self._decode(self._window)
        whole = text.rstrip(_REPLACEMENT)
        if len(whole) == len(text) or len(self._window) >= _MAX_WINDOW_TOKENS:
            new_text = text[self._emitted :]
            self._emitted = max(self._emitted, len(text))
            self._advance()
            return new_text
        new_text = whole[self._emitted :]
        self._emitted = max(self._emitted, len(whole))
        return new_text

    def _advance(self) -> None:
        if len(self._window) >= _WINDOW_TOKENS:
            self._window = self._window[self._boundary :]
            self._emitted = len(self._decode(self._window))
        self._boundary = len(self._window)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    return settings


def _token_text(token: str | Mapping[str, Any]) -> str:
    """Some checkpoints store a special token as its text, some as an object around it."""
    return token if isinstance(token, str) else str(token["content"])


def _compile_chat_template(folder: Path, settings: Mapping[str, Any]) -> jinja2.Template | None:
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    path = folder / "chat_template.jinja"
    if path.is_file():
        template = path.read_text(encoding="utf-8")
    if template is None:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the chat template of {folder} has a syntax error: {error}") from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
