"""Causal attention of whole prompts, and the store of their KV into paged memory."""

from __future__ import annotations

import torch
import torch.nn.functional as functional


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One prompt: query [tokens, query_heads, head_dim], key and value [tokens, kv_heads, head_dim].

    Returns [tokens, query_heads * head_dim].
    """
    grouped = query.shape[1] != key.shape[1]
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=grouped,
    )
    return attended[0].transpose(0, 1).flatten(1)


def store_prompt_kv(kv: torch.Tensor, layer: int, blocks: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write key, value [tokens, kv_heads, head_dim] from token 0 on into `blocks` of kv.

    kv is [blocks, layers, 2, kv_heads, block_size, head_dim]; the tail of the last block keeps what it had.
    """
    block_size = kv.shape[4]
    full = key.shape[0] // block_size
    rest = key.shape[0] - full * block_size
    for side, source in enumerate((key, value)):
        if full:
            pieces = source[: full * block_size].view(full, block_size, *source.shape[1:]).transpose(1, 2)
            kv[:, layer, side].index_copy_(0, blocks[:full], pieces)
        if rest:
            kv[int(blocks[full]), layer, side, :, :rest] = source[full * block_size :].transpose(0, 1)
