"""The torch twin of the memory layout: the same bytes as pacpu's, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neobench.neo_engine.kernels.kv_pieces import pack_tokens, unpack_tokens
from neobench.neo_engine.kernels.prefill import causal_attention, read_prompt_kv, store_prompt_kv
from neobench.neo_engine.kv_cache.layout import KvLayout


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("block_size", [16, 32, 5, 24])
def test_pieces_are_the_bytes_that_host_attention_reads(dtype, block_size):
    layout = KvLayout(dtype, 80, block_size)
    key, value = torch.randn(2, 3, 2, block_size, 80, generator=torch.Generator().manual_seed(0))
    key[1, 1, 2] = 0
    pieces = pack_tokens(layout, key, value)
    for index in np.ndindex(3, 2):
        expected = layout.pack_tokens(key[index].numpy(), value[index].numpy())
        np.testing.assert_array_equal(pieces[index].numpy(), expected)
    for got, expected in zip(unpack_tokens(layout, pieces), layout.unpack_tokens(pieces.numpy()), strict=True):
        np.testing.assert_array_equal(got.float().numpy(), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_survive_the_way_there_and_back(dtype):
    layout = KvLayout(dtype, 64, 16)
    key, value = torch.randn(2, 4, 16, 64).to(getattr(torch, dtype))
    back = unpack_tokens(layout, pack_tokens(layout, key, value))
    assert torch.equal(back[0], key)
    assert torch.equal(back[1], value)


def test_int8_is_within_half_a_step_and_shows_what_is_not_finite():
    layout = KvLayout("int8", 64, 16)
    key, value = torch.randn(2, 16, 64)
    value[7, 3] = float("inf")
    got_key, got_value = unpack_tokens(layout, pack_tokens(layout, key, value))
    assert ((got_key - key).abs() <= 0.5001 * key.abs().amax(-1, keepdim=True) / 127).all()
    assert got_value[7].isnan().all()
    assert got_value[:7].isfinite().all()


@pytest.mark.parametrize("num_tokens", [1, 16, 33, 48])
def test_a_prompt_is_stored_in_its_blocks_and_layer_alone(num_tokens):
    layout = KvLayout("bfloat16", 64, 16)
    kv = torch.full((6, 2, 3, layout.piece_bytes), 7, dtype=torch.uint8)
    key, value = torch.randn(2, num_tokens, 3, 64).bfloat16()
    blocks = torch.tensor([4, 0, 5][: -(-num_tokens // 16)])
    store_prompt_kv(kv, layout, 1, blocks, key, value)
    stored = unpack_tokens(layout, kv[blocks, 1])
    for got, expected in zip(stored, (key, value), strict=True):
        assert torch.equal(got.transpose(1, 2).flatten(0, 1)[:num_tokens], expected)
    untouched = torch.ones(6, dtype=torch.bool)
    untouched[blocks] = False
    assert (kv[:, 0] == 7).all()
    assert (kv[untouched] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("block_size", "cuts"), [(16, (5,)), (16, (16, 33)), (24, (1, 7, 23, 24, 49)), (5, (3, 4, 20))]
)
def test_chunks_store_the_bytes_of_a_whole_prompt_and_give_them_back(dtype, block_size, cuts):
    layout = KvLayout(dtype, 64, block_size)
    num_tokens = 61
    key, value = torch.randn(2, num_tokens, 3, 64).to(torch.float32 if dtype == "int8" else getattr(torch, dtype))
    blocks = torch.randperm(40)[: -(-num_tokens // block_size)]
    whole, chunked = torch.full((2, 40, 2, 3, layout.piece_bytes), 7, dtype=torch.uint8)
    store_prompt_kv(whole, layout, 1, blocks, key, value)
    for start, end in zip((0, *cuts), (*cuts, num_tokens), strict=True):
        used = blocks[: -(-end // block_size)]
        store_prompt_kv(chunked, layout, 1, used, key[start:end], value[start:end], start_tokens=start)
        back = read_prompt_kv(chunked, layout, 1, used, end)
        for got, expected in zip(back, (key, value), strict=True):
            assert got.shape == expected[:end].shape
            if dtype == "int8":
                assert ((got - expected[:end]).abs() <= 0.51 * expected[:end].abs().amax(-1, keepdim=True) / 127).all()
            else:
                assert torch.equal(got, expected[:end])
    assert torch.equal(chunked, whole)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 20, 36])
def test_a_chunk_attends_like_the_end_of_the_whole_prompt(kv_heads, start):
    query, key, value = (torch.randn(37, heads, 64) for heads in (4, kv_heads, kv_heads))
    whole = causal_attention(query, key, value)
    torch.testing.assert_close(causal_attention(query[start:], key, value), whole[start:])
