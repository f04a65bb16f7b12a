"""Causal attention of packed prompts and chunks, against float64."""

from __future__ import annotations

import pytest
import torch

from neobench.neo_engine.kernels.prefill_attention import PackedLengths, prefill_attention

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def truth_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One sequence in float64, its queries the last of its tokens."""
    tokens, context = len(query), len(key)
    key, value = (part.double().repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * query.shape[2] ** -0.5
    seen = torch.arange(context)[None] <= torch.arange(context - tokens, context)[:, None]
    scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def check(device, dtype, heads, lengths, head_dim=64) -> None:
    torch.manual_seed(0)
    packed = PackedLengths.of(*zip(*lengths, strict=True), device)
    # Views of a wider tensor, as they come out of one GEMM.
    query = torch.randn(sum(packed.query_tokens), heads[0] + 2 * heads[1], head_dim).to(device, dtype)[:, : heads[0]]
    key, value = torch.randn(sum(packed.context_tokens), 2, heads[1], head_dim).to(device, dtype).unbind(1)
    got = prefill_attention(query, key, value, packed)
    assert got.shape == query.shape
    parts = zip(
        got.split(packed.query_tokens),
        query.split(packed.query_tokens),
        key.split(packed.context_tokens),
        value.split(packed.context_tokens),
        strict=True,
    )
    for sequence, (result, *inputs) in enumerate(parts):
        truth = truth_of(*inputs)
        error = (result.double() - truth).norm() / truth.norm()
        assert error <= TOLERANCE[dtype], f"sequence {sequence}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2)])
def test_prompts_and_chunks_behind_earlier_tokens(device, dtype, heads):
    check(device, dtype, heads, [(5, 5), (1, 1), (7, 40), (1, 17), (33, 33)])
    check(device, dtype, heads, [(1, 17), (1, 3)])


def test_no_sequences(device):
    none = PackedLengths.of((), (), device)
    assert prefill_attention(*(torch.empty(0, 2, 64, device=device) for _ in range(3)), none).shape == (0, 2, 64)


@pytest.mark.parametrize("lengths", [([0], [4]), ([5], [4]), ([1, 2], [2])])
def test_lengths_that_make_no_sense_are_refused(lengths):
    with pytest.raises(ValueError, match="cannot attend"):
        PackedLengths.of(*lengths, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(32, 32), (32, 8), (64, 8)])
def test_long_prompts_and_chunks_on_a_gpu(gpu, dtype, heads):
    check(gpu, dtype, heads, [(750, 750), (512, 2048), (1, 300), (100, 101)], head_dim=128)
