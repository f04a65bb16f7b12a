"""The small steps between a layer's GEMMs, each one kernel: Triton on a GPU, the torch twin elsewhere.

n tokens, Hq query heads and Hkv KV heads of D dimensions each. Computed in float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neobench.neo_engine.kernels import reference
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.layout import KvLayout

_MAX_HIDDEN = 16384  # one program holds a row in registers


def add_rms_norm_(x: Tensor, delta: Tensor | None, *, weight: Tensor, eps: float) -> Tensor:
    """x += delta in place, rounded to x's dtype, and x / rms(x) * weight of that [n, hidden]; delta may be None.

    x, delta [n, hidden] contiguous, hidden at most 16384; weight [hidden]. Raises ValueError for other shapes.
    """
    if x.dim() != 2 or not x.is_contiguous() or x.shape[1:] != weight.shape or x.shape[1] > _MAX_HIDDEN:
        raise ValueError(f"x: expected contiguous [n, {len(weight)}] of at most {_MAX_HIDDEN}, got {list(x.shape)}")
    if delta is not None and (delta.shape != x.shape or not delta.is_contiguous()):
        raise ValueError(f"delta: expected contiguous {list(x.shape)}, got {list(delta.shape)}")
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
    Raises ConfigError for a layout that is not whole tiles of floats, ValueError for other dtypes and shapes.
    """
    check_tiles(layout)
    if heads.dtype != getattr(torch, layout.dtype) or heads.shape[2] != layout.head_dim or not heads.is_contiguous():
        raise ValueError(f"heads: expected contiguous {layout.dtype} [n, heads, {layout.head_dim}]")
    if kv.dtype != torch.uint8 or kv.shape[3] != layout.piece_bytes or not len(positions) == len(slots) == len(heads):
        raise ValueError(
            f"kv, positions, slots: expected pieces of {layout.piece_bytes} bytes, one slot for each token"
        )
    if not heads.is_cuda:
        reference.rotate_and_store_(heads, positions, table=table, kv=kv, layout=layout, layer=layer, slots=slots)
        return
    from neobench.neo_engine.kernels import triton_fused

    triton_fused.rotate_and_store_(heads, positions, table=table, kv=kv, layout=layout, layer=layer, slots=slots)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [n, 2 * intermediate] contiguous, columns of gate, then up -> silu(gate) * up [n, intermediate].

    Raises ValueError for another shape.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up: expected contiguous [n, even], got {list(gate_up.shape)}")
    if not gate_up.is_cuda:
        return reference.silu_mul(gate_up)
    from neobench.neo_engine.kernels import triton_fused

    return triton_fused.silu_mul(gate_up)
