"""The small steps between GEMMs: Triton kernels and their twins against float64, and against one another."""

from __future__ import annotations

import pytest
import torch

from neobench.neo_engine.config import ConfigError, ModelShape
from neobench.neo_engine.kernels import fused
from neobench.neo_engine.kernels.kv_pieces import pack_tokens, store_tokens, unpack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout
from neobench.neo_engine.model.rotary import rotary_table

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Half a step of the dtype, relative, and a little for float32 arithmetic.
ROUNDING = {torch.float32: 1e-6, torch.float16: 5.2e-4, torch.bfloat16: 4.2e-3}


def assert_rounded(got: torch.Tensor, truth: torch.Tensor, *, absolute: float = 1e-6) -> None:
    """Every element is the truth rounded once, up to float32's own error."""
    # Triton's interpreter, which is what runs kernels on a CPU, cuts bfloat16 off: up to a whole step.
    steps = 2 if got.dtype == torch.bfloat16 and not got.is_cuda else 1
    assert ((got.double() - truth).abs() <= steps * ROUNDING[got.dtype] * truth.abs() + absolute).all()


def check_norm(add_rms_norm_, device, dtype, rows, hidden) -> None:
    torch.manual_seed(hidden)
    x, delta = (3 * torch.randn(2, rows, hidden)).to(device, dtype)
    weight = torch.randn(hidden).to(device, dtype)
    for added in (delta, None):
        summed = x.clone()
        normed = add_rms_norm_(summed, added, weight=weight, eps=1e-5)
        assert_rounded(summed, x.double() if added is None else x.double() + added.double())
        wide = summed.double()
        assert_rounded(normed, wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double())


