"""Outputs against the float64 reference, over shapes, dtypes, kernels and threads."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from neobench import pacpu

TARGETS = pacpu.targets()
FLOATS = ("float32", "float16", "bfloat16")
HEAD_DIMS = (64, 80, 96, 128, 256)
# Around the edges of a block of 16, of a kernel's tile of 32 and of a chunk of 256 tokens.
RAGGED_LENGTHS = (0, 1, 15, 16, 17, 31, 33, 255, 256, 257, 300, 513)

problems = st.fixed_dictionaries(
    {
        "context_lens": st.lists(
            st.one_of(st.integers(0, 70), st.sampled_from(RAGGED_LENGTHS)), min_size=1, max_size=4
        ),
        "num_kv_heads": st.integers(1, 3),
        "heads_per_kv_head": st.integers(1, 8),
        "head_dim": st.sampled_from(HEAD_DIMS),
        "block_size": st.sampled_from((1, 2, 3, 7, 8, 13, 16, 32)),
        "cache_dtype": st.sampled_from(FLOATS),
        "activation_dtype": st.sampled_from(FLOATS),
        "with_new_tokens": st.booleans(),
        "num_layers": st.integers(1, 3),
        "seed": st.integers(0, 2**31),
    }
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problem=problems, target=st.sampled_from(TARGETS), num_threads=st.sampled_from((1, 2, 3)))
def test_any_problem_matches_the_reference(problem, target, num_threads, attention_case, pools):
    attention_case(**problem).check(pools[num_threads], target=target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cache_dtype", FLOATS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_kernel_and_dtype_and_head_dim(target, cache_dtype, head_dim, attention_case, pools):
    attention_case(RAGGED_LENGTHS, head_dim=head_dim, cache_dtype=cache_dtype, num_layers=1).check(
        pools[2], target=target
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("heads_per_kv_head", range(1, 9))
def test_every_ratio_of_heads(target, heads_per_kv_head, attention_case, pools):
    case = attention_case((5, 64, 300), heads_per_kv_head=heads_per_kv_head, cache_dtype="bfloat16", num_layers=1)
    case.check(pools[2], target=target)


@pytest.mark.parametrize("output_dtype", FLOATS)
@pytest.mark.parametrize("activation_dtype", FLOATS)
@pytest.mark.parametrize("cache_dtype", FLOATS)
def test_activations_convert_to_and_from_every_dtype(
    cache_dtype, activation_dtype, output_dtype, attention_case, pools
):
    attention_case(
        (1, 40), cache_dtype=cache_dtype, activation_dtype=activation_dtype, output_dtype=output_dtype
    ).check(pools[1])


@pytest.mark.parametrize(
    ("source", "target"), [("float32", "float16"), ("float32", "bfloat16"), ("float16", "bfloat16")]
)
def test_stored_tokens_round_as_torch_rounds(source, target, attention_case, pools):
    case = attention_case((3,), head_dim=256, activation_dtype=source, cache_dtype=target)
    exponents = torch.linspace(-30, 16, case.new_key.numel()).reshape(case.new_key.shape)
    case.new_key.copy_(torch.exp2(exponents) * case.new_key.float().sign() * 1.2345)
    case.new_value[0, 0, :6] = torch.tensor([float("inf"), -float("inf"), 65519.0, 65520.0, 2.0**-25, -0.0])
    plan = case.plan(pools[1])
    plan.begin(1)
    plan.run(1)
    block = case.block_tables[0, 0]
    assert torch.equal(case.slab[block, 1, 0, :, 2], case.new_key[0].to(case.slab.dtype))
    assert torch.equal(case.slab[block, 1, 1, :, 2], case.new_value[0].to(case.slab.dtype))


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_inputs_of_every_kind_are_read_exactly(target, attention_case, pools):
    """With one token the output is its value: all finite float16 numbers come back, subnormals included."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    numbers = np.resize(numbers, (-(-len(numbers) // 256), 1, 256))
    case = attention_case((1,) * len(numbers), num_kv_heads=1, heads_per_kv_head=1, head_dim=256, block_size=1)
    case.new_value = torch.from_numpy(numbers)
    plan = case.plan(pools[1], target=target)
    plan.begin(len(numbers))
    plan.run(0)
    np.testing.assert_array_equal(case.output.numpy(), numbers.astype(np.float32))


@pytest.mark.parametrize("target", TARGETS)
def test_large_scores_do_not_overflow(target, attention_case, pools):
    case = attention_case((40, 600), cache_dtype="float32", with_new_tokens=False)
    case.query *= 200
    case.check(pools[2], target=target)


