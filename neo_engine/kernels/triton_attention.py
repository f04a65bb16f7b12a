"""Paged decode attention in Triton: one kernel attends to spans of a row's tokens, another merges them.

Imports triton, so decode_attention.py imports it only for CUDA tensors. A word is what a tile is made of: one element
of float16 or float32, or two of bfloat16 in 32 bits (docs/kernels.md draws the tiles).
"""

# Triton reads annotations of kernels as code, so they have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from neobench.neo_engine.kernels.decode_attention import Spans
from neobench.neo_engine.kv_cache.layout import KvLayout

# Triton's interpreter multiplies the bits of bfloat16 as integers, so there matrices are float32.
_OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_LOG2_E = 1.4426950408889634
# The block table is loaded two steps ahead, K and V one. 4 compiles to the same, 5 keeps two steps of K and V in
# flight for twice the shared memory.
_NUM_STAGES = 3
_NUM_WARPS = 4
_MERGED_SPANS = 16  # partial results that the merge reads at a time


@triton.jit
def _span_tokens(context, num_spans, step_tokens: tl.constexpr):
    """Tokens of each span: equal shares of what the row really has, in whole steps of the loop."""
    return tl.cdiv(tl.cdiv(context, num_spans), step_tokens) * step_tokens


@triton.jit
def _low_half(words, operand: tl.constexpr):
    return words.to(tl.int16).to(tl.bfloat16, bitcast=True).to(operand)


@triton.jit
def _high_half(words, operand: tl.constexpr):
    return (words >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True).to(operand)


