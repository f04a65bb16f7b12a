"""Decode attention over paged KV against float64: the Triton kernels, their twin, and the door that chooses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.kernels import reference
from neobench.neo_engine.kernels.decode_attention import DecodeAttention, Spans, check_device, num_spans, step_tokens
from neobench.neo_engine.kernels.kv_pieces import pack_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout

CONTEXTS = (17, 0, 1, 300, 15, 16)
# Relative L2 against float64 on the cache as stored: weights of the values and the output are rounded to the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}


@dataclass
class Case:
    """Rows of random K and V in scrambled blocks of layer 1 of 3, and NaN wherever no token is."""

    layout: KvLayout
    query: torch.Tensor
    kv: torch.Tensor
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    truth: torch.Tensor
    layer: int = 1

    @property
    def scale(self) -> float:
        return self.layout.head_dim**-0.5

    def arguments(self) -> dict:
        names = ("layer", "block_tables", "context_lens")
        return {name: getattr(self, name) for name in names}


def make_case(
    device, dtype, *, head_dim=64, heads=(8, 2), block_size=16, contexts=CONTEXTS, num_layers=3, seed=0
) -> Case:
    torch.manual_seed(seed)
    num_query_heads, num_kv_heads = heads
    layout = KvLayout(str(dtype).removeprefix("torch."), head_dim, block_size)
    blocks_of = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(blocks_of) + 3).to(torch.int32)
    tables = torch.full((len(contexts), max(blocks_of) + 1), 2**30, dtype=torch.int32)
    kv = torch.full((len(order), num_layers, num_kv_heads, layout.piece_bytes), 0xFF, dtype=torch.uint8)
    query = torch.randn(len(contexts), num_query_heads, head_dim).to(dtype)
    truth = torch.zeros(query.shape, dtype=torch.float64)
    used = 0
    for row, (context, num_blocks) in enumerate(zip(contexts, blocks_of, strict=True)):
        if not context:
            continue
        blocks = order[used : used + num_blocks]
        used += num_blocks
        tables[row, :num_blocks] = blocks
        tokens = torch.full((2, num_blocks * block_size, num_kv_heads, head_dim), float("nan"), dtype=dtype)
        tokens[:, :context] = torch.randn(2, context, num_kv_heads, head_dim).to(dtype)
        in_blocks = tokens.unflatten(1, (num_blocks, block_size)).transpose(2, 3)
        kv[blocks.long(), 1] = pack_tokens(layout, *in_blocks)
        key, value = tokens[:, :context].double().repeat_interleave(num_query_heads // num_kv_heads, 2)
        scores = torch.einsum("hd,thd->ht", query[row].double(), key) * head_dim**-0.5
        truth[row] = torch.einsum("ht,thd->hd", scores.softmax(-1), value)
    on_device = (part.to(device) for part in (query, kv, tables, torch.tensor(contexts, dtype=torch.int32), truth))
    return Case(layout, *on_device)


def assert_close(case: Case, out: torch.Tensor) -> None:
    for row, context in enumerate(case.context_lens.tolist()):
        error = (out[row].double() - case.truth[row]).norm() / case.truth[row].norm().clamp(min=1e-30)
        assert error <= TOLERANCE[out.dtype], f"context {context}: relative error {error:.2e}"


def attend(triton_attention, case: Case, count: int, *, query: torch.Tensor | None = None) -> torch.Tensor:
    """The kernels' result with `count` spans, partial results and output NaN before."""
    query = case.query if query is None else query
    out = torch.full_like(case.query, float("nan"))
    places = case.query.shape[0] * case.query.shape[1] * count
    room = [torch.full((size,), float("nan"), device=out.device) for size in (places * out.shape[2], places, places)]
    triton_attention.decode_attention(
        query,
        case.kv,
        layout=case.layout,
        **case.arguments(),
        scale=case.scale,
        out=out,
        spans=Spans(count, step_tokens(case.layout), *room),
    )
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2), (8, 1)])
def test_the_twin_is_right(dtype, heads):
    case = make_case("cpu", dtype, heads=heads, block_size=32)
    out = torch.full_like(case.query, float("nan"))
    reference.decode_attention(case.query, case.kv, layout=case.layout, **case.arguments(), scale=case.scale, out=out)
    assert_close(case, out)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "heads"), [(64, (2, 2)), (64, (8, 2)), (128, (8, 1)), (80, (4, 1))])
def test_kernels_are_right_in_every_shape(triton_attention, device, dtype, head_dim, heads, count):
    case = make_case(device, dtype, head_dim=head_dim, heads=heads)
    assert_close(case, attend(triton_attention, case, count))


@pytest.mark.parametrize("block_size", [16, 32, 48, 256])
def test_blocks_of_several_tiles(triton_attention, device, block_size):
    case = make_case(device, torch.bfloat16, block_size=block_size, contexts=(300, 16, 33))
    assert_close(case, attend(triton_attention, case, 2))


def test_more_spans_than_steps_and_more_than_are_merged_at_a_time(triton_attention, device):
    case = make_case(device, torch.float16, heads=(4, 2), contexts=(2500, 1, 0, 129))
    assert_close(case, attend(triton_attention, case, 21))


def test_more_query_heads_than_a_matrix_tile_has_rows(triton_attention, device):
    case = make_case(device, torch.float16, heads=(20, 1), contexts=(33,))
    assert_close(case, attend(triton_attention, case, 1))


