"""Where the KV of running requests lies in an iteration over two tiers, and what has to move for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from neobench.neo_engine.batch import BatchLimits, KvView, QueuesView, RequestView
from neobench.neo_engine.scheduler.admission import (
    blocks_to_come,
    by_arrival,
    growth_blocks,
    is_begun,
    split_at_capacity,
)

_SWAP_IN_MAX_USE = 0.95
"""Requests come back to the device only while at least a twentieth of it stays free for growth (as published)."""


@dataclass
class Residency:
    """Where every running request's KV is during this iteration, and what has to move for it.

    `*_free` blocks are left once each request has room for a token more; `*_promised` ones of them are what the prompts
    begun there will need to their ends, so that newcomers leave them alone.
    """

    on_device: list[RequestView]
    on_host: list[RequestView]
    device_free: int
    host_free: int
    begun_on_device: list[RequestView] = field(default_factory=list)
    begun_on_host: list[RequestView] = field(default_factory=list)
    device_promised: int = 0
    host_promised: int = 0
    swap_out: list[RequestView] = field(default_factory=list)
    swap_in: list[RequestView] = field(default_factory=list)
    preempt: list[RequestView] = field(default_factory=list)
    device_is_short: bool = False

    @property
    def moved_blocks(self) -> int:
        return sum(request.num_blocks for request in (*self.swap_out, *self.swap_in))


def settle(queues: QueuesView, kv: KvView, limits: BatchLimits) -> Residency:
    """Make every running request fit its tier, its next token included; bring back to the device what fits."""
    running = by_arrival(queues.on_host, queues.prefilling_on_host)
    on_host, no_host_room, host_free = split_at_capacity(running, kv, kv.host_free)
    running = by_arrival(queues.on_device, queues.prefilling_on_device)
    on_device, leaving, device_free = split_at_capacity(running, kv, kv.device_free)
    home = Residency([], [], device_free, host_free, device_is_short=bool(leaving), preempt=no_host_room)
    for request in leaving:
        needed = request.num_blocks + growth_blocks(request, kv)
        if needed <= home.host_free:
            home.swap_out.append(request)
            on_host.append(request)
            home.host_free -= needed
        else:
            home.preempt.append(request)
    for running, decoding, begun in (
        (on_device, home.on_device, home.begun_on_device),
        (on_host, home.on_host, home.begun_on_host),
    ):
        for request in running:
            (begun if is_begun(request) else decoding).append(request)
    home.device_promised = blocks_to_come(home.begun_on_device, kv)
    home.host_promised = blocks_to_come(home.begun_on_host, kv)
    if not leaving:
        _swap_in(home, kv, limits.max_batch_rows)
    return home


def _swap_in(home: Residency, kv: KvView, max_batch_rows: int) -> None:
    reserve = kv.device_total - int(_SWAP_IN_MAX_USE * kv.device_total)
    for request in list(home.on_host):
        needed = kv.blocks_for(request.num_tokens)
        if needed > kv.device_total - reserve:
            continue
        rows = len(home.on_device) + len(home.begun_on_device)
        if home.device_free - home.device_promised - needed < reserve or rows >= max_batch_rows:
            break
        home.swap_in.append(request)
        home.on_host.remove(request)
        home.on_device.append(request)
        home.device_free -= needed
        home.host_free += needed
