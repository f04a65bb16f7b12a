"""Turns of sessions as they are sent: which follow a turn that has ended, and what becomes of them when it failed.

Prompts and times to think are in the requests, drawn up front: nothing is left to draw when a turn ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from neobench.harness.engine import Completion
from neobench.harness.request import PromptRequest
from neobench.results.record import Outcome, RequestRecord


class Sessions:
    """The turns of each session in their order; a request without a session has none that follow it."""

    def __init__(self, requests: Sequence[PromptRequest]) -> None:
        self._turns: dict[int, list[PromptRequest]] = defaultdict(list)
        for request in requests:
            if request.session is None:
                continue
            turns = self._turns[request.session]
            if request.turn != len(turns):
                raise ValueError(f"turn {len(turns)} of session {request.session} is missing before {request.turn}")
            turns.append(request)

    def __len__(self) -> int:
        return len(self._turns)

    def after(self, request: PromptRequest) -> list[PromptRequest]:
        """Its session's later turns, the next one first."""
        return [] if request.session is None else self._turns[request.session][request.turn + 1 :]


def never_due(ended: RequestRecord) -> Completion:
    """What becomes of the turns behind one that failed: no user goes on talking to somebody who did not answer."""
    error = f"never due: an earlier turn of its session ended as {ended.outcome.value}"
    return Completion(outcome=Outcome.SESSION_ENDED, error=error)


def of_client(requests: Sequence[PromptRequest], client: int, num_clients: int) -> list[int]:
    """Positions of the requests that one of several client processes sends: a session stays with one of them."""
    return [
        position
        for position, request in enumerate(requests)
        if (position if request.session is None else request.session) % num_clients == client
    ]
