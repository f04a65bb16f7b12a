"""Tokens into the memory layout of a KV cache and back, in plain torch."""

from __future__ import annotations

import functools

import torch

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.kv_cache.layout import TILE_TOKENS, KvLayout


def check_tiles(layout: KvLayout) -> None:
    """Raises ConfigError unless a block of `layout` is whole tiles of floats, as the device's kernels need them."""
    if layout.dtype == "int8":
        raise ConfigError("the device tier holds floats: int8 is for the host tier (--host-kv-dtype)")
    if layout.block_size % TILE_TOKENS:
        raise ConfigError(f"block_size: on a GPU expected a multiple of {TILE_TOKENS}, got {layout.block_size}")


def pack_tokens(layout: KvLayout, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """key, value [..., block_size, head_dim] of whole blocks -> pieces, uint8 [..., piece_bytes]."""
    unused = layout.stored_tokens - layout.block_size
    scales = []
    elements = []
    for tokens in (key, value):
        if layout.dtype == "int8":
            tokens, scale = _quantize(tokens)
            scales.append(torch.nn.functional.pad(scale, (0, unused)))
        elements.append(torch.nn.functional.pad(tokens.to(getattr(torch, layout.dtype)), (0, 0, 0, unused)))
    parts = [_in_tiles(layout, *elements), *scales]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)


def _in_tiles(layout: KvLayout, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """key, value [..., stored_tokens, head_dim] of any type -> elements in the order of a piece, flat."""
    rows, lanes, pack = layout.key_shape
    lead = (*key.shape[:-2], layout.num_tiles)
    keys = key.reshape(*lead, lanes, rows, pack).transpose(-3, -2)
    values = value.reshape(*lead, lanes // pack, pack, layout.head_dim).transpose(-2, -1)
    return torch.stack((keys.flatten(-3), values.flatten(-3)), dim=-2).flatten(-3)


@functools.cache
def token_of_byte(layout: KvLayout) -> torch.Tensor:
    """Which token of a block each byte of a piece belongs to, int64 [piece_bytes]."""
    tokens = torch.arange(layout.stored_tokens)
    elements = _in_tiles(layout, *[tokens[:, None].expand(-1, layout.head_dim)] * 2)
    in_bytes = elements.repeat_interleave(getattr(torch, layout.dtype).itemsize)
    scales = tokens.repeat_interleave(torch.float32.itemsize)
    return torch.cat([in_bytes, scales, scales]) if layout.dtype == "int8" else in_bytes


def unpack_tokens(layout: KvLayout, pieces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """pieces, uint8 [..., piece_bytes] -> key, value [..., block_size, head_dim]; float32 where the layout is int8."""
    dtype = getattr(torch, layout.dtype)
    lead = pieces.shape[:-1]
    tiles = pieces[..., : layout.key_scale_offset].contiguous().view(dtype).view(*lead, layout.num_tiles, 2, -1)
    keys, values = tiles.unbind(-2)
    keys = keys.reshape(*keys.shape[:-1], *layout.key_shape)
    values = values.reshape(*values.shape[:-1], *layout.value_shape)
    key = keys.transpose(-3, -2).flatten(-2).flatten(-3, -2)[..., : layout.block_size, :]
    value = values.transpose(-2, -1).flatten(-4, -2)[..., : layout.block_size, :]
    if layout.dtype != "int8":
        return key, value
    scales = pieces[..., layout.key_scale_offset :].contiguous().view(torch.float32)
    key_scale, value_scale = scales.view(*lead, 2, -1)[..., : layout.block_size].unbind(-2)
    return key * key_scale[..., None], value * value_scale[..., None]


def store_tokens(
    layout: KvLayout, kv: torch.Tensor, *, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Write key, value [tokens, kv_heads, head_dim] of single tokens into a layer of `kv`, each at its slot.

    kv is uint8 [blocks, layers, kv_heads, piece_bytes] of floats; slots [tokens] are block * block_size + offset in
    the block, or negative for a token that is not stored.
    """
    key, value, slots = (part[slots >= 0] for part in (key, value, slots))
    blocks, offsets = slots // layout.block_size, slots % layout.block_size
    tiles, tokens = offsets // TILE_TOKENS, offsets % TILE_TOKENS
    pieces = kv.view(getattr(torch, layout.dtype))[:, layer]
    tiled = pieces.view(*pieces.shape[:-1], layout.num_tiles, 2, -1)
    keys, values = (
        tiled[..., part, :].view(*tiled.shape[:-2], *shape)
        for part, shape in enumerate((layout.key_shape, layout.value_shape))
    )
    keys[blocks, :, tiles, :, tokens] = key.reshape(*key.shape[:-1], layout.head_dim // layout.pack, layout.pack)
    values[blocks, :, tiles, tokens // layout.pack, :, tokens % layout.pack] = value


def _quantize(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds to 255 steps between minus and plus the largest magnitude of each token; not finite makes it NaN."""
    tokens = tokens.float()
    largest = tokens.abs().amax(-1)
    scale = torch.where(largest.isfinite(), largest / 127, float("nan"))
    steps = tokens / torch.where(scale > 0, scale, 1.0)[..., None]
    return steps.nan_to_num(0, 0, 0).round().clamp(-127, 127), scale
