"""From the tokens of a request to pieces of its answer: decoding, stop strings, how it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from neobench.neo_engine.async_engine import RequestStream
from neobench.neo_engine.request import FinishReason, TokenOutput
from neobench.neo_engine.server.protocol import ApiError
from neobench.neo_engine.tokenizer import TokenDecoder


class StopMatcher:
    """Finds the first stop string in text that comes in pieces, and holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """What may be shown now; once `matched`, that is the last of it."""
        if not self._stop:
            return text
        text = self._held + text
        starts = [start for start in (text.find(stop) for stop in self._stop) if start >= 0]
        if starts:
            self.matched = True
            self._held = ""
            return text[: min(starts)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, when no more text can complete it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0


@dataclass(frozen=True)
class Delta:
    """What one event adds to one choice. `finish_reason` is set on the last."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None


class Choice:
    """One answer while it grows."""

    def __init__(self, index: int, stream: RequestStream, decoder: TokenDecoder) -> None:
        self.index = index
        self.prompt_token_ids = stream.prompt_token_ids
        self.num_tokens = 0
        self._stream = stream
        self._decoder = decoder
        self._matcher = StopMatcher(stream.params.stop)

    def abort(self) -> None:
        """Free what the request holds in the engine; harmless once it has ended."""
        self._stream.abort()

    async def deltas(self) -> AsyncIterator[Delta]:
        """One for each token, or for all that queued up since the last. Raises ApiError if the engine ends it early."""
        while outputs := await self._stream.next_batch():
            ended_early = outputs.pop() if outputs[-1].token_id is None else None
            if outputs:
                delta = self._delta(outputs)
                self.num_tokens += len(delta.token_ids)
                if delta.finish_reason is not None:
                    self._stream.abort()
                    ended_early = None
                yield delta
            if ended_early is not None:
                raise _ended_early(ended_early)

    def _delta(self, outputs: Sequence[TokenOutput]) -> Delta:
        """Up to the token that ends the answer; the engine may have gone on after a stop string."""
        text = ""
        token_ids: list[int] = []
        for output in outputs:
            assert output.token_id is not None
            token_ids.append(output.token_id)
            text += self._push(output.token_id, output.finish_reason)
            finish_reason = FinishReason.STOP if self._matcher.matched else output.finish_reason
            if finish_reason is not None:
                return Delta(text, token_ids, finish_reason)
        return Delta(text, token_ids, None)

    def _push(self, token_id: int, finish_reason: FinishReason | None) -> str:
        # The token that ends an output (the model's own or one of stop_token_ids) is counted but not shown.
        text = "" if finish_reason is FinishReason.STOP else self._matcher.push(self._decoder.push(token_id))
        if finish_reason is not None:
            text += self._matcher.flush()
        return text


def _ended_early(output: TokenOutput) -> ApiError:
    status = 503 if output.finish_reason is FinishReason.ABORT else 500
    return ApiError(status, output.error or "the engine ended this request before it was finished")
