"""Causal attention of one prompt or chunk, and the store of a prompt's KV into paged memory."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from neobench.neo_engine.kernels.kv_pieces import pack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One prompt: query [tokens, query_heads, head_dim], key and value [context, kv_heads, head_dim].

    The queries are the last of the context's tokens: each attends to itself and to all before it.
    Returns [tokens, query_heads * head_dim].
    """
    num_tokens, context = query.shape[0], key.shape[0]
    earlier = None
    if num_tokens != context:
        earlier = torch.ones(num_tokens, context, dtype=torch.bool, device=query.device).tril(context - num_tokens)
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=earlier,
        is_causal=earlier is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[0].transpose(0, 1).flatten(1)


def store_prompt_kv(
    kv: torch.Tensor, layout: KvLayout, layer: int, blocks: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Write key, value [tokens, kv_heads, head_dim] from token 0 on into `blocks` of kv.

    kv is uint8 [blocks, layers, kv_heads, piece_bytes]; the tail of the last block becomes zero.
    """
    missing = len(blocks) * layout.block_size - key.shape[0]
    in_blocks = [
        functional.pad(tokens, (0, 0, 0, 0, 0, missing))
        .view(len(blocks), layout.block_size, *key.shape[1:])
        .transpose(1, 2)
        for tokens in (key, value)
    ]
    kv[:, layer].index_copy_(0, blocks, pack_tokens(layout, *in_blocks))
