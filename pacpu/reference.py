"""The truth: paged decode attention in float64, as plain as it can be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


def paged_decode_reference(
    query: FloatArray,
    k_cache: FloatArray,
    v_cache: FloatArray,
    *,
    block_tables: npt.NDArray[np.int32],
    context_lens: npt.NDArray[np.int32],
    scale: float,
) -> npt.NDArray[np.float64]:
    """softmax(scale * q K^T) V of one layer, for one new token a row.

    query [rows, num_q_heads, head_dim]; k_cache, v_cache [num_blocks, num_kv_heads, block_size, head_dim], the new
    tokens already in place; block_tables [rows, max_blocks_per_row]; context_lens [rows], tokens attended to.
    Returns [rows, num_q_heads, head_dim]; zeros where the context is empty.
    """
    num_rows, num_q_heads, _ = query.shape
    _, num_kv_heads, block_size, _ = k_cache.shape
    heads_per_kv_head = num_q_heads // num_kv_heads
    output = np.zeros(query.shape, dtype=np.float64)
    for row in range(num_rows):
        tokens = np.arange(context_lens[row])
        if len(tokens) == 0:
            continue
        blocks, offsets = block_tables[row, tokens // block_size], tokens % block_size
        for head in range(num_q_heads):
            kv_head = head // heads_per_kv_head
            keys = k_cache[blocks, kv_head, offsets].astype(np.float64)
            values = v_cache[blocks, kv_head, offsets].astype(np.float64)
            scores = scale * (keys @ query[row, head].astype(np.float64))
            weights = np.exp(scores - scores.max())
            output[row, head] = weights @ values / weights.sum()
    return output
