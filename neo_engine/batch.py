"""The plan of one iteration, as plain data: what a policy decides and an executor obeys. Knows no torch."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from neobench.neo_engine.request import Tier


class Mode(enum.Enum):
    """How an iteration runs; counted in the engine's statistics."""

    IDLE = "idle"
    GPU_ONLY = "gpu_only"
    """One sub-batch, all decode attention on the device."""
    SERIAL = "serial"
    """One sub-batch with decode attention on the host that nothing hides; for rows that cannot wait any longer."""
    ASYMMETRIC = "asymmetric"
    """Two sub-batches: host attention of one runs beside the device's work for the other."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """A chunk of one request: its `num_tokens` tokens after the first `start_tokens`, whose KV is in `tier` already.

    The chunk attends to those and to itself, and its KV joins them. `remaining_tokens` are left for later chunks; only
    the chunk that leaves none yields a token. By default the chunk is the whole prompt, output so far included.
    """

    request_id: int
    num_tokens: int
    tier: Tier
    start_tokens: int = 0
    remaining_tokens: int = 0

    @property
    def end_tokens(self) -> int:
        """Tokens of the request whose KV exists after this chunk."""
        return self.start_tokens + self.num_tokens

    @property
    def prompt_tokens(self) -> int:
        """Of all its chunks."""
        return self.end_tokens + self.remaining_tokens

    @property
    def ends_prompt(self) -> bool:
        return self.remaining_tokens == 0


class DecodeRow(NamedTuple):
    """One new token of one request, which attends to `context_tokens` tokens, itself included."""

    request_id: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class SubBatch:
    """Rows that go through the linear layers together."""

    prefills: tuple[Prefill, ...] = ()
    device_decodes: tuple[DecodeRow, ...] = ()
    host_decodes: tuple[DecodeRow, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the linear layers: every prompt token and every decode."""
        prefill_rows = sum(prefill.num_tokens for prefill in self.prefills)
        return prefill_rows + len(self.device_decodes) + len(self.host_decodes)

    @property
    def num_requests(self) -> int:
        """Requests that get one token further, and rows of the LM head: not those whose prompt goes on."""
        ended = sum(prefill.ends_prompt for prefill in self.prefills)
        return ended + len(self.device_decodes) + len(self.host_decodes)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Nanoseconds of one iteration, summed over layers; predicted by a cost model or measured by an executor.

    Host attention overlaps the device's stages in an asymmetric iteration, so the stages may add up to more than
    `total_ns`. `host_wait_ns` is the part of `host_decode_ns` that nothing hid.
    """

    total_ns: int = 0
    linear_ns: int = 0
    prefill_attention_ns: int = 0
    device_decode_ns: int = 0
    host_decode_ns: int = 0
    host_wait_ns: int = 0
    head_ns: int = 0
    moves_ns: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything the executor does in one iteration, in this order: preempt, swap out, swap in, run the sub-batches.

    A request appears at most once among all rows. `preempt` drops the KV of a request, which waits for a new prefill
    from its first token. A request whose prompt is computed in part may be swapped and preempted like any other.
    """

    mode: Mode
    sub_batches: tuple[SubBatch, ...] = ()
    swap_out: tuple[int, ...] = ()
    swap_in: tuple[int, ...] = ()
    preempt: tuple[int, ...] = ()
    predicted: StageTimes = field(default_factory=StageTimes)

    @property
    def is_empty(self) -> bool:
        return not (self.sub_batches or self.swap_out or self.swap_in or self.preempt)

    @property
    def num_requests(self) -> int:
        """Requests that get a token; 0 where all rows are prompts that go on."""
        return sum(batch.num_requests for batch in self.sub_batches)


class RequestView(NamedTuple):
    """What a policy may know of a request: made anew for each of them in each step, hence no dataclass.

    `num_tokens` is its prompt and output so far: what prefills compute, and what its next decode attends to.
    `num_blocks` is what it holds now. `idle_steps` counts the steps since it last ran (or arrived).
    `num_computed_tokens` is how many of its tokens have KV: 0 in `waiting`, all but the newest where it decodes.
    """

    request_id: int
    num_tokens: int
    num_blocks: int
    idle_steps: int = 0
    num_computed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class QueuesView:
    """All unfinished requests by state, each sequence in order of arrival.

    `on_device` and `on_host` decode next, `prefilling_*` need another chunk. A prompt of which only the last token is
    left decodes: that is the same work. `last_mode` is the previous iteration's, for policies that are loath to switch.
    """

    waiting: Sequence[RequestView] = ()
    on_device: Sequence[RequestView] = ()
    on_host: Sequence[RequestView] = ()
    prefilling_on_device: Sequence[RequestView] = ()
    prefilling_on_host: Sequence[RequestView] = ()
    last_mode: Mode = Mode.IDLE

    @property
    def is_empty(self) -> bool:
        return not (
            self.waiting or self.on_device or self.on_host or self.prefilling_on_device or self.prefilling_on_host
        )


@dataclass(frozen=True, slots=True)
class KvView:
    """Blocks of the two tiers."""

    block_size: int
    device_total: int
    device_free: int
    host_total: int
    host_free: int

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Upper bounds of one iteration: rows of the linear layers, decodes of each tier and sub-batch.

    Where a policy does not cut prompts, one longer than `max_batch_tokens` still runs, the only one of its iteration.
    """

    max_batch_tokens: int
    max_batch_rows: int
