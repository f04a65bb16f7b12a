"""The steps of fused.py in Triton; fused.py imports this only for CUDA tensors, for it imports triton."""

# Triton reads annotations of kernels as code, so they have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from neobench.neo_engine.kv_cache.layout import KvLayout

_HEADS_AT_ONCE = 8
_COLUMNS_AT_ONCE = 1024


@triton.jit
def _add_rms_norm(
    x,
    delta,
    weight,
    out,
    eps,
    hidden: tl.constexpr,
    padded_hidden: tl.constexpr,
    has_delta: tl.constexpr,
):
    """One row of each; grid (n,)."""
    start = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, padded_hidden)
    mask = columns < hidden
    row = tl.load(x + start + columns, mask=mask, other=0.0)
    if has_delta:
        added = tl.load(delta + start + columns, mask=mask, other=0.0).to(tl.float32)
        row = (row.to(tl.float32) + added).to(x.dtype.element_ty)
        tl.store(x + start + columns, row, mask=mask)
    wide = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)
    normed = wide * scale * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + start + columns, normed.to(out.dtype.element_ty), mask=mask)


def add_rms_norm_(x: torch.Tensor, delta: torch.Tensor | None, *, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See fused.add_rms_norm_."""
    rows, hidden = x.shape
    out = torch.empty_like(x)
    if rows:
        padded = triton.next_power_of_2(hidden)
        _add_rms_norm[(rows,)](
            x,
            x if delta is None else delta,
            weight,
            out,
            eps,
            hidden=hidden,
            padded_hidden=padded,
            has_delta=delta is not None,
            num_warps=min(16, max(1, padded // 512)),
        )
    return out


@triton.jit
def _store_halves(first, second, places, distance, mask):
    tl.store(places, first, mask=mask)
    tl.store(places + distance, second, mask=mask)


@triton.jit
def _rotate_and_store(
    heads,
    positions,
    table,
    kv,
    slots,
    block_stride,
    head_stride,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_half: tl.constexpr,
    block_size: tl.constexpr,
    pack: tl.constexpr,
    heads_at_once: tl.constexpr,
):
    """Some heads of one token, each as two halves whose elements pair; grid (n, groups of heads)."""
    half: tl.constexpr = head_dim // 2
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * heads_at_once + tl.arange(0, heads_at_once))[:, None]
    dims = tl.arange(0, padded_half)[None, :]
    there = (head < num_heads) & (dims < half)
    is_value = head >= num_heads - num_kv_heads
    places = heads + (token * num_heads + head) * head_dim + dims
    first = tl.load(places, mask=there, other=0.0)
    second = tl.load(places + half, mask=there, other=0.0)

    # Sines of the second half carry their true sign, and cosines of both halves are equal.
    rotation = table + tl.load(positions + token) * 2 * head_dim + dims
    cosines = tl.load(rotation, mask=dims < half, other=0.0).to(tl.float32)
    sines = tl.load(rotation + head_dim + half, mask=dims < half, other=0.0).to(tl.float32)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    first = tl.where(is_value, first, (wide_first * cosines - wide_second * sines).to(first.dtype))
    second = tl.where(is_value, second, (wide_second * cosines + wide_first * sines).to(second.dtype))
    _store_halves(first, second, places, half, there & (head < num_heads - num_kv_heads))

    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        offset = slot % block_size
        in_tile = (offset % 16).to(tl.int32)
        tile = kv + slot // block_size * block_stride + offset // 16 * (2 * 16 * head_dim)
        keys = tile + (head - num_heads + 2 * num_kv_heads) * head_stride + in_tile * pack
        keys += dims // pack * (16 * pack) + dims % pack
        is_key = (head >= num_heads - 2 * num_kv_heads) & (head < num_heads - num_kv_heads)
        _store_halves(first, second, keys, 16 * half, there & is_key)
        values = tile + (head - num_heads + num_kv_heads) * head_stride + 16 * head_dim
        values += in_tile // pack * (head_dim * pack) + in_tile % pack + dims * pack
        _store_halves(first, second, values, half * pack, there & is_value)


def rotate_and_store_(
    heads: torch.Tensor,
    positions: torch.Tensor,
    *,
    table: torch.Tensor,
    kv: torch.Tensor,
    layout: KvLayout,
    layer: int,
    slots: torch.Tensor,
) -> None:
    """See fused.rotate_and_store_."""
    num_tokens, num_heads, head_dim = heads.shape
    if num_tokens == 0:
        return
    elements = kv.view(heads.dtype)
    _rotate_and_store[(num_tokens, triton.cdiv(num_heads, _HEADS_AT_ONCE))](
        heads,
        positions,
        table,
        elements[:, layer],
        slots,
        elements.stride(0),
        elements.stride(2),
        num_heads=num_heads,
        num_kv_heads=kv.shape[2],
        head_dim=head_dim,
        padded_half=triton.next_power_of_2(head_dim // 2),
        block_size=layout.block_size,
        pack=layout.pack,
        heads_at_once=_HEADS_AT_ONCE,
        num_warps=4,
    )


@triton.jit
def _silu_mul(gate_up, out, width: tl.constexpr, columns_at_once: tl.constexpr):
    """Some columns of one row; grid (n, groups of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * columns_at_once + tl.arange(0, columns_at_once)
    mask = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=mask)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See fused.silu_mul."""
    rows, columns = gate_up.shape
    width = columns // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _silu_mul[(rows, triton.cdiv(width, _COLUMNS_AT_ONCE))](
            gate_up, out, width=width, columns_at_once=_COLUMNS_AT_ONCE, num_warps=4
        )
    return out
