"""Causal attention of several prompts, or chunks of prompts, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from neobench.neo_engine.kernels.prefill import causal_attention


@dataclass(frozen=True)
class PackedLengths:
    """Sequences one after the other: tokens that ask in each, and tokens they attend to, themselves the last of them.

    Made once an iteration, for it copies to the device; any number of layers then use it.
    """

    query_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    query_ends: Tensor  # [sequences + 1] int32 from 0, on the device; so is the next
    context_ends: Tensor

    @classmethod
    def of(cls, query_tokens: Sequence[int], context_tokens: Sequence[int], device: torch.device) -> PackedLengths:
        """Raises ValueError unless every sequence has a token that asks, and at least as many to attend to."""
        if len(query_tokens) != len(context_tokens) or any(
            not 0 < asking <= context for asking, context in zip(query_tokens, context_tokens, strict=False)
        ):
            raise ValueError(f"lengths: {list(query_tokens)} tokens cannot attend to {list(context_tokens)}")
        ends = [list(accumulate(lengths, initial=0)) for lengths in (query_tokens, context_tokens)]
        query_ends, context_ends = torch.tensor(ends, dtype=torch.int32).to(device)
        return cls(tuple(query_tokens), tuple(context_tokens), query_ends, context_ends)


def prefill_attention(query: Tensor, key: Tensor, value: Tensor, lengths: PackedLengths) -> Tensor:
    """query [n, Hq, D], key and value [m, Hkv, D], sequences packed as `lengths` says -> [n, Hq, D].

    Each token attends to itself and to all before it in its sequence, earlier chunks included.
    On a GPU of compute capability 8.0 and later, in float16 and bfloat16: FlashAttention as torch ships it, all
    sequences in one launch. Elsewhere scaled_dot_product_attention, sequence by sequence.
    """
    if not lengths.query_tokens:
        return torch.empty_like(query, memory_format=torch.contiguous_format)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and _has_flash_attention(query.device):
        # Causal in FlashAttention since 2.1, and so in torch, is aligned at the bottom right: query i of q sees keys
        # up to i + k - q (torch/nn/attention/bias.py calls the same kernel for its lower-right variant).
        out: Tensor = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - public from torch 2.10 on only
            query,
            key,
            value,
            lengths.query_ends,
            lengths.context_ends,
            max(lengths.query_tokens),
            max(lengths.context_tokens),
            0.0,
            True,
            False,
        )[0]
        return out
    parts = zip(
        query.split_with_sizes(lengths.query_tokens),
        key.split_with_sizes(lengths.context_tokens),
        value.split_with_sizes(lengths.context_tokens),
        strict=True,
    )
    return torch.cat([causal_attention(*part) for part in parts]).view(query.shape)


@lru_cache
def _has_flash_attention(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
