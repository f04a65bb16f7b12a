"""Copies that a copy engine does badly: tiles into rows, scattered pieces, small reads of pinned host memory.

Triton on a GPU, where a source may also be pinned host memory; the torch twin elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neobench.neo_engine.kernels import reference
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.layout import KvLayout


def unpack_context(
    kv: Tensor, layout: KvLayout, *, layer: int, blocks: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """The first `num_tokens` tokens of `blocks` -> key, value [num_tokens, kv_heads, head_dim], contiguous.

    kv uint8 [blocks, layers, kv_heads, piece_bytes]; blocks int32 or int64 in token order, on the device of kv, and
    enough for the tokens. Raises ConfigError for a layout that is not whole tiles of floats.
    """
    check_tiles(layout)
    if not kv.is_cuda:
        return reference.unpack_context(kv, layout, layer=layer, blocks=blocks, num_tokens=num_tokens)
    from neobench.neo_engine.kernels import triton_copies

    return triton_copies.unpack_context(kv, layout, layer=layer, blocks=blocks, num_tokens=num_tokens)


def copy_pieces(
    source: Tensor, target: Tensor, *, layers: tuple[int, int], source_blocks: Tensor, target_blocks: Tensor
) -> None:
    """All KV heads of one layer of some blocks from one slab to another of the same layout.

    source, target uint8 [blocks, layers, kv_heads, piece_bytes]; layers: the source's and the target's; block lists
    int32 or int64 of equal length. One of the slabs may be page-locked host memory, which the kernel then reads or
    writes; the lists are on the other's device.
    """
    if source.shape[2:] != target.shape[2:] or source_blocks.shape != target_blocks.shape:
        raise ValueError(f"pieces: {list(source.shape)} and {list(target.shape)} are not of one layout")
    if not len(source_blocks):
        return
    if not (source.is_cuda or target.is_cuda):
        reference.copy_pieces(source, target, layers=layers, source_blocks=source_blocks, target_blocks=target_blocks)
        return
    from neobench.neo_engine.kernels import triton_copies

    triton_copies.copy_pieces(source, target, layers=layers, source_blocks=source_blocks, target_blocks=target_blocks)


def copy_rows(source: Tensor, target: Tensor, *, count: Tensor) -> None:
    """The first `count` rows of source [rows, width], which may be pinned host memory, to target [rows, width].

    count int32 [1] on the device: a graph copies as many as it says when it is replayed. A kernel reads the source, for
    a copy engine would queue the few bytes behind whatever it is moving. Rows of either may lie apart, the elements
    of a row may not. Raises ValueError for other shapes and dtypes.
    """
    if source.shape != target.shape or source.dtype != target.dtype:
        raise ValueError(f"rows: {source.dtype} {list(source.shape)} into {target.dtype} {list(target.shape)}")
    if count.dtype != torch.int32 or count.shape != (1,):
        raise ValueError(f"count: expected int32 [1], got {count.dtype} {list(count.shape)}")
    if not target.is_cuda:
        reference.copy_rows(source, target, count=count)
        return
    from neobench.neo_engine.kernels import triton_copies

    triton_copies.copy_rows(source, target, count=count)