def test_a_small_workspace_gives_the_same_answer(attention_case, pools):
    case = attention_case((1500, 3, 700, 20), num_kv_heads=1)
    enough = pacpu.workspace_bytes(
        max_rows=1, num_q_heads=2, num_kv_heads=1, head_dim=64, max_context=1, num_threads=pools[2].num_threads
    )
    plan = case.plan(pools[2], workspace=np.zeros(enough, dtype=np.uint8))
    plan.begin(4)
    plan.run(0)
    case.check_layer(0)


def test_rows_beyond_num_rows_are_left_alone(attention_case, pools):
    case = attention_case((10, 20, 30))
    before = case.slab.clone()
    plan = case.plan(pools[2])
    plan.begin(1)
    plan.run(0)
    assert torch.isfinite(case.output[0]).all()
    assert torch.isnan(case.output[1:]).all()
    changed = (case.slab != before) & ~(case.slab.isnan() & before.isnan())
    assert set(changed.nonzero()[:, 0].tolist()) == {int(case.block_tables[0, 0])}
    plan.begin(0)
    plan.run(0)


def test_padded_row_strides(attention_case, pools):
    case = attention_case((10, 40), with_new_tokens=False)
    wide_query = torch.randn(2, 7, 64)
    wide_output = torch.full((2, 9, 64), float("nan"))
    case.query, case.output = wide_query[:, 1:5], wide_output[:, 2:6]
    wide_tables = np.full((2, 12), -5, dtype=np.int32)
    wide_tables[:, 1:10:3] = case.block_tables
    plan = case.plan(pools[2], block_tables=wide_tables[:, 1:10:3])
    plan.begin(2)
    plan.run(1)
    case.check_layer(1)
    assert torch.isnan(wide_output[:, [0, 1, 6, 7, 8]]).all()


def test_numpy_arrays_alone(pools):
    rng = np.random.default_rng(0)
    k_cache, v_cache = rng.standard_normal((2, 1, 4, 2, 8, 64)).astype(np.float32)
    query, output = rng.standard_normal((1, 4, 64)), np.empty((1, 4, 64), dtype=np.float32)
    tables, contexts = np.array([[2, 0, 3]], dtype=np.int32), np.array([19], dtype=np.int32)
    shape = {"max_rows": 1, "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64, "max_context": 24, "num_threads": 2}
    plan = pacpu.DecodePlan(
        pools[2],
        k_cache=k_cache,
        v_cache=v_cache,
        query=query.astype(np.float32),
        output=output,
        block_tables=tables,
        context_lens=contexts,
        scale=0.125,
        workspace=np.zeros(pacpu.workspace_bytes(**shape), dtype=np.uint8),
    )
    assert plan.target == TARGETS[0]
    plan.begin(1)
    plan.run(0)
    truth = pacpu.paged_decode_reference(
        query.astype(np.float32), k_cache[0], v_cache[0], block_tables=tables, context_lens=contexts, scale=0.125
    )
    assert np.linalg.norm(output - truth) <= 1e-5 * np.linalg.norm(truth)


@pytest.mark.parametrize("target", TARGETS)
def test_offsets_beyond_four_gigabytes(target, attention_case, pools):
    """A layer stride of 5 GiB in memory that is mapped but, apart from a few pages, never touched."""
    layer_items = 5 * 2**30 // 4
    with tempfile.TemporaryFile() as file:
        memory = np.memmap(file, dtype=np.float32, mode="w+", shape=(2 * layer_items,))
    case = attention_case((20,), num_kv_heads=1, with_new_tokens=False, cache_dtype="float32")
    strides = (layer_items * 4, 8192, 4096, 256, 4)
    shape = (2, len(case.slab), 1, 16, 64)
    caches = [as_strided(memory[offset:], shape, strides) for offset in (0, 1024)]
    for which, cache in enumerate(caches):
        cache[:] = case.slab[:, :, which].transpose(0, 1).numpy()
    plan = case.plan(pools[1], target=target, k_cache=caches[0], v_cache=caches[1])
    plan.begin(1)
    plan.run(1)
    case.check_layer(1)


def test_the_plan_keeps_its_arrays_alive(attention_case, pools):
    case = attention_case((40, 50))
    plan = case.plan(pools[2], query=case.query.clone(), workspace=np.zeros(1 << 20, dtype=np.uint8))
    plan.begin(2)
    plan.run(0)
    case.check_layer(0)