def check_silu(silu_mul, device, dtype, rows, width) -> None:
    torch.manual_seed(width)
    gate_up = (4 * torch.randn(rows, 2 * width)).to(device, dtype)
    gate, up = gate_up.double().chunk(2, -1)
    assert_rounded(silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(steps, device, dtype):
    check_norm(steps.add_rms_norm_, device, dtype, 3, 96)
    check_norm(steps.add_rms_norm_, device, dtype, 2, 2048)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(steps, device, dtype):
    check_silu(steps.silu_mul, device, dtype, 3, 48)
    check_silu(steps.silu_mul, device, dtype, 2, 1400)


def test_no_rows(steps, device):
    assert steps.silu_mul(torch.empty(0, 8, device=device)).shape == (0, 4)
    x = torch.empty(0, 8, device=device)
    assert steps.add_rms_norm_(x, None, weight=x.new_ones(8), eps=1e-5).shape == (0, 8)


def check_rotation(rotate_and_store_, device, dtype, *, heads=(4, 2), head_dim=64, block_size=32, num_tokens=7) -> None:
    """q and k rotated, v not; K and V of tokens with a slot stored in layer 1, and nothing else touched."""
    torch.manual_seed(num_tokens)
    num_query_heads, num_kv_heads = heads
    shape = ModelShape("heads", 1, 64, 64, num_query_heads, num_kv_heads, head_dim, vocab_size=32, max_position=500)
    layout = KvLayout(str(dtype).removeprefix("torch."), head_dim, block_size)
    table = rotary_table(shape, dtype=dtype, device=device)
    qkv = torch.randn(num_tokens, num_query_heads + 2 * num_kv_heads, head_dim).to(device, dtype)
    positions = torch.randint(0, 500, (num_tokens,)).to(device)
    num_blocks = 2 + num_tokens // block_size
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    slots[num_tokens // 2] = -1
    kv = torch.full((num_blocks, 3, num_kv_heads, layout.piece_bytes), 7, dtype=torch.uint8, device=device)

    half = head_dim // 2
    angles = table[positions].double()
    cosines, sines = angles[:, 0, None, :half], angles[:, 1, None, half:]
    truth = qkv.double()
    first, second = truth[:, :-num_kv_heads, :half].clone(), truth[:, :-num_kv_heads, half:].clone()
    truth[:, :-num_kv_heads, :half] = first * cosines - second * sines
    truth[:, :-num_kv_heads, half:] = second * cosines + first * sines

    got, store = qkv.clone(), kv.clone()
    rotate_and_store_(got, positions, table=table, kv=store, layout=layout, layer=1, slots=slots.to(device))
    # Two products may cancel, and then float32's error is that of their sizes.
    assert_rounded(got, truth, absolute=1e-5)
    assert torch.equal(got[:, -num_kv_heads:], qkv[:, -num_kv_heads:])

    expected = kv.clone()
    key, value = (part.transpose(1, 2).flatten(0, 1) for part in unpack_tokens(layout, kv[:, 1]))
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key[slot] = got[token, num_query_heads:-num_kv_heads]
            value[slot] = got[token, -num_kv_heads:]
    in_blocks = (part.unflatten(0, (num_blocks, block_size)).transpose(1, 2) for part in (key, value))
    expected[:, 1] = pack_tokens(layout, *in_blocks)
    assert torch.equal(store, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [{}, {"heads": (3, 3), "head_dim": 80, "block_size": 16}, {"heads": (8, 1), "head_dim": 128}]
)
def test_rotation_and_store(steps, device, dtype, shape):
    check_rotation(steps.rotate_and_store_, device, dtype, **shape)


def test_tokens_stored_one_by_one_are_the_bytes_of_whole_blocks():
    layout = KvLayout("bfloat16", 64, 32)
    key, value = torch.randn(2, 2, 32, 3, 64).bfloat16()
    kv = torch.zeros(2, 1, 3, layout.piece_bytes, dtype=torch.uint8)
    tokens = (part.flatten(0, 1) for part in (key, value))
    store_tokens(layout, kv, layer=0, slots=torch.arange(64), **dict(zip(("key", "value"), tokens, strict=True)))
    assert torch.equal(kv[:, 0], pack_tokens(layout, key.transpose(1, 2), value.transpose(1, 2)))


def test_heads_and_layouts_that_do_not_fit_are_refused():
    kv = torch.zeros(1, 1, 1, 4096, dtype=torch.uint8)
    arguments = {"table": torch.zeros(4, 2, 64), "kv": kv, "layer": 0, "slots": torch.zeros(1, dtype=torch.int64)}
    heads, positions = torch.zeros(1, 3, 64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ConfigError, match="block_size"):
        fused.rotate_and_store_(heads, positions, layout=KvLayout("float32", 64, 8), **arguments)
    with pytest.raises(ValueError, match="float16"):
        fused.rotate_and_store_(heads, positions, layout=KvLayout("float16", 64, 16), **arguments)
    with pytest.raises(ValueError, match="8192 bytes, one slot"):
        fused.rotate_and_store_(heads, positions, layout=KvLayout("float32", 64, 16), **arguments)
    wide = torch.zeros(3, 16)
    with pytest.raises(ValueError, match="gate_up"):
        fused.silu_mul(wide[:, :8])
    with pytest.raises(ValueError, match="x: expected"):
        fused.add_rms_norm_(wide[:, :8], None, weight=torch.ones(8), eps=1e-5)
    with pytest.raises(ValueError, match="delta: expected"):
        fused.add_rms_norm_(wide, wide[:2], weight=torch.ones(16), eps=1e-5)
    with pytest.raises(ValueError, match="at most 16384"):
        fused.add_rms_norm_(torch.zeros(1, 20000), None, weight=torch.ones(20000), eps=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shapes_of_real_models_on_a_gpu(gpu, dtype):
    for hidden in (4096, 8192, 16384):
        check_norm(fused.add_rms_norm_, gpu, dtype, 300, hidden)
    for width in (11008, 14336, 28672):
        check_silu(fused.silu_mul, gpu, dtype, 300, width)
    for heads in ((32, 32), (32, 8), (64, 8)):
        check_rotation(fused.rotate_and_store_, gpu, dtype, heads=heads, head_dim=128, block_size=16, num_tokens=3000)


@pytest.mark.gpu
def test_slots_beyond_2_to_the_31_bytes_on_a_gpu(gpu):
    layout = KvLayout("bfloat16", 128, 16)
    block_bytes = 8 * layout.piece_bytes
    kv = torch.zeros(2**33 // block_bytes + 1, 1, 8, layout.piece_bytes, dtype=torch.uint8, device=gpu)
    heads = torch.randn(1, 24, 128, device=gpu, dtype=torch.bfloat16)
    table = torch.ones(1, 2, 128, device=gpu, dtype=torch.bfloat16)
    slots = torch.tensor([(len(kv) - 1) * 16 + 5], device=gpu)
    fused.rotate_and_store_(heads, slots * 0, table=table, kv=kv, layout=layout, layer=0, slots=slots)
    key, value = unpack_tokens(layout, kv[-1, 0])
    assert torch.equal(key[:, 5], heads[0, 8:16])
    assert torch.equal(value[:, 5], heads[0, 16:])
