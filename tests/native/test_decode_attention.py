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
CACHE_DTYPES = (*FLOATS, "int8")
HEAD_DIMS = (64, 80, 96, 128, 256)
# Around the edges of a block and tile of 16 and of a chunk of 256 tokens.
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
        "cache_dtype": st.sampled_from(CACHE_DTYPES),
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
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_kernel_and_dtype_and_head_dim(target, cache_dtype, head_dim, attention_case, pools):
    attention_case(RAGGED_LENGTHS, head_dim=head_dim, cache_dtype=cache_dtype, num_layers=1).check(
        pools[2], target=target
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("heads_per_kv_head", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 19])
def test_every_ratio_of_heads(target, cache_dtype, heads_per_kv_head, attention_case, pools):
    case = attention_case((5, 64, 300), heads_per_kv_head=heads_per_kv_head, cache_dtype=cache_dtype, num_layers=1)
    case.check(pools[2], target=target)


@pytest.mark.parametrize("output_dtype", FLOATS)
@pytest.mark.parametrize("activation_dtype", FLOATS)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
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
    case.check_stored_tokens(1)


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_inputs_of_every_kind_are_read_exactly(target, attention_case, pools):
    """With one token the output is its value: all finite float16 numbers come back, subnormals included."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    numbers = np.resize(numbers, (-(-len(numbers) // 256), 1, 256))
    case = attention_case((1,) * len(numbers), num_kv_heads=1, heads_per_kv_head=1, head_dim=256, block_size=1)
    case.new_key, case.new_value = case.new_key.half(), torch.from_numpy(numbers)
    plan = case.plan(pools[1], target=target)
    plan.begin(len(numbers))
    plan.run(0)
    np.testing.assert_array_equal(case.output.numpy(), numbers.astype(np.float32))


@pytest.mark.parametrize("target", TARGETS)
def test_large_scores_do_not_overflow(target, attention_case, pools):
    case = attention_case((40, 600), cache_dtype="float32", with_new_tokens=False)
    case.query *= 200
    case.check(pools[2], target=target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("where", [("key",), ("value",), ("key", "value")])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")  # of the reference
def test_special_numbers_do_in_their_row_what_they_do_in_float64(
    target, cache_dtype, where, special, attention_case, pools
):
    case = attention_case((20, 300, 257), with_new_tokens=False, cache_dtype=cache_dtype, num_layers=1)
    case.set_token(0, 3, **dict.fromkeys(where, special))
    case.set_token(1, 299, **dict.fromkeys(where, special))
    plan = case.plan(pools[2], target=target)
    plan.begin(3)
    plan.run(0)
    np.testing.assert_allclose(case.output.numpy(), case.reference(0), rtol=0.05, atol=0.01)
    assert torch.isfinite(case.output[2]).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_tokens_that_score_minus_infinity_weigh_nothing(target, cache_dtype, attention_case, pools):
    """Even when a whole tile does, before the first finite score."""
    case = attention_case((40,), with_new_tokens=False, cache_dtype=cache_dtype, num_layers=1)
    case.query = case.query.abs() + 0.1
    lowest = -3e4 if cache_dtype == "float16" else -3e38
    for token in range(20):
        case.set_token(0, token, key=lowest)
    case.check(pools[1], target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_hundred_thousand_tokens(target, attention_case, pools):
    case = attention_case((3, 100_003), num_kv_heads=1, cache_dtype="bfloat16", num_layers=1, block_size=512)
    case.check(pools[2], target=target)


@pytest.mark.parametrize(("cache_dtype", "limit"), [("float16", 1e-3), ("bfloat16", 7e-3), ("int8", 1e-2)])
def test_error_against_the_unrounded_cache(cache_dtype, limit, attention_case, pools):
    """What storing K and V in fewer bits costs on normal data, rounding included."""
    case = attention_case(
        (700, 300), num_kv_heads=4, head_dim=128, cache_dtype=cache_dtype, with_new_tokens=False, num_layers=1
    )
    plan = case.plan(pools[2])
    plan.begin(2)
    plan.run(0)
    keys, values = case.unrounded[:, :, 0]
    truth = pacpu.paged_decode_reference(
        case.query.numpy(),
        keys,
        values,
        block_tables=case.block_tables,
        context_lens=case.contexts,
        scale=case.scale,
    )
    assert np.linalg.norm(case.output.numpy() - truth) <= limit * np.linalg.norm(truth)


def test_a_small_workspace_gives_the_same_answer(attention_case, pools):
    case = attention_case((1500, 3, 700, 20), num_kv_heads=1)
    enough = pacpu.workspace_bytes(
        max_rows=1, num_q_heads=2, head_dim=64, max_context=1, num_threads=pools[2].num_threads
    )
    plan = case.plan(pools[2], workspace=np.zeros(enough, dtype=np.uint8))
    plan.begin(4)
    plan.run(0)
    case.check_layer(0, plan.target)


def test_rows_beyond_num_rows_are_left_alone(attention_case, pools):
    case = attention_case((10, 20, 30))
    before = case.slab.clone()
    plan = case.plan(pools[2])
    plan.begin(1)
    plan.run(0)
    assert torch.isfinite(case.output[0]).all()
    assert torch.isnan(case.output[1:]).all()
    changed = case.slab != before
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
    case.check_layer(1, plan.target)
    assert torch.isnan(wide_output[:, [0, 1, 6, 7, 8]]).all()


def test_numpy_arrays_alone(pools):
    rng = np.random.default_rng(0)
    layout = pacpu.KvLayout("float32", 64, 8)
    keys, values = rng.standard_normal((2, 4, 2, 8, 64), dtype=np.float32)
    kv = np.empty((1, 4, 2, layout.piece_bytes), dtype=np.uint8)
    for block, head in np.ndindex(4, 2):
        kv[0, block, head] = layout.pack_tokens(keys[block, head], values[block, head])
    query, output = rng.standard_normal((1, 4, 64), dtype=np.float32), np.empty((1, 4, 64), dtype=np.float32)
    tables, contexts = np.array([[2, 0, 3]], dtype=np.int32), np.array([19], dtype=np.int32)
    workspace_bytes = pacpu.workspace_bytes(max_rows=1, num_q_heads=4, head_dim=64, max_context=24, num_threads=2)
    plan = pacpu.DecodePlan(
        pools[2],
        kv=kv,
        kv_dtype="float32",
        block_size=8,
        query=query,
        output=output,
        block_tables=tables,
        context_lens=contexts,
        scale=0.125,
        workspace=np.zeros(workspace_bytes, dtype=np.uint8),
    )
    assert plan.target == TARGETS[0]
    plan.begin(1)
    plan.run(0)
    truth = pacpu.paged_decode_reference(query, keys, values, block_tables=tables, context_lens=contexts, scale=0.125)
    assert np.linalg.norm(output - truth) <= 1e-5 * np.linalg.norm(truth)


@pytest.mark.parametrize("target", TARGETS)
def test_offsets_beyond_four_gigabytes(target, attention_case, pools):
    """A layer stride of 5 GiB in memory that is mapped but, apart from a few pages, never touched."""
    layer_bytes = 5 * 2**30
    with tempfile.TemporaryFile() as file:
        memory = np.memmap(file, dtype=np.uint8, mode="w+", shape=(2 * layer_bytes,))
    case = attention_case((20,), num_kv_heads=1, with_new_tokens=False, cache_dtype="float32")
    piece_bytes = case.layout.piece_bytes
    kv = as_strided(memory, (2, len(case.slab), 1, piece_bytes), (layer_bytes, piece_bytes, piece_bytes, 1))
    kv[:] = case.slab.transpose(0, 1).numpy()
    plan = case.plan(pools[1], target=target, kv=kv)
    plan.begin(1)
    plan.run(1)
    case.check_layer(1, plan.target)


def test_the_plan_keeps_its_arrays_alive(attention_case, pools):
    case = attention_case((40, 50))
    plan = case.plan(pools[2], query=case.query.clone(), workspace=np.zeros(1 << 20, dtype=np.uint8))
    plan.begin(2)
    plan.run(0)
    case.check_layer(0, plan.target)
