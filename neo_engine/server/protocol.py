"""The OpenAI API as this server speaks it: bodies of requests, what is refused and why, shapes of errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from neobench.neo_engine.request import SamplingParams

_Body = TypeVar("_Body", bound="CompletionRequest | ChatRequest")
_DEFAULT_COMPLETION_TOKENS = 16
_MAX_STOP_STRINGS = 16


class ApiError(Exception):
    """An error answered in OpenAI's shape; `parameter` is the field at fault."""

    def __init__(self, status: int, message: str, *, parameter: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.parameter = parameter
        self.code = code

    @property
    def kind(self) -> str:
        if self.status == 503:
            return "service_unavailable_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code},
        }


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share. Absent and null mean the same."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def sampling_params(self, max_tokens: int, vocab_size: int) -> SamplingParams:
        """Raises ApiError for values out of range, naming the field."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if "" in stop or len(stop) > _MAX_STOP_STRINGS:
            raise ApiError(400, f"stop takes up to {_MAX_STOP_STRINGS} strings, none of them empty", parameter="stop")
        if any(not 0 <= token < vocab_size for token in self.stop_token_ids):
            message = f"stop_token_ids must be token ids of this model, 0 to {vocab_size - 1}"
            raise ApiError(400, message, parameter="stop_token_ids")
        try:
            return SamplingParams(
                max_tokens=max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=0 if self.top_k == -1 else self.top_k,  # clients of vLLM send -1 for off
                seed=self.seed,
                stop=stop,
                stop_token_ids=tuple(self.stop_token_ids),
                ignore_eos=self.ignore_eos,
            )
        except ValueError as error:  # its messages begin with the name of the field
            raise ApiError(400, str(error), parameter=str(error).split(maxsplit=1)[0]) from None


TokenIds = list[int]


class CompletionRequest(_GenerationRequest):
    prompt: str | list[str | int | TokenIds]

    def prompts(self) -> list[str | TokenIds]:
        """One or several prompts, each text or token ids. Raises ApiError for a mixture."""
        prompts: list[str | TokenIds]
        entries = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        single = [entry for entry in entries if isinstance(entry, int)]
        if single and len(single) == len(entries):
            prompts = [single]
        else:
            prompts = [entry for entry in entries if not isinstance(entry, int)]
            if single or len({type(prompt) for prompt in prompts}) > 1:
                raise ApiError(400, "prompt mixes texts and token ids: send one kind", parameter="prompt")
        if not prompts or not all(prompts):
            raise ApiError(400, "the prompt is empty: give at least one token", parameter="prompt")
        return prompts

    def max_tokens_for(self, num_prompt_tokens: int, limit: int) -> int:
        del num_prompt_tokens, limit
        return _DEFAULT_COMPLETION_TOKENS if self.wanted_tokens is None else self.wanted_tokens


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    role: str
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates expect it: the content is one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": content, **named}


class ChatRequest(_GenerationRequest):
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]

    def max_tokens_for(self, num_prompt_tokens: int, limit: int) -> int:
        """As OpenAI: without a maximum the answer may fill what the prompt leaves."""
        return max(limit - num_prompt_tokens, 1) if self.wanted_tokens is None else self.wanted_tokens


@dataclass(frozen=True)
class _Refused:
    """A field of the API that this engine cannot honour; `neutral` values ask for nothing and are let through."""

    neutral: tuple[Any, ...] = ()
    advice: str = "leave it out"

    def lets_through(self, value: Any) -> bool:
        # 0 == False, but logprobs 0 asks for the chosen token's probability and logprobs false for none.
        return any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in self.neutral
        )


_REFUSED: dict[str, _Refused] = {
    "n": _Refused((1,), "send the request n times"),
    "best_of": _Refused((1,)),
    "echo": _Refused((False,)),
    "suffix": _Refused(("",)),
    "logprobs": _Refused((False,), "this engine returns no log probabilities"),
    "top_logprobs": _Refused((0,), "this engine returns no log probabilities"),
    "prompt_logprobs": _Refused((0,), "this engine returns no log probabilities"),
    "presence_penalty": _Refused((0,)),
    "frequency_penalty": _Refused((0,)),
    "repetition_penalty": _Refused((1,)),
    "min_p": _Refused((0,)),
    "min_tokens": _Refused((0,), "use ignore_eos with max_tokens for an exact length"),
    "logit_bias": _Refused(({},)),
    "response_format": _Refused(({"type": "text"},)),
    "tools": _Refused(([],)),
    "tool_choice": _Refused(("none",)),
    "parallel_tool_calls": _Refused((True, False)),
    "functions": _Refused(([],)),
    "function_call": _Refused(("none",)),
    "use_beam_search": _Refused((False,)),
    "add_special_tokens": _Refused((True,)),
    "skip_special_tokens": _Refused((True,)),
    "include_stop_str_in_output": _Refused((False,)),
}

_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id"}
)
"""Labels for the operator of a service: accepted and ignored, since no token depends on them."""


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises ApiError that names the field at fault."""
    return _convert(_known_fields(body), CompletionRequest)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises ApiError that names the field at fault."""
    return _convert(_known_fields(body), ChatRequest)


def _known_fields(body: bytes) -> dict[str, Any]:
    """The body without nulls and without fields that ask for nothing."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(fields).__name__}")
    known: dict[str, Any] = {}
    for name, value in fields.items():
        refused = _REFUSED.get(name)
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if refused is None:
            known[name] = value
        elif not refused.lets_through(value):
            raise ApiError(400, f"{name} is not supported by this engine: {refused.advice}", parameter=name)
    return known


def _convert(fields: dict[str, Any], kind: type[_Body]) -> _Body:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        _, _, path = message.partition(" - at `$.")
        field = path.rstrip("`") or (message.split("`")[1] if "`" in message else None)
        raise ApiError(400, f"the request is not valid: {message}", parameter=field) from None
