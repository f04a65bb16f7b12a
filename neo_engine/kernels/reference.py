"""The device's kernels in plain torch: what each Triton kernel must equal, and what runs where there is no GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from neobench.neo_engine.kernels.kv_pieces import store_tokens, unpack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout


def decode_attention(
    query: Tensor,
    kv: Tensor,
    *,
    layout: KvLayout,
    layer: int,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """See decode_attention.DecodeAttention. In float32, row by row."""
    out.zero_()
    for row, context in enumerate(context_lens.tolist()):
        if context == 0:
            continue
        blocks = block_tables[row, : -(-context // layout.block_size)]
        key, value = unpack_context(kv, layout, layer=layer, blocks=blocks, num_tokens=context)
        out[row] = functional.scaled_dot_product_attention(
            query[row, :, None].float(),
            key.transpose(0, 1).float(),
            value.transpose(0, 1).float(),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )[:, 0].to(out.dtype)


def add_rms_norm_(x: Tensor, delta: Tensor | None, *, weight: Tensor, eps: float) -> Tensor:
    """See fused.add_rms_norm_."""
    if delta is not None:
        x += delta
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


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
    """See fused.rotate_and_store_."""
    num_kv_heads = kv.shape[2]
    rotated = heads[:, : heads.shape[1] - num_kv_heads]
    wide = rotated.float()
    cosines, signed_sines = table[positions].float()[:, :, None].unbind(1)
    rotated.copy_(wide * cosines + wide.roll(wide.shape[-1] // 2, -1) * signed_sines)
    key, value = rotated[:, -num_kv_heads:], heads[:, -num_kv_heads:]
    store_tokens(layout, kv, layer=layer, slots=slots, key=key, value=value)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See fused.silu_mul."""
    gate, up = gate_up.float().chunk(2, -1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def unpack_context(
    kv: Tensor, layout: KvLayout, *, layer: int, blocks: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """See copies.unpack_context."""
    unpacked = unpack_tokens(layout, kv[blocks.long(), layer])
    key, value = (part.transpose(1, 2).flatten(0, 1)[:num_tokens].contiguous() for part in unpacked)
    return key, value


def copy_rows(source: Tensor, target: Tensor, *, count: Tensor) -> None:
    """See copies.copy_rows."""
    rows = int(count)
    target[:rows].copy_(source[:rows])


def copy_pieces(
    source: Tensor, target: Tensor, *, layers: tuple[int, int], source_blocks: Tensor, target_blocks: Tensor
) -> None:
    """See copies.copy_pieces."""
    target[:, layers[1]].index_copy_(0, target_blocks.long(), source[source_blocks.long(), layers[0]])
