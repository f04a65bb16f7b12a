"""The torch twin of the memory layout: the same bytes as pacpu's, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neobench.neo_engine.kernels.kv_pieces import pack_tokens, unpack_tokens
from neobench.neo_engine.kernels.prefill import store_prompt_kv
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