def test_rows_may_lie_within_a_wider_tensor(triton_attention, device):
    case = make_case(device, torch.bfloat16)
    wide = torch.full((len(CONTEXTS), 12, 64), float("nan"), dtype=torch.bfloat16, device=device)
    wide[:, :8] = case.query
    assert_close(case, attend(triton_attention, case, 2, query=wide[:, :8]))


def test_the_door_takes_the_twin_on_a_cpu():
    case = make_case("cpu", torch.float16)
    attention = DecodeAttention(case.layout, num_query_heads=8, num_kv_heads=2, device=torch.device("cpu"))
    out = torch.full_like(case.query, float("nan"))
    attention(case.query, case.kv, **case.arguments(), max_context=300, out=out)
    assert_close(case, out)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": torch.zeros(6, 4, 64, dtype=torch.float16)}, "query"),
        ({"out": torch.zeros(6, 8, 64)}, "out"),
        ({"kv": torch.zeros(4, 3, 1, 4096, dtype=torch.uint8)}, "kv"),
        ({"context_lens": torch.zeros(6, dtype=torch.int64)}, "context_lens"),
    ],
)
def test_the_door_refuses_other_shapes_and_dtypes(change, named):
    case = make_case("cpu", torch.float16)
    attention = DecodeAttention(case.layout, num_query_heads=8, num_kv_heads=2, device=torch.device("cpu"))
    arguments = {
        "query": case.query,
        "kv": case.kv,
        **case.arguments(),
        "max_context": 300,
        "out": case.query.clone(),
    }
    with pytest.raises(ValueError, match=named):
        attention(**{**arguments, **change})


def test_layouts_and_devices_that_cannot_work_are_refused():
    for layout, named in [(KvLayout("float16", 64, 24), "block_size"), (KvLayout("int8", 64, 16), "int8")]:
        with pytest.raises(ConfigError, match=named):
            DecodeAttention(layout, num_query_heads=2, num_kv_heads=2, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="multiple of 3"):
        DecodeAttention(KvLayout("float16", 64, 16), num_query_heads=8, num_kv_heads=3, device=torch.device("cpu"))
    check_device((7, 5), torch.float16)
    check_device((8, 0), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"bfloat16 needs .* 8\.0"):
        check_device((7, 5), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"7\.5 or later, got 7\.0"):
        check_device((7, 0), torch.float16)


@pytest.mark.parametrize("num_pieces", [1, 8, 64, 100, 527, 528, 529, 256 * 64])
@pytest.mark.parametrize("max_context", [1, 64, 65, 2000, 131072])
def test_spans_fill_the_device_and_fit_the_room_for_their_results(num_pieces, max_context):
    count = num_spans(num_pieces, max_context, num_programs=528, step_tokens=64)
    assert 1 <= count <= max(1, -(-max_context // 64))
    assert count == 1 or num_pieces * count < 2 * 528
    if max_context == 131072 and num_pieces >= 8:
        assert num_pieces * count >= 528


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(32, 32), (32, 8), (64, 8)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_large_batches_on_a_gpu(gpu, dtype, heads, head_dim):
    contexts = (*CONTEXTS, *torch.randint(1, 3000, (58,), generator=torch.Generator().manual_seed(1)).tolist())
    for rows in (1, 7, 64):
        case = make_case(gpu, dtype, heads=heads, head_dim=head_dim, contexts=contexts[-rows:], num_layers=2)
        attention = DecodeAttention(case.layout, num_query_heads=heads[0], num_kv_heads=heads[1], device=gpu)
        out = torch.full_like(case.query, float("nan"))
        attention(case.query, case.kv, **case.arguments(), max_context=4096, out=out)
        assert_close(case, out)


@pytest.mark.gpu
def test_slabs_beyond_2_to_the_31_bytes_on_a_gpu(gpu):
    case = make_case(gpu, torch.bfloat16, head_dim=128, heads=(8, 8))
    block_bytes = case.kv[0].numel()
    far = 2**33 // block_bytes
    slab = torch.empty(far + len(case.kv), *case.kv.shape[1:], dtype=torch.uint8, device=gpu)
    slab[far:] = case.kv
    case.kv = slab
    case.block_tables = torch.where(case.block_tables < 2**30, case.block_tables + far, case.block_tables)
    attention = DecodeAttention(case.layout, num_query_heads=8, num_kv_heads=8, device=gpu)
    out = torch.full_like(case.query, float("nan"))
    attention(case.query, case.kv, **case.arguments(), max_context=512, out=out)
    assert_close(case, out)


@pytest.mark.gpu
def test_a_captured_graph_follows_lengths_and_tables_on_a_gpu(gpu):
    cases = [make_case(gpu, torch.bfloat16, contexts=contexts, seed=len(contexts)) for contexts in ((0,) * 6, CONTEXTS)]
    attention = DecodeAttention(cases[0].layout, num_query_heads=8, num_kv_heads=2, device=gpu)
    slab, tables = torch.zeros_like(cases[1].kv), torch.zeros_like(cases[1].block_tables)
    query, contexts = cases[0].query.clone(), cases[0].context_lens.clone()
    out = torch.empty_like(query)

    def launch() -> None:
        attention(query, slab, layer=1, block_tables=tables, context_lens=contexts, max_context=512, out=out)

    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for held, new in zip(
        (query, slab, tables, contexts),
        (cases[1].query, cases[1].kv, cases[1].block_tables, cases[1].context_lens),
        strict=True,
    ):
        held.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(cases[1], out)
