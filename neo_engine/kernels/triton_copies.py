"""The copies of copies.py in Triton; copies.py imports this only for CUDA tensors, for it imports triton."""

# Triton reads annotations of kernels as code, so they have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from neobench.neo_engine.kv_cache.layout import KvLayout

_ELEMENTS_AT_ONCE = 2048


@triton.jit
def _unpack_tile(
    kv,
    blocks,
    key,
    value,
    num_tokens,
    block_stride,
    head_stride,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tiles_in_block: tl.constexpr,
    pack: tl.constexpr,
):
    """One tile of one KV head; grid (tiles, KV heads)."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = tl.load(blocks + tile // tiles_in_block).to(tl.int64)
    keys = kv + block * block_stride + head * head_stride + tile % tiles_in_block * (2 * 16 * head_dim)
    tokens = tl.arange(0, 16)[:, None]
    dims = tl.arange(0, padded_dim)[None, :]
    mask = (tile * 16 + tokens < num_tokens) & (dims < head_dim)
    places = ((tile * 16 + tokens) * tl.num_programs(1) + head) * head_dim + dims
    in_keys = dims // pack * (16 * pack) + tokens * pack + dims % pack
    tl.store(key + places, tl.load(keys + in_keys, mask=mask), mask=mask)
    in_values = 16 * head_dim + tokens // pack * (head_dim * pack) + dims * pack + tokens % pack
    tl.store(value + places, tl.load(keys + in_values, mask=mask), mask=mask)


def unpack_context(
    kv: torch.Tensor, layout: KvLayout, *, layer: int, blocks: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See copies.unpack_context."""
    elements = kv.view(getattr(torch, layout.dtype))
    num_kv_heads = kv.shape[2]
    key, value = (
        torch.empty(num_tokens, num_kv_heads, layout.head_dim, dtype=elements.dtype, device=kv.device) for _ in range(2)
    )
    if num_tokens:
        _unpack_tile[(triton.cdiv(num_tokens, 16), num_kv_heads)](
            elements[:, layer],
            blocks,
            key,
            value,
            num_tokens,
            elements.stride(0),
            elements.stride(2),
            head_dim=layout.head_dim,
            padded_dim=triton.next_power_of_2(layout.head_dim),
            tiles_in_block=layout.num_tiles,
            pack=layout.pack,
            num_warps=4,
        )
    return key, value


@triton.jit
def _copy_runs(
    source,
    target,
    source_rows,
    target_rows,
    source_stride,
    target_stride,
    width,
    count,
    listed: tl.constexpr,
    elements_at_once: tl.constexpr,
):
    """Part of one row, as the two lists say, or else row for row and only the first `count`; grid (rows, parts)."""
    source_row = tl.program_id(0).to(tl.int64)
    target_row = source_row
    if not listed:  # noqa: SIM102 - one condition is the compiler's, the other the program's
        if source_row >= tl.load(count):
            return
    if listed:
        source_row = tl.load(source_rows + tl.program_id(0)).to(tl.int64)
        target_row = tl.load(target_rows + tl.program_id(0)).to(tl.int64)
    columns = tl.program_id(1) * elements_at_once + tl.arange(0, elements_at_once)
    run = tl.load(source + source_row * source_stride + columns, mask=columns < width)
    tl.store(target + target_row * target_stride + columns, run, mask=columns < width)


def copy_pieces(
    source: torch.Tensor,
    target: torch.Tensor,
    *,
    layers: tuple[int, int],
    source_blocks: torch.Tensor,
    target_blocks: torch.Tensor,
) -> None:
    """See copies.copy_pieces."""
    words = [slab.view(torch.int32) for slab in (source, target)]
    width = words[0][0, 0].numel()
    _copy_runs[(len(source_blocks), triton.cdiv(width, _ELEMENTS_AT_ONCE))](
        words[0][:, layers[0]],
        words[1][:, layers[1]],
        source_blocks,
        target_blocks,
        words[0].stride(0),
        words[1].stride(0),
        width,
        source_blocks,
        listed=True,
        elements_at_once=_ELEMENTS_AT_ONCE,
        num_warps=4,
    )


def copy_rows(source: torch.Tensor, target: torch.Tensor, *, count: torch.Tensor) -> None:
    """See copies.copy_rows."""
    rows, width = source.shape
    if rows:
        _copy_runs[(rows, triton.cdiv(width, _ELEMENTS_AT_ONCE))](
            source,
            target,
            source,
            target,
            source.stride(0),
            target.stride(0),
            width,
            count,
            listed=False,
            elements_at_once=_ELEMENTS_AT_ONCE,
            num_warps=4,
        )
