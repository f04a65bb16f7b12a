"""The small steps between a layer's GEMMs, each one kernel: Triton on a GPU, the torch twin elsewhere.

n tokens, Hq query heads and Hkv KV heads of D dimensions each. Computed in float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neobench.neo_engine.kernels import reference
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.layout import KvLayout


def add_rms_norm_(x: Tensor, delta: Tensor | None, *, weight: Tensor, eps: float) -> Tensor:
    """x += delta in place, rounded to x's dtype, and x / rms(x) * weight of that [n, hidden]; delta may be None.

    x, delta [n, hidden] contiguous, hidden at most 16384; weight [hidden].
    """
    if not x.is_cuda:
        return reference.add_rms_norm_(x, delta, weight=weight, eps=eps)
    from neobench.neo_engine.kernels import triton_fused

    return triton_fused.add_rms_norm_(x, delta, weight=weight, eps=eps)


def rotate_and_store_(
    heads: Tensor,
    positions: Tensor,
    *,
    table: Tensor,
    kv: Tensor,
    layout: KvLayout,
    layer: int,
    slots: Tensor,
) -> None:
    """Rotate q and k of `heads` [n, Hq + 2 Hkv, D] (q, k, v) in place, and write k and v into a layer of `kv`.

    positions [n] int64; table [max_position, 2, D] of model/rotary.py; kv uint8 [blocks, layers, Hkv, piece_bytes].
    slots [n] int64 or int32: block * block_size + offset in the block, or -1 for a token that is not stored here.
    Nothing else of a block is written: what lies behind its last token stays what it was.
    Raises ConfigError for a layout that is not whole tiles of floats, ValueError for heads of another dtype or shape.
    """
    check_tiles(layout)
    if heads.dtype != getattr(torch, layout.dtype) or heads.shape[2] != layout.head_dim or not heads.is_contiguous():
        raise ValueError(f"heads: expected contiguous {layout.dtype} [n, heads, {layout.head_dim}]")
    if not heads.is_cuda:
        reference.rotate_and_store_(heads, positions, table=table, kv=kv, layout=layout, layer=layer, slots=slots)
        return
    from neobench.neo_engine.kernels import triton_fused

    triton_fused.rotate_and_store_(heads, positions, table=table, kv=kv, layout=layout, layer=layer, slots=slots)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [n, 2 * intermediate] contiguous, columns of gate, then up -> silu(gate) * up [n, intermediate]."""
    if not gate_up.is_cuda:
        return reference.silu_mul(gate_up)
    from neobench.neo_engine.kernels import triton_fused

    return triton_fused.silu_mul(gate_up)
