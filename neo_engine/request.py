"""A request inside the engine: what was asked, how far it has come. Knows no torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from neobench.neo_engine.config import EngineConfig

PENDING_TOKEN = -1
"""The last output token of a request, where the device is still computing it."""


class Tier(enum.Enum):
    """Where the KV cache of a request lives. It is never split."""

    DEVICE = "device"
    HOST = "host"


class FinishReason(str, enum.Enum):
    """As in the OpenAI API, plus the two ways in which an engine ends a request early."""

    LENGTH = "length"
    STOP = "stop"
    ABORT = "abort"
    ERROR = "error"


GREEDY_BELOW_TEMPERATURE = 1e-5
"""Colder than this is greedy: logits divided by less would overflow float32."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off.

    With a `seed` the tokens of a request depend on nothing but its prompt and these parameters.
    `stop_token_ids` end the output; `ignore_eos` switches off the model's own end tokens, never the given ones.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW_TEMPERATURE

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be between 0 and 10, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")


class RequestRejectedError(ValueError):
    """A request that could never finish on this engine; the message says which limit it breaks."""


def check_request(config: EngineConfig, prompt_token_ids: list[int], params: SamplingParams) -> None:
    """Raises RequestRejectedError for a request that no engine of this config could finish."""
    if not prompt_token_ids:
        raise RequestRejectedError("the prompt is empty: give at least one token")
    vocab_size = config.shape.vocab_size
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
        raise RequestRejectedError(f"the prompt has token ids outside the vocabulary, which is 0 to {vocab_size - 1}")
    limit = config.max_request_tokens
    if len(prompt_token_ids) + params.max_tokens > limit:
        raise RequestRejectedError(
            f"{len(prompt_token_ids)} prompt tokens and max_tokens {params.max_tokens} make "
            f"{len(prompt_token_ids) + params.max_tokens}, but a request of this engine may have {limit} at most"
        )


@dataclass
class Request:
    """One request as the engine loop keeps it. Ids rise in order of arrival. `seed` drives its sampling."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    """Tokens whose KV exists."""
    last_progress_step: int = 0
    """The step in which it last ran (or arrived); schedulers age by it."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far: what a prefill after a preemption must compute again."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_complete(self) -> bool:
        """Whether it has all the output that was asked for."""
        return len(self.output_token_ids) >= self.params.max_tokens

    @property
    def has_pending_token(self) -> bool:
        return bool(self.output_token_ids) and self.output_token_ids[-1] == PENDING_TOKEN

    @property
    def last_token_id(self) -> int:
        return (self.output_token_ids or self.prompt_token_ids)[-1]

    def all_token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.output_token_ids


@dataclass(frozen=True)
class TokenOutput:
    """One new token of a request, as a step hands it out; `finish_reason` is set on the last one.

    `token_id` is None only when a request ends without a token (abort, error); `error` then says why.
    """

    request_id: int
    token_id: int | None
    finish_reason: FinishReason | None = None
    error: str | None = None
