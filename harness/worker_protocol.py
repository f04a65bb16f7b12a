"""What the process that measures and its client processes say to each other: JSON lines over stdin and stdout.

Requests travel in a file, records in each worker's own file; nothing here is on the path of a request.
"""

from __future__ import annotations

import msgspec

from neobench.harness.engine import ClientRecipe
from neobench.harness.request import PromptRequest
from neobench.harness.usage import ClientUsage


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker sends, as MessagePack."""

    requests: list[PromptRequest]
    offsets_ns: list[int]
    """[num_requests] since the start of the schedule."""
    warmup: list[PromptRequest]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The first line to a worker. Not in a file: the recipe may hold an API key."""

    client: int
    recipe: ClientRecipe
    shard_path: str
    run_folder: str
    timeout_s: float
    concurrency: int | None
    closed_loop: bool
    progress_interval_s: float


class Start(msgspec.Struct, frozen=True, tag=True):
    """The schedule begins at this instant of time.perf_counter_ns, which all processes of a Linux machine share."""

    origin_ns: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Abort what is in flight and end; the end of stdin says the same."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Connected, and its warm-up has ended."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Totals so far, as flight.Counts has them."""

    issued: int
    completed: int
    failed: int
    tokens: int
    lost_connections: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last line of a worker that ended in order."""

    interrupted: bool = False
    usage: ClientUsage | None = None
    client_error: str | None = None
    """The client could not be made or opened; nothing was sent."""
    store_error: str | None = None
    """Records could not be written."""


ToWorker = Start | Stop
FromWorker = Ready | Progress | Ended
