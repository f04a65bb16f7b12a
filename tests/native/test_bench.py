"""The pieces of the CPU benchmark: checksums, what is read and attended to, and when a machine counts as busy."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from neobench import pacpu
from neobench.pacpu import _native, bench, bench_kernels, machine
from neobench.pacpu.bench import HEADS, PEER, Bench, Point
from neobench.pacpu.bench_kernels import (
    IN_CACHE,
    READ_RUNS,
    ReadSample,
    ReadStream,
    Rotation,
    attention_kernel,
    fill,
    layout_of,
    sdpa_kernel,
)
from neobench.pacpu.machine import CpuTimes, busy_reason, cpu_times, l3_bytes, on_cpus

CHUNK = _native.READ_CHUNK_BYTES
SECOND = 10**9


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("first", "count"), [(0, 5), (3, 1), (4, 12)])
def test_a_read_touches_every_byte_of_its_chunks(pools, num_threads, first, count):
    words = np.random.default_rng(0).integers(0, 2**64, 5 * CHUNK // 8, dtype=np.uint64)
    elapsed_ns, checksum = _native.read_stream(
        pools[num_threads]._pool, data=words.ctypes.data, num_chunks=5, first_chunk=first, chunks_to_read=count
    )
    chunks = words.reshape(5, -1)
    assert checksum == sum(int(chunks[(first + step) % 5].sum()) for step in range(count)) % 2**64
    assert 0 < elapsed_ns < 10 * SECOND


def test_a_read_sample_is_about_as_long_as_asked_for(pools):
    stream = ReadStream(np.ones(64 * CHUNK, dtype=np.uint8), pools[1])
    stream.sample(20_000_000)
    sample = stream.sample(20_000_000)
    assert 5_000_000 < sample.wall_ns < 500_000_000
    assert sample.own_cpu_ns > 0
    assert sample.gbps > 0.05


def test_a_rotation_visits_the_layers_in_turn():
    visited: list[int] = []
    rotation = Rotation(bench.Kernel("fake", visited.append, num_layers=3))
    rotation.call_ns(4)
    rotation.call_ns(3)
    assert visited == [0, 1, 2, 0, 1, 2, 0]


def test_a_slow_call_is_calibrated_with_the_first_one():
    calls: list[int] = []
    rotation = Rotation(bench.Kernel("slow", lambda layer: (calls.append(layer), time.sleep(1.01)), num_layers=1))
    count, call_ns = rotation.calibrate(1_000_000)
    assert (count, len(calls)) == (1, 1)
    assert call_ns > SECOND


@pytest.mark.parametrize("dtype", bench.DTYPES)
@pytest.mark.parametrize("shape", HEADS)
def test_every_layer_is_attended_to_without_nan(pools, shape, dtype):
    point = Point(shape, dtype, threads=2, batch=3, context=40)
    memory = np.full(2 * point.layer_bytes + 100, 0xFF, dtype=np.uint8)
    fill(memory, dtype)
    kernel = attention_kernel(point, memory, pools[2])
    assert kernel.num_layers == 2
    assert kernel.name in pacpu.targets()
    before = memory.copy()
    kernel.call(1)
    layers = [(memory != before)[: 2 * point.layer_bytes].reshape(9, 2, -1)[:, layer].any() for layer in range(2)]
    assert layers == [False, True]  # the new tokens
    keys, values = layout_of(dtype).unpack_tokens(
        memory[: 2 * point.layer_bytes].reshape(-1, layout_of(dtype).piece_bytes)
    )
    assert np.isfinite(keys).all()
    assert 0.5 < values.std() < 1.5


def test_attended_bytes_are_those_of_k_and_v_with_the_scales_of_int8():
    tokens = 3 * 40 * 8
    assert Point("gqa4", "bfloat16", 1, 3, 40).attended_bytes == tokens * 2 * 128 * 2
    assert Point("gqa8", "int8", 1, 3, 40).attended_bytes == tokens * 2 * (128 + 4)
    assert Point("gqa4", "bfloat16", 1, 3, 40).layer_bytes == 3 * 48 * 8 * 2 * 128 * 2


def test_reading_the_runs_reads_every_byte_that_attention_would(pools):
    layout = pacpu.KvLayout(dtype="float16", head_dim=64, block_size=32)
    kv = np.random.default_rng(0).integers(0, 256, (1, 5, 1, layout.piece_bytes), dtype=np.uint8)
    query, lens = np.ones((2, 1, 64), dtype=np.float32), np.array([32, 17], dtype=np.int32)
    tables = np.array([[3], [1]], dtype=np.int32)
    size = pacpu.workspace_bytes(max_rows=2, num_q_heads=1, head_dim=64, max_context=32, num_threads=1)
    output = np.empty_like(query)
    plan = pacpu.DecodePlan(
        pools[1],
        kv=kv,
        kv_dtype="float16",
        block_size=32,
        query=query,
        new_key=None,
        new_value=None,
        output=output,
        block_tables=tables,
        context_lens=lens,
        scale=1.0,
        workspace=np.empty(size, dtype=np.uint8),
        target=READ_RUNS,
    )
    plan.begin(2)
    plan.run(0)
    for row, block in enumerate(tables[:, 0]):
        assert output[row, 0, 0] == int(kv[0, block, 0].view(np.uint64).sum()) % 4096


def test_the_limits_of_a_point_are_measured_beside_it(pools):
    memory = np.empty(8 * 2**20, dtype=np.uint8)
    fill(memory, "int8")
    reading = attention_kernel(Point("gqa4", "int8", 1, 2, 100, READ_RUNS), memory, pools[1])
    cached = attention_kernel(Point("gqa4", "int8", 1, 2, 100, IN_CACHE), memory, pools[1])
    assert (reading.name, cached.name) == (READ_RUNS, f"{pacpu.targets()[0]} {IN_CACHE}")
    assert (reading.num_layers > 1, cached.num_layers) == (True, 1)
    reading.call(1)
    before = memory.copy()
    cached.call(0)
    # Of all blocks only two got new tokens.
    piece_bytes = layout_of("int8").piece_bytes
    layers = memory.nbytes // (14 * 8 * piece_bytes)
    size = 14 * layers * 8 * piece_bytes
    changed = (memory != before)[:size].reshape(14, -1).any(axis=1)
    assert 1 <= changed.sum() <= 2


def test_the_peer_attends_to_as_many_bytes_on_its_cpus_and_leaves_no_trace():
    import torch

    point = Point("gqa4", "bfloat16", threads=1, batch=2, context=64, kernel=PEER)
    memory = np.zeros(3 * point.attended_bytes, dtype=np.uint8)
    fill(memory, "bfloat16")
    affinity, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with sdpa_kernel(point, memory, [min(affinity)]) as kernel:
        assert os.sched_getaffinity(0) == {min(affinity)}
        assert torch.get_num_threads() == 1
        assert kernel.num_layers == 3
        kernel.call(2)
    assert os.sched_getaffinity(0) == affinity
    assert torch.get_num_threads() == threads


def test_affinity_comes_back_after_an_error():
    affinity = os.sched_getaffinity(0)
    with pytest.raises(KeyError), on_cpus([max(affinity)]):
        raise KeyError
    assert os.sched_getaffinity(0) == affinity


def test_memory_is_the_largest_of_floor_caches_and_layer_within_a_third_of_what_is_free(monkeypatch):
    small, large = Point("gqa4", "bfloat16", 1, 1, 128), Point("mha", "float16", 1, 64, 4096)
    monkeypatch.setattr(bench, "available_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(bench, "l3_bytes", lambda _cpus: 32 * 2**20)
    assert bench.memory_bytes_for([small]) == 2**30
    assert bench.memory_bytes_for([small, large]) == large.layer_bytes == 4 * 2**30
    monkeypatch.setattr(bench, "l3_bytes", lambda _cpus: 768 * 2**20)
    assert bench.memory_bytes_for([small]) == 3 * 2**30
    monkeypatch.setattr(bench, "available_bytes", lambda: 3 * 2**30)
    assert bench.memory_bytes_for([small, large]) == 2**30


def test_a_measurement_has_the_row_that_is_promised():
    point = Point("gqa4", "int8", threads=1, batch=2, context=100)
    with Bench(8 * 2**20, max_threads=1) as small:
        measurement = small.measure(point)
        row = measurement.row()
        small.measure_read(1)
        roof, _ = small.read_gbps(1)
    assert list(row)[:10] == [
        *("kernel", "shape", "dtype", "threads", "batch", "context"),
        *("gbps", "read_gbps", "percent_of_read", "tokens_per_s"),
    ]
    assert (row["shape"], row["threads"], row["batch"], row["context"]) == ("gqa4", 1, 2, 100)
    assert row["kernel"] in pacpu.targets()
    assert 0 < row["gbps_p25"] <= row["gbps"] <= row["gbps_p75"]
    assert row["tokens_per_s"] == pytest.approx(1e9 * 2 * row["gbps"] / point.attended_bytes, rel=1e-3)
    assert roof.p25 <= roof.median <= roof.p75
    assert row["busy"] is None or row["busy"].strip()


def test_the_roof_is_of_quiet_reads_where_there_are_any(monkeypatch):
    reasons = iter([(0.5, "busy"), (0.0, None)])
    monkeypatch.setattr(bench, "busy_reason", lambda *_args, **_kwargs: next(reasons))
    monkeypatch.setattr(bench, "SAMPLE_NS", 2_000_000)
    rates = iter([1.0] * (bench.SAMPLES + 1) + [9.0] * (bench.SAMPLES + 1))
    monkeypatch.setattr(ReadStream, "sample", lambda _self, _ns: ReadSample(next(rates), 1, 1))
    with Bench(2 * 2**20, max_threads=1) as small:
        assert small.measure_read(1).median == 1
        assert small.read_gbps(1)[1]
        assert small.measure_read(1).median == 9
        assert not small.read_gbps(1)[1]


def test_a_very_slow_kernel_gets_one_sample_and_no_repetition(monkeypatch):
    calls = []

    def slow(layer):
        calls.append(layer)
        time.sleep(0.2)

    kernel = bench.Kernel("slow", slow, num_layers=1)
    monkeypatch.setattr(bench, "attention_kernel", lambda *_args: kernel)
    monkeypatch.setattr(bench, "busy_reason", lambda *_args, **_kwargs: (0.5, "busy"))
    monkeypatch.setattr(bench, "SLOW_NS", 100_000_000)
    monkeypatch.setattr(bench_kernels, "SLOW_NS", 100_000_000)
    monkeypatch.setattr(bench, "MAX_POINT_S", 0.25)
    with Bench(4 * 2**20, max_threads=1) as small:
        row = small.measure(Point("gqa4", "bfloat16", threads=1, batch=1, context=64)).row()
    assert len(calls) == row["samples"] == 1


def test_a_layer_larger_than_the_memory_is_refused():
    with Bench(2 * 2**20, max_threads=1) as small, pytest.raises(ValueError, match="kv_bytes: expected"):
        small.measure(Point("mha", "float16", threads=1, batch=64, context=4096))


def test_a_busy_point_is_repeated_and_says_so(monkeypatch):
    asked = []

    def always_busy(*_args, **_kwargs):
        asked.append(1)
        return 0.5, "other processes used 50% of the CPU under test"

    monkeypatch.setattr(bench, "busy_reason", always_busy)
    monkeypatch.setattr(bench, "SAMPLE_NS", 2_000_000)
    with Bench(4 * 2**20, max_threads=1) as small:
        row = small.measure(Point("gqa4", "bfloat16", threads=1, batch=1, context=64)).row()
    assert len(asked) == bench.MAX_ATTEMPTS
    assert row["busy"].startswith("other processes")


def times(wall_s: float, own_s: float = 0, busy_s: float = 0, stolen_s: float = 0) -> CpuTimes:
    return CpuTimes(*(round(value * SECOND) for value in (wall_s, own_s, busy_s, stolen_s)))


QUIET = [(SECOND, 2 * SECOND)]


@pytest.mark.parametrize(
    ("after", "working", "sentence"),
    [
        (times(1, 2, 2), QUIET, None),
        (times(1, 1.9, 2, 0.1), QUIET, None),
        (times(1, 1.2, 2), QUIET, "other processes used 40% of the 2 CPUs under test"),
        (times(1, 1.6, 1.6, 0.4), QUIET, "the hypervisor took 20% of the 2 CPUs under test"),
        (times(1, 2, 2), [(SECOND, SECOND), (SECOND, SECOND)], "the threads got only 50% of the CPU time"),
        (times(1, 2, 0), QUIET, None),  # no /proc/stat
        (times(1, 2.2, 2), [(SECOND, 3 * SECOND)], None),  # the caller's own thread, on another CPU
    ],
)
def test_a_busy_machine_is_told_from_a_quiet_one(after, working, sentence):
    share, reason = busy_reason(times(0), after, num_cpus=2, working=working)
    assert (reason is None) == (sentence is None)
    assert reason is None or reason.startswith(sentence)
    assert (share > 0.1) == (reason is not None)


def test_one_cpu_is_not_called_several():
    _, reason = busy_reason(times(0), times(1, 0.5, 1), num_cpus=1, working=[])
    assert reason == "other processes used 50% of the CPU under test"


def test_counters_read_only_the_cpus_under_test(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 1000 4 5 7 0 0\ncpu1 10 0 0 0 0 0 0 1 0 0\nintr 5\n")
    monkeypatch.setattr(machine, "_STAT", stat)
    tick_ns = SECOND // os.sysconf("SC_CLK_TCK")
    assert (cpu_times([0]).busy_ns, cpu_times([0]).stolen_ns) == (15 * tick_ns, 7 * tick_ns)
    assert (cpu_times([0, 1]).busy_ns, cpu_times([0, 1]).stolen_ns) == (25 * tick_ns, 8 * tick_ns)
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert cpu_times([0]).busy_ns == 0
    assert cpu_times([0]).wall_ns > 0


def test_each_l3_cache_counts_once(monkeypatch, tmp_path):
    for cpu, (size, shared) in enumerate([("32768K", "0-1"), ("32768K", "0-1"), ("96M", "2")]):
        folder = tmp_path / f"cpu{cpu}/cache/index3"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size)
        (folder / "shared_cpu_list").write_text(shared)
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    assert l3_bytes([0, 1]) == 32 * 2**20
    assert l3_bytes([0, 1, 2]) == 128 * 2**20
    assert l3_bytes([7]) == 64 * 2**20
