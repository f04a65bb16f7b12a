"""What is sent: one prompt of exact length and the number of tokens that must come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class PromptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a run. Prompts begin differently, so that no engine profits from an accidental shared prefix.

    The prompt is kept as the JSON text that goes on the wire: nothing is left to encode when its deadline comes, and it
    takes less than a fifth of the memory of a list of token ids.
    """

    index: int
    prompt_json: bytes
    """The token ids as a JSON array; a JSON string where the engine takes text alone."""
    prompt_tokens: int
    """Of a text, about this many: what the engine counts is in the record."""
    output_tokens: int
    """Forced by the engine adapter (ignore_eos); any other count is an error of that request."""
    arrival_ns: int | None = None
    """In the trace that it was taken from, since the first arrival there; None when its arrival is drawn."""
    session: int | None = None
    """Number of the conversation that it belongs to, from 0; its turns follow each other in a run's requests."""
    turn: int = 0
    """From 0; the prompt of a later one begins with the whole prompt before it."""
    think_ns: int = 0
    """From the end of the turn before to the instant at which this one is due."""
    exact_output: bool = True
    """False: `output_tokens` is what is asked for at most, and a shorter answer is as good."""

    @classmethod
    def of(cls, prompt_token_ids: Sequence[int], **fields: Any) -> PromptRequest:
        return cls(prompt_json=msgspec.json.encode(prompt_token_ids), prompt_tokens=len(prompt_token_ids), **fields)

    @property
    def prompt_token_ids(self) -> list[int]:
        """Decoded anew at each use."""
        return msgspec.json.decode(self.prompt_json, type=list[int])
