"""Causal attention of prompts, whole or by chunks, and their KV into paged memory and back."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from neobench.neo_engine.kernels.kv_pieces import pack_tokens, token_of_byte, unpack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One prompt: query [tokens, query_heads, head_dim], key and value [context, kv_heads, head_dim].

    The queries are of the last `tokens` of `context` tokens. Returns [tokens, query_heads * head_dim].
    """
    tokens, context = query.shape[0], key.shape[0]
    # torch's own causal mask is aligned to the first key, which is right for a whole prompt alone.
    mask = None
    if tokens != context:
        mask = torch.ones(tokens, context, dtype=torch.bool, device=query.device).tril(context - tokens)
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[0].transpose(0, 1).flatten(1)


def store_prompt_kv(
    kv: torch.Tensor,
    layout: KvLayout,
    layer: int,
    blocks: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    start_tokens: int = 0,
) -> None:
    """Write key, value [tokens, kv_heads, head_dim] of a request's tokens after its first `start_tokens`.

    kv is uint8 [blocks, layers, kv_heads, piece_bytes]; `blocks` are the request's, from its first token to the last
    one written. The earlier tokens stay as they are to the bit; the tail of the last block becomes zero.
    """
    offset = start_tokens % layout.block_size
    blocks = blocks[start_tokens // layout.block_size :]
    missing = len(blocks) * layout.block_size - offset - key.shape[0]
    in_blocks = [
        functional.pad(tokens, (0, 0, 0, 0, offset, missing))
        .view(len(blocks), layout.block_size, *key.shape[1:])
        .transpose(1, 2)
        for tokens in (key, value)
    ]
    pieces = pack_tokens(layout, *in_blocks)
    if offset:
        pieces[0] = torch.where(token_of_byte(layout) < offset, kv[blocks[0], layer], pieces[0])
    kv[:, layer].index_copy_(0, blocks, pieces)


def read_prompt_kv(
    kv: torch.Tensor, layout: KvLayout, layer: int, blocks: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """key, value [num_tokens, kv_heads, head_dim] of a request's first tokens; float32 where the layout is int8."""
    used = blocks[: -(-num_tokens // layout.block_size)]
    key, value = unpack_tokens(layout, kv[used, layer])
    return key.transpose(1, 2).flatten(0, 1)[:num_tokens], value.transpose(1, 2).flatten(0, 1)[:num_tokens]
