"""Every wrong argument is an error that names it, what was expected and what was given; none is a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neobench import pacpu


class OnAnAccelerator:
    """A tensor's duck type on a device whose memory native code cannot read."""

    shape, dtype, device = (3, 4, 64), torch.float32, torch.device("cuda", 0)

    def data_ptr(self):
        raise AssertionError("the pointer of another device's memory must not be used")

    def stride(self):
        return (256, 64, 1)

    def element_size(self):
        return 4


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def unaligned(shape):
    return np.zeros(int(np.prod(shape)) * 4 + 1, dtype=np.uint8)[1:].view(np.float32).reshape(shape)


# Of a case with 3 rows, 4 query heads, 2 KV heads, head_dim 64, blocks of 16: argument, value, error, words in it.
WRONG_ARGUMENTS = [
    ("query", [[1.0]], TypeError, "numpy array or a torch tensor, got list"),
    ("query", torch.zeros(3, 4, 64, dtype=torch.float64), TypeError, "float32 or float16 or bfloat16, got float64"),
    ("query", np.zeros((3, 4, 64), dtype=">f4"), TypeError, "foreign byte order"),
    ("query", torch.zeros(3, 4, 32), ValueError, "head_dim of 64, 80, 96, 128, 256, got 32"),
    ("query", torch.zeros(3, 4), ValueError, r"got \[3, 4\]"),
    ("query", torch.zeros(3, 64, 4).transpose(1, 2), ValueError, "contiguous"),
    ("query", torch.zeros(3, 4, 64, device="meta"), ValueError, "got device meta"),
    ("query", OnAnAccelerator(), ValueError, "got device cuda:0"),
    ("query", unaligned((3, 4, 64)), ValueError, "aligned to 4 bytes"),
    ("new_key", torch.zeros(3, 4, 64), ValueError, "num_kv_heads=2"),
    ("new_value", torch.zeros(2, 2, 64), ValueError, "max_rows=3"),
    ("new_value", torch.zeros(3, 2, 64, dtype=torch.float16), TypeError, "float32, got float16"),
    ("new_value", None, ValueError, "got None"),
    ("new_key", None, ValueError, "got None"),
    ("output", torch.zeros(3, 2, 64), ValueError, "num_q_heads=4"),
    ("output", torch.zeros(1, 4, 64).expand(3, 4, 64), ValueError, "rows 1024 bytes apart"),
    ("output", read_only(np.zeros((3, 4, 64), dtype=np.float32)), ValueError, "writable"),
    ("output", torch.zeros(3, 4, 64, dtype=torch.int32), TypeError, "got int32"),
    ("query", torch.zeros(3, 4, 72), ValueError, "head_dim of 64, 80, 96, 128, 256, got 72"),
    ("kv_dtype", "float8", TypeError, "float16 or bfloat16 or int8, got float8"),
    ("block_size", 0, ValueError, "1 token or more, got 0"),
    ("kv", torch.zeros(2, 5, 2, 8192, dtype=torch.uint8), ValueError, r"piece_bytes=4096\], got"),
    ("kv", torch.zeros(2, 5, 4096, dtype=torch.uint8), ValueError, r"got \[2, 5, 4096\]"),
    ("kv", torch.zeros(2, 5, 2, 4096), TypeError, "uint8, got float32"),
    ("kv", torch.zeros(2, 5, 0, 4096, dtype=torch.uint8), ValueError, "KV head or more"),
    ("kv", torch.zeros(2, 5, 2, 8192, dtype=torch.uint8)[..., ::2], ValueError, "last 1 axes contiguous"),
    ("kv", torch.zeros(2, 5, 2, 4098, dtype=torch.uint8)[..., 1:4097], ValueError, "aligned to 2 bytes"),
    ("block_tables", np.zeros((3, 3), dtype=np.int64), TypeError, "int32, got int64"),
    ("block_tables", np.zeros((2, 3), dtype=np.int32), ValueError, "max_rows=3"),
    ("context_lens", np.zeros((3, 1), dtype=np.int32), ValueError, r"\[max_rows=3\]"),
    ("context_lens", torch.zeros(3), TypeError, "int32, got float32"),
    ("workspace", np.zeros(64, dtype=np.uint8), ValueError, "for 2 threads, got 64"),
    ("workspace", np.zeros(8, dtype=np.float32), TypeError, "uint8, got float32"),
    ("workspace", np.zeros(1 << 20, dtype=np.uint8)[::2], ValueError, "contiguous"),
    ("target", "sse9", ValueError, "expected one of auto.*cpp, got sse9"),
    ("scale", float("nan"), ValueError, "finite"),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(name, value, error, words, attention_case, pools):
    case = attention_case((5, 17, 33))
    with pytest.raises(error, match=rf"(?s)^{name}:.*{words}"):
        case.plan(pools[2], **{name: value})


def test_heads_must_divide(attention_case, pools):
    case = attention_case((5,), num_kv_heads=3, heads_per_kv_head=2)
    with pytest.raises(ValueError, match="num_q_heads: expected a multiple of num_kv_heads=3, got 5"):
        case.plan(pools[1], query=torch.zeros(1, 5, 64), output=torch.zeros(1, 5, 64))


@pytest.mark.parametrize("block", [-1, -(2**31), 2**31 - 1, 6])
@pytest.mark.parametrize("index", [0, 2])
def test_a_hostile_block_table_is_an_error_of_begin(block, index, attention_case, pools):
    case = attention_case((17, 33))
    assert len(case.slab) == 6
    plan = case.plan(pools[2])
    good = case.block_tables[1, index]
    case.block_tables[1, index] = block
    with pytest.raises(ValueError, match=rf"block_tables\[1, {index}\]: expected a block in 0\.\.5, got {block} "):
        plan.begin(2)
    with pytest.raises(RuntimeError, match="begin"):
        plan.start(0)
    case.block_tables[1, index] = good
    plan.begin(2)
    plan.run(0)
    case.check_layer(0)


def test_only_blocks_that_a_row_needs_are_checked(attention_case, pools):
    case = attention_case((16, 33))
    assert case.block_tables[0, 1] == -1
    case.check(pools[1])


@pytest.mark.parametrize("length", [-1, -(2**31), 49, 2**31 - 1])
def test_a_context_length_out_of_range_is_an_error_of_begin(length, attention_case, pools):
    case = attention_case((17, 33))
    case.contexts[1] = length
    plan = case.plan(pools[2])
    with pytest.raises(ValueError, match=rf"context_lens\[1\]: expected 0\.\.48 .*got {length}$"):
        plan.begin(2)


def test_a_table_that_turns_hostile_after_begin_is_an_error_of_wait(attention_case, pools):
    case = attention_case((17, 600))
    plan = case.plan(pools[2])
    plan.begin(2)
    case.block_tables[1, 20] = 1 << 30
    plan.start(0)
    with pytest.raises(RuntimeError, match="block_tables changed after begin"):
        plan.wait()
    with pytest.raises(RuntimeError, match="begin"):
        plan.run(0)


@pytest.mark.parametrize("num_rows", [-1, 3])
def test_num_rows_out_of_range(num_rows, attention_case, pools):
    with pytest.raises(ValueError, match=rf"num_rows: expected 0\.\.2, got {num_rows}"):
        attention_case((5, 6)).plan(pools[1]).begin(num_rows)


@pytest.mark.parametrize("layer", [-1, 2, 2**40])
def test_layer_out_of_range(layer, attention_case, pools):
    plan = attention_case((5,)).plan(pools[1])
    plan.begin(1)
    with pytest.raises(ValueError, match=rf"layer: expected 0\.\.1, got {layer}"):
        plan.run(layer)


def test_calls_out_of_order(attention_case, pools):
    plan = attention_case((5,)).plan(pools[1])
    with pytest.raises(RuntimeError, match="before begin"):
        plan.run(0)
    with pytest.raises(RuntimeError, match=r"wait\(\) without start"):
        plan.wait()
    plan.begin(1)
    plan.start(0)
    with pytest.raises(RuntimeError, match="wait"):
        plan.start(1)
    with pytest.raises(RuntimeError, match="wait"):
        plan.begin(1)
    plan.wait()


def test_a_pool_without_blocks_serves_empty_rows(attention_case, pools):
    case = attention_case((0, 0))
    plan = case.plan(pools[1], kv=case.slab[:0].transpose(0, 1))
    plan.begin(2)
    plan.run(0)
    assert not case.output.any()


@pytest.mark.parametrize("name", ["max_rows", "num_q_heads", "head_dim", "max_context", "num_threads"])
def test_workspace_sizes_are_positive(name):
    sizes = dict.fromkeys(("max_rows", "num_q_heads", "head_dim", "max_context", "num_threads"), 4)
    with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
        pacpu.workspace_bytes(**{**sizes, name: 0})
