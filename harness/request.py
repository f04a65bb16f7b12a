"""What is sent: one prompt of exact length and the number of tokens that must come back."""

from __future__ import annotations

import msgspec


class PromptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`prompt_token_ids` are unique per request, so that no engine profits from an accidental shared prefix."""

    index: int
    prompt_token_ids: list[int]
    output_tokens: int
    """Forced by the engine adapter (ignore_eos); any other count is an error of that request."""