@triton.jit
def _tile_starts(tokens, table, block_stride, block_size: tl.constexpr, tile_words: tl.constexpr):
    """Words from the slab's first to each token's tile; 64 bits, for slabs are larger than 2^31 bytes."""
    blocks = tl.load(table + tokens // block_size).to(tl.int64)
    return blocks * block_stride + (tokens % block_size) // 16 * tile_words


@triton.jit
def _load_query(
    query,
    members,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    pack: tl.constexpr,
    operand: tl.constexpr,
):
    """The group's heads [members, padded_dim / pack], their even and odd dimensions apart where words hold two."""
    rows = tl.arange(0, padded_dim // pack)
    places = query + members[:, None] * head_dim + rows[None, :] * pack
    mask = (members < group)[:, None] & (rows < head_dim // pack)[None, :]
    low = tl.load(places, mask=mask, other=0.0).to(operand)
    high = low
    if pack == 2:
        high = tl.load(places + 1, mask=mask, other=0.0).to(operand)
    return low, high


@triton.jit
def _scores(
    query_low,
    query_high,
    keys,
    tiles,
    tokens,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    pack: tl.constexpr,
    operand: tl.constexpr,
):
    """[members, tokens] float32."""
    rows = tl.arange(0, padded_dim // pack)
    offsets = tiles[None, :] + (rows[:, None] * 16 + (tokens % 16)[None, :])
    # A tile's 16 words of a row follow one another, which the compiler cannot see behind the block table.
    offsets = tl.max_contiguous(tl.multiple_of(offsets, [1, 16]), [1, 16])
    if padded_dim == head_dim:
        words = tl.load(keys + offsets)
    else:
        words = tl.load(keys + offsets, mask=(rows < head_dim // pack)[:, None], other=0)
    if pack == 2:
        scores = tl.dot(query_low, _low_half(words, operand), input_precision="ieee")
        scores = tl.dot(query_high, _high_half(words, operand), scores, input_precision="ieee")
    else:
        scores = tl.dot(query_low, words.to(operand), input_precision="ieee")
    return scores


@triton.jit
def _add_values(
    sums,
    weights,
    values,
    tiles,
    tokens,
    end,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    pack: tl.constexpr,
    operand: tl.constexpr,
):
    """sums [members, padded_dim] plus weights [members, step] times V; tokens, tiles: of the first token of each word.

    A weight of zero does not silence a NaN, so what lies beyond the row's end, which may be anything, is not loaded.
    """
    dims = tl.arange(0, padded_dim)
    rows = tiles + (tokens % 16) // pack * head_dim
    offsets = rows[:, None] + dims[None, :]
    words = tl.load(values + offsets, mask=(tokens < end)[:, None] & (dims < head_dim)[None, :], other=0)
    if pack == 2:
        even, odd = tl.split(tl.reshape(weights, [weights.shape[0], weights.shape[1] // 2, 2]))
        odd_words = tl.where((tokens + 1 < end)[:, None], words, 0)
        sums = tl.dot(even.to(operand), _low_half(words, operand), sums, input_precision="ieee")
        sums = tl.dot(odd.to(operand), _high_half(odd_words, operand), sums, input_precision="ieee")
    else:
        sums = tl.dot(weights.to(operand), words.to(operand), sums, input_precision="ieee")
    return sums


@triton.jit
def _attend_tokens(
    query_low,
    query_high,
    keys,
    table,
    start,
    end,
    scale,
    block_stride,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_size: tl.constexpr,
    step_tokens: tl.constexpr,
    pack: tl.constexpr,
    operand: tl.constexpr,
):
    """Online softmax over the tokens from start to end, in base 2: V's weighted sum, the sum and largest of scores."""
    tile_words: tl.constexpr = 2 * 16 * head_dim // pack
    values = keys + tile_words // 2
    sums = tl.zeros([query_low.shape[0], padded_dim], tl.float32)
    maximum = tl.full([query_low.shape[0]], float("-inf"), tl.float32)
    weight_sum = tl.zeros([query_low.shape[0]], tl.float32)
    for first in range(start, end, step_tokens):
        # Beyond the end the last token's tile is read again: it is there, and no mask breaks up the wide loads of K.
        tokens = first + tl.arange(0, step_tokens)
        tiles = _tile_starts(tl.minimum(tokens, end - 1), table, block_stride, block_size, tile_words)
        scores = _scores(query_low, query_high, keys, tiles, tokens, head_dim, padded_dim, pack, operand)
        scores = tl.where((tokens < end)[None, :], scores * scale, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - new_maximum[:, None])
        correction = tl.exp2(maximum - new_maximum)
        weight_sum = weight_sum * correction + tl.sum(weights, 1)
        maximum = new_maximum
        sums *= correction[:, None]
        tokens = first + tl.arange(0, step_tokens // pack) * pack
        tiles = _tile_starts(tl.minimum(tokens, end - 1), table, block_stride, block_size, tile_words)
        sums = _add_values(sums, weights, values, tiles, tokens, end, head_dim, padded_dim, pack, operand)
    return sums, weight_sum, maximum


@triton.jit
def _attend_span(
    query,
    kv,
    block_tables,
    context_lens,
    out,
    partial_weights,
    partial_maxima,
    scale,
    query_stride,
    table_stride,
    out_stride,
    block_stride,
    head_stride,
    group: tl.constexpr,
    group_rows: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_size: tl.constexpr,
    step_tokens: tl.constexpr,
    pack: tl.constexpr,
    operand: tl.constexpr,
    one_span: tl.constexpr,
):
    """Query heads of one KV head attend to one span of one row; grid (spans, KV heads, rows).

    `kv` begins at the layer's first word. With one span `out` is the result [rows, Hq, D]; otherwise it is float32
    [rows, spans, Hq, D], V's sums not yet divided by the weights'. Spans beyond a row's context write nothing.
    """
    span, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_spans = tl.num_programs(0)
    context = tl.load(context_lens + row)
    span_tokens = _span_tokens(context, num_spans, step_tokens)
    start = span * span_tokens
    if not one_span:  # noqa: SIM102 - one condition is the compiler's, the other the program's
        if start >= context:
            return
    end = tl.minimum(start + span_tokens, context)
    members = tl.arange(0, group_rows)
    query += row * query_stride + kv_head * group * head_dim
    query_low, query_high = _load_query(query, members, group, head_dim, padded_dim, pack, operand)
    keys, table = kv + kv_head * head_stride, block_tables + row * table_stride
    sums, weight_sum, maximum = _attend_tokens(
        query_low, query_high, keys, table, start, end, scale, block_stride,
        head_dim, padded_dim, block_size, step_tokens, pack, operand,
    )  # fmt: skip
    heads = kv_head * group + members
    dims = tl.arange(0, padded_dim)
    if one_span:
        sums /= tl.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    else:
        places = (row * num_spans + span) * tl.num_programs(1) * group + heads
        tl.store(partial_weights + places, weight_sum, mask=members < group)
        tl.store(partial_maxima + places, maximum, mask=members < group)
    targets = out + (row * num_spans + span) * out_stride + heads[:, None] * head_dim + dims[None, :]
    tl.store(targets, sums.to(out.dtype.element_ty), mask=(members < group)[:, None] & (dims < head_dim)[None, :])


@triton.jit
def _merge_spans(
    partial_sums,
    partial_weights,
    partial_maxima,
    context_lens,
    out,
    num_spans,
    out_stride,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    step_tokens: tl.constexpr,
    merged_spans: tl.constexpr,
):
    """Partial results of one query head of one row -> out, zeros where the row has no context; grid (Hq, rows)."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    context = tl.load(context_lens + row)
    written = tl.cdiv(context, tl.maximum(_span_tokens(context, num_spans, step_tokens), 1))
    dims = tl.arange(0, padded_dim)
    sums = tl.zeros([padded_dim], tl.float32)
    maximum = tl.full([], float("-inf"), tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    for first in range(0, written, merged_spans):
        spans = first + tl.arange(0, merged_spans)
        places = (row * num_spans + spans) * num_heads + head
        maxima = tl.load(partial_maxima + places, mask=spans < written, other=float("-inf"))
        weights = tl.load(partial_weights + places, mask=spans < written, other=0.0)
        mask = (spans < written)[:, None] & (dims < head_dim)[None, :]
        parts = tl.load(partial_sums + places[:, None] * head_dim + dims[None, :], mask=mask, other=0.0)
        new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
        factors = tl.exp2(maxima - new_maximum)
        correction = tl.exp2(maximum - new_maximum)
        weight_sum = weight_sum * correction + tl.sum(weights * factors, 0)
        sums = sums * correction + tl.sum(parts * factors[:, None], 0)
        maximum = new_maximum
    sums /= tl.where(weight_sum > 0, weight_sum, 1.0)
    targets = out + row * out_stride + head * head_dim + dims
    tl.store(targets, sums.to(out.dtype.element_ty), mask=dims < head_dim)


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    *,
    layout: KvLayout,
    layer: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    spans: Spans,
) -> None:
    """See decode_attention.DecodeAttention."""
    rows, num_query_heads, head_dim = query.shape
    words = kv.view(torch.int32 if layout.pack == 2 else query.dtype)
    num_kv_heads = words.shape[2]
    group = num_query_heads // num_kv_heads
    padded_dim = triton.next_power_of_2(head_dim)
    one_span = spans.count == 1
    _attend_span[(spans.count, num_kv_heads, rows)](
        query,
        words[:, layer],
        block_tables,
        context_lens,
        out if one_span else spans.sums,
        spans.weights,
        spans.maxima,
        scale * _LOG2_E,
        query.stride(0),
        block_tables.stride(0),
        out.stride(0) if one_span else num_query_heads * head_dim,
        words.stride(0),
        words.stride(2),
        group=group,
        group_rows=max(16, triton.next_power_of_2(group)),
        head_dim=head_dim,
        padded_dim=padded_dim,
        block_size=layout.block_size,
        step_tokens=spans.step_tokens,
        pack=layout.pack,
        operand=_OPERANDS[query.dtype if query.is_cuda else torch.float32],
        one_span=one_span,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
    )
    if not one_span:
        _merge_spans[(num_query_heads, rows)](
            spans.sums,
            spans.weights,
            spans.maxima,
            context_lens,
            out,
            spans.count,
            out.stride(0),
            head_dim=head_dim,
            padded_dim=padded_dim,
            step_tokens=spans.step_tokens,
            merged_spans=_MERGED_SPANS,
            num_warps=1,
        )
