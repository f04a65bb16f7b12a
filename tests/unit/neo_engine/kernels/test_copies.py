"""Tiles into rows, scattered pieces, rows of host memory: Triton kernels and their twins."""

from __future__ import annotations

import pytest
import torch

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.kernels import copies
from neobench.neo_engine.kernels.kv_pieces import pack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 64), (48, 80), (32, 128)])
def test_unpacked_tokens_are_those_that_were_packed(copiers, device, dtype, block_size, head_dim):
    layout = KvLayout(str(dtype).removeprefix("torch."), head_dim, block_size)
    tokens = torch.randn(2, 4 * block_size, 3, head_dim).to(device, dtype)
    kv = torch.full((6, 2, 3, layout.piece_bytes), 0xFF, dtype=torch.uint8, device=device)
    blocks = torch.tensor([5, 0, 3, 2], device=device)
    kv[blocks, 1] = pack_tokens(layout, *tokens.unflatten(1, (4, block_size)).transpose(2, 3))
    for num_tokens in (1, 16, 17, 4 * block_size - 1, 4 * block_size):
        for listed in (blocks, blocks.int()):
            got = copiers.unpack_context(kv, layout, layer=1, blocks=listed, num_tokens=num_tokens)
            for part, expected in zip(got, tokens, strict=True):
                assert part.is_contiguous()
                assert torch.equal(part, expected[:num_tokens])
    nothing = copiers.unpack_context(kv, layout, layer=0, blocks=blocks, num_tokens=0)
    assert [part.shape for part in nothing] == [(0, 3, head_dim)] * 2


def test_pieces_go_from_slab_to_slab(copiers, device):
    layout = KvLayout("bfloat16", 64, 16)
    source = torch.randint(0, 255, (5, 3, 2, layout.piece_bytes), dtype=torch.uint8).to(device)
    target = torch.full((4, 1, 2, layout.piece_bytes), 7, dtype=torch.uint8, device=device)
    from_blocks, to_blocks = torch.tensor([4, 1, 0], device=device), torch.tensor([0, 3, 2], device=device)
    expected = target.clone()
    expected[to_blocks, 0] = source[from_blocks, 2]
    copiers.copy_pieces(source, target, layers=(2, 0), source_blocks=from_blocks, target_blocks=to_blocks.int())
    assert torch.equal(target, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_copied_into_a_part_of_a_wider_tensor(copiers, device, dtype):
    source = torch.randn(3, 2500).to(dtype)
    if device.type == "cuda":
        source = source.pin_memory()
    wide = torch.zeros(3, 4000, dtype=dtype, device=device)
    copiers.copy_rows(source, wide[:, 1000:3500], count=torch.tensor([2], dtype=torch.int32, device=device))
    assert torch.equal(wide[:2, 1000:3500].cpu(), source[:2])
    assert not wide[2].any()
    assert not wide[:, :1000].any()
    assert not wide[:, 3500:].any()


def test_what_does_not_fit_together_is_refused():
    slab = torch.zeros(2, 1, 2, 4096, dtype=torch.uint8)
    blocks = torch.tensor([0])
    with pytest.raises(ValueError, match="not of one layout"):
        copies.copy_pieces(slab, slab[:, :, :1], layers=(0, 0), source_blocks=blocks, target_blocks=blocks)
    with pytest.raises(ValueError, match="rows"):
        copies.copy_rows(torch.zeros(3, 4), torch.zeros(2, 4), count=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match="count"):
        copies.copy_rows(torch.zeros(3, 4), torch.zeros(3, 4), count=torch.zeros(1))


def test_layouts_that_are_not_tiles_are_refused():
    kv = torch.zeros(1, 1, 1, 4096, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="block_size"):
        copies.unpack_context(kv, KvLayout("float16", 64, 8), layer=0, blocks=torch.tensor([0]), num_tokens=1)


@pytest.mark.gpu
def test_pieces_of_pinned_host_memory_are_read_by_a_gpu(gpu):
    layout = KvLayout("bfloat16", 128, 16)
    host = torch.randint(0, 255, (40, 4, 8, layout.piece_bytes), dtype=torch.uint8).pin_memory()
    device_slab = torch.zeros(30, 1, 8, layout.piece_bytes, dtype=torch.uint8, device=gpu)
    blocks = torch.randperm(40)[:30]
    copies.copy_pieces(
        host, device_slab, layers=(3, 0), source_blocks=blocks.to(gpu), target_blocks=torch.arange(30, device=gpu)
    )
    assert torch.equal(device_slab[:, 0].cpu(), host[blocks, 3])


def test_no_pieces_are_copied_from_a_slab_of_none(device):
    """As beside prompts, where the host tier is of no blocks."""
    none = torch.zeros(0, 8, 2, 4096, dtype=torch.uint8)
    staging = torch.zeros(0, 2, 2, 4096, dtype=torch.uint8, device=device)
    blocks = torch.zeros(0, dtype=torch.int64, device=device)
    copies.copy_pieces(none, staging, layers=(3, 1), source_blocks=blocks, target_blocks=blocks)
