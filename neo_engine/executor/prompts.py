"""The prompt chunks of an iteration on a device: where their K and V go, and what they attend to.

K and V bound for the host are stored in a staging slab of two layers, and leave layer by layer on a stream of their
own while the device goes on. A chunk that continues a prompt on the host has the earlier K and V staged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neobench.neo_engine.executor.inputs import PrefillInput
from neobench.neo_engine.executor.tiers import Tiers
from neobench.neo_engine.kernels.copies import unpack_context
from neobench.neo_engine.kernels.prefill_attention import PackedLengths, prefill_attention
from neobench.neo_engine.model.fused_layers import Store
from neobench.neo_engine.request import Tier

_STAGED_LAYERS = 2
"""One leaves while the next is computed."""


class Prompts:
    """`slots` [tokens] are places in the device's slab, or in the staging slab for those bound for the host."""

    def __init__(
        self, prefills: Sequence[PrefillInput], tiers: Tiers, num_query_heads: int, out_stream: torch.cuda.Stream | None
    ) -> None:
        self._tiers = tiers
        self._num_query_heads = num_query_heads
        self._out_stream = out_stream
        self._device = tiers.device.device
        self.num_tokens = sum(prefill.num_tokens for prefill in prefills)
        ends = [prefill.start_tokens + prefill.num_tokens for prefill in prefills]
        self._lengths = PackedLengths.of([prefill.num_tokens for prefill in prefills], ends, self._device)
        self._continues = any(prefill.start_tokens for prefill in prefills)
        self._plan_blocks(prefills, ends)
        self._runs = _runs(prefills)
        self._left: dict[int, torch.cuda.Event] = {}

    def _plan_blocks(self, prefills: Sequence[PrefillInput], ends: Sequence[int]) -> None:
        size = self._tiers.layout.block_size
        places: list[npt.NDArray[np.int64]] = []  # of each chunk's blocks in the slab that it is stored in
        slots = []
        staged = 0
        into_staging: list[tuple[int, int]] = []  # host block, staged block
        out_of_staging: list[tuple[int, int, int]] = []  # and tokens of the block that are the host's already
        for prefill, end in zip(prefills, ends, strict=True):
            blocks = np.asarray(prefill.blocks[: -(-end // size)], dtype=np.int64)
            if prefill.tier is Tier.HOST:
                at = np.arange(staged, staged + len(blocks))
                staged += len(blocks)
                pairs = list(zip(blocks.tolist(), at.tolist(), strict=True))
                into_staging += pairs[: -(-prefill.start_tokens // size)]
                first, kept = divmod(prefill.start_tokens, size)
                out_of_staging += [(*pair, 0 if i else kept) for i, pair in enumerate(pairs[first:])]
                blocks = at
            positions = np.arange(prefill.start_tokens, end)
            slots.append(blocks[positions // size] * size + positions % size)
            places.append(blocks)
        self.slots = np.concatenate(slots)
        self._staging = torch.empty(
            (staged, _STAGED_LAYERS, *self._tiers.device.shape[2:]), dtype=torch.uint8, device=self._device
        )
        lists = [*places, *np.array(into_staging, dtype=np.int64).reshape(-1, 2).T]
        lists += list(np.array(out_of_staging, dtype=np.int64).reshape(-1, 3).T)
        on_device = (
            torch.from_numpy(np.concatenate(lists)).to(self._device).split_with_sizes([len(part) for part in lists])
        )
        *chunk_blocks, in_host, in_staged, out_host, out_staged, kept_tokens = on_device
        self._chunks = list(zip(prefills, ends, chunk_blocks, strict=True))
        self._in_lists, self._out_lists = (in_host, in_staged), (out_host, out_staged, kept_tokens)

    def stores(self, layer: int, num_rows: int) -> tuple[Store, ...]:
        """For all of a lane's `num_rows` rows, prompts first. Waits until the staged layer's place is free."""
        if left := self._left.get(layer % _STAGED_LAYERS):
            left.wait()
        host_blocks, staged_blocks = self._in_lists
        self._tiers.bring(layer, host_blocks, self._staging, layer % _STAGED_LAYERS, staged_blocks)
        return tuple(
            Store(slice(start, num_rows if end is None else end), *self._slab(tier, layer))
            for tier, start, end in self._runs
            if end is not None or start < num_rows
        )

    def _slab(self, tier: Tier, layer: int) -> tuple[Tensor, int]:
        return (self._tiers.device, layer) if tier is Tier.DEVICE else (self._staging, layer % _STAGED_LAYERS)

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """heads [num_tokens, Hq + 2 Hkv, D], stored before -> [num_tokens, Hq, D]; what the host is to get leaves."""
        self._send_away(layer)
        counts = (self._num_query_heads, *[(heads.shape[1] - self._num_query_heads) // 2] * 2)
        query, key, value = heads.split_with_sizes(counts, 1)
        if self._continues:
            parts = []
            start = 0
            for prefill, end, blocks in self._chunks:
                rows = slice(start, start + prefill.num_tokens)
                start = rows.stop
                if prefill.start_tokens:
                    kv, at = self._slab(prefill.tier, layer)
                    parts.append(unpack_context(kv, self._tiers.layout, layer=at, blocks=blocks, num_tokens=end))
                else:
                    parts.append((key[rows], value[rows]))
            key, value = (torch.cat(part) for part in zip(*parts, strict=True))
        return prefill_attention(query, key, value, self._lengths)

    def _send_away(self, layer: int) -> None:
        host_blocks, staged_blocks, kept_tokens = self._out_lists
        if not len(host_blocks):
            return
        at = layer % _STAGED_LAYERS
        if self._out_stream is None:
            self._tiers.send(self._staging, at, staged_blocks, layer, host_blocks, kept_tokens)
            return
        self._out_stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out_stream):
            self._tiers.send(self._staging, at, staged_blocks, layer, host_blocks, kept_tokens)
            self._left[at] = self._out_stream.record_event()

    def finish(self) -> None:
        """Nothing that follows on the current stream comes before what has been sent away."""
        if self._left and self._out_stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._out_stream)


def _runs(prefills: Sequence[PrefillInput]) -> list[tuple[Tier, int, int | None]]:
    """(tier, first row, row after the last) of neighbours in one tier; decodes, the last, have no end and belong to
    the device."""
    tiers = [*(prefill.tier for prefill in prefills), Tier.DEVICE]
    starts = list(accumulate((prefill.num_tokens for prefill in prefills), initial=0))
    runs: list[tuple[Tier, int, int | None]] = []
    for tier, start in zip(tiers, starts, strict=True):
        if not runs or runs[-1][0] is not tier:
            if runs:
                runs[-1] = (*runs[-1][:2], start)
            runs.append((tier, start, None))
    return runs
