"""K and V between the tiers of a GPU machine: what arrives is what the CPU executor would have stored."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.executor.tiers import Tiers  # noqa: E402
from neobench.neo_engine.kernels.kv_pieces import store_tokens, unpack_tokens  # noqa: E402
from neobench.neo_engine.kernels.prefill import read_prompt_kv, store_prompt_kv  # noqa: E402
from neobench.neo_engine.kv_cache.block_tables import BlockMove  # noqa: E402
from neobench.neo_engine.kv_cache.layout import KvLayout  # noqa: E402
from neobench.neo_engine.request import Tier  # noqa: E402

LAYERS, HEADS, DIM, BLOCK = 3, 2, 64, 32
DEVICE_BLOCKS, HOST_BLOCKS = 5, 7


def make_tiers(host_dtype: str) -> Tiers:
    layouts = [KvLayout(dtype, DIM, BLOCK) for dtype in ("float32", host_dtype)]
    slabs = [
        torch.zeros(blocks, LAYERS, HEADS, layout.piece_bytes, dtype=torch.uint8)
        for blocks, layout in zip((DEVICE_BLOCKS, HOST_BLOCKS), layouts, strict=True)
    ]
    return Tiers(layouts[0], slabs[0], layouts[1], slabs[1])


def random_tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, count, HEADS, DIM, generator=generator)
    return key, value


@pytest.mark.parametrize("host_dtype", ["float32", "int8"])
def test_chunks_that_leave_layer_by_layer_are_what_the_cpu_would_have_stored(host_dtype: str) -> None:
    """A prompt of 75 tokens in chunks that end in mid-block; earlier tokens of a block stay to the bit."""
    tiers, layer, host_blocks = make_tiers(host_dtype), 2, torch.tensor([4, 1, 6])
    expected = tiers.host.clone()
    for seed, (start, end) in enumerate(((0, 20), (20, 41), (41, 64), (64, 75))):
        key, value = random_tokens(end - start, seed)
        used = host_blocks[: -(-end // BLOCK)]
        store_prompt_kv(expected, tiers.host_layout, layer, used, key, value, start_tokens=start)

        staging = torch.zeros(len(used), 2, *tiers.device.shape[2:], dtype=torch.uint8)
        staged = torch.arange(len(used))
        earlier = -(-start // BLOCK)
        tiers.bring(layer, used[:earlier], staging, 1, staged[:earlier])
        if start:
            came = unpack_tokens(tiers.layout, staging[:earlier, 1])
            truth = read_prompt_kv(expected, tiers.host_layout, layer, used, start)
            for part, wanted in zip(came, truth, strict=True):
                assert torch.equal(part.transpose(1, 2).flatten(0, 1)[:start], wanted.float())
        store_tokens(tiers.layout, staging, layer=1, slots=torch.arange(start, end), key=key, value=value)
        first, kept = divmod(start, BLOCK)
        kept_tokens = torch.tensor([kept, *[0] * (len(used) - first - 1)])
        tiers.send(staging, 1, staged[first:], layer, used[first:], kept_tokens)
        for blocks in (tiers.host, expected):
            assert blocks[:, [0, 1]].count_nonzero() == 0, "other layers are left alone"
        written = [read_prompt_kv(slab, tiers.host_layout, layer, used, end) for slab in (tiers.host, expected)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*written, strict=True))


@pytest.mark.parametrize("host_dtype", ["float32", "int8"])
def test_blocks_move_there_and_back(host_dtype: str) -> None:
    tiers = make_tiers(host_dtype)
    for layer in range(LAYERS):
        store_prompt_kv(tiers.device, tiers.layout, layer, torch.tensor([3, 0]), *random_tokens(2 * BLOCK, layer))
    before = tiers.device.clone()
    tiers.move(BlockMove(Tier.DEVICE, (3, 0), (5, 2)))
    assert tiers.host[[0, 1, 3, 4, 6]].count_nonzero() == 0
    tiers.move(BlockMove(Tier.HOST, (5, 2), (1, 4)))
    for came, went in ((1, 3), (4, 0)):
        ours, truth = unpack_tokens(tiers.layout, tiers.device[came]), unpack_tokens(tiers.layout, before[went])
        for part, wanted in zip(ours, truth, strict=True):
            step = wanted.abs().amax(-1, keepdim=True) / 127 if host_dtype == "int8" else torch.zeros(1)
            assert ((part - wanted).abs() <= 0.5001 * step).all()
