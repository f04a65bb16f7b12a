"""K and V of both tiers on a machine with a GPU, and their way from one to the other, whole blocks or layer by layer.

Where the host's layout is the device's, bytes are copied as they are. An int8 host is converted on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neobench.neo_engine.kernels.copies import copy_pieces
from neobench.neo_engine.kernels.kv_pieces import pack_tokens, token_of_byte, unpack_tokens
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.kv_cache.layout import KvLayout
from neobench.neo_engine.request import Tier

_CONVERTED_BLOCKS = 16
"""At a time: a long request as a whole would take, for a moment, a few times its size of the device's memory."""


@dataclass(frozen=True)
class Tiers:
    """Slabs uint8 [blocks, layers, kv_heads, piece_bytes of the tier's layout]; the host's is page-locked.

    Lists of blocks are int64 on the device. Work is queued on the current stream.
    """

    layout: KvLayout
    device: Tensor
    host_layout: KvLayout
    host: Tensor

    @property
    def _same(self) -> bool:
        return self.layout == self.host_layout

    def move(self, move: BlockMove) -> None:
        """All layers of some blocks."""
        to_host = move.source_tier is Tier.DEVICE
        if self._same:
            source, target = (self.device, self.host) if to_host else (self.host, self.device)
            _copy_blocks(source, move.source_blocks, target, move.target_blocks)
            return
        for first in range(0, len(move.source_blocks), _CONVERTED_BLOCKS):
            blocks = slice(first, first + _CONVERTED_BLOCKS)
            self._convert(move.source_blocks[blocks], move.target_blocks[blocks], to_host=to_host)

    def _convert(self, source_blocks: Sequence[int], target_blocks: Sequence[int], *, to_host: bool) -> None:
        if to_host:
            pieces = self._for_host(self.device[torch.tensor(source_blocks, device=self.device.device)])
            _copy_blocks(pieces, range(len(pieces)), self.host, target_blocks)
        else:
            pieces = self.device.new_empty(len(source_blocks), *self.host.shape[1:])
            _copy_blocks(self.host, source_blocks, pieces, range(len(pieces)))
            self.device[torch.tensor(target_blocks, device=self.device.device)] = self._for_device(pieces)

    def bring(self, layer: int, host_blocks: Tensor, staging: Tensor, at: int, staged_blocks: Tensor) -> None:
        """One layer of some blocks from the host into layer `at` of a slab of the device's layout."""
        if self._same:
            copy_pieces(self.host, staging, layers=(layer, at), source_blocks=host_blocks, target_blocks=staged_blocks)
            return
        if len(host_blocks):
            staging[staged_blocks, at] = self._for_device(self._from_host(layer, host_blocks))

    def send(
        self, staging: Tensor, at: int, staged_blocks: Tensor, layer: int, host_blocks: Tensor, kept_tokens: Tensor
    ) -> None:
        """The other way. The first `kept_tokens` [blocks] of each block are the host's own, and stay to the bit."""
        if self._same:
            copy_pieces(staging, self.host, layers=(at, layer), source_blocks=staged_blocks, target_blocks=host_blocks)
            return
        pieces = self._for_host(staging[staged_blocks, at])
        old = token_of_byte(self.host_layout).to(pieces.device) < kept_tokens[:, None]
        pieces = torch.where(old[:, None], self._from_host(layer, host_blocks), pieces)
        all_of_them = torch.arange(len(pieces), device=pieces.device)
        copy_pieces(pieces[:, None], self.host, layers=(0, layer), source_blocks=all_of_them, target_blocks=host_blocks)

    def _from_host(self, layer: int, host_blocks: Tensor) -> Tensor:
        """[blocks, kv_heads, piece_bytes of the host], on the device."""
        pieces = self.device.new_empty(len(host_blocks), 1, *self.host.shape[2:])
        all_of_them = torch.arange(len(pieces), device=pieces.device)
        copy_pieces(self.host, pieces, layers=(layer, 0), source_blocks=host_blocks, target_blocks=all_of_them)
        return pieces[:, 0]

    def _for_host(self, pieces: Tensor) -> Tensor:
        return pack_tokens(self.host_layout, *unpack_tokens(self.layout, pieces))

    def _for_device(self, pieces: Tensor) -> Tensor:
        return pack_tokens(self.layout, *unpack_tokens(self.host_layout, pieces))


def _copy_blocks(source: Tensor, source_blocks: Sequence[int], target: Tensor, target_blocks: Sequence[int]) -> None:
    for from_block, to_block in zip(source_blocks, target_blocks, strict=True):
        target[to_block].copy_(source[from_block], non_blocking=True)
