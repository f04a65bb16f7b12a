"""What the profiler measures on real executors, and how its tables are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine import profiler  # noqa: E402
from neobench.neo_engine.batch import Mode, StageTimes  # noqa: E402
from neobench.neo_engine.build import build_executor  # noqa: E402
from neobench.neo_engine.config import EngineConfig  # noqa: E402
from neobench.neo_engine.cost_model import MEASURED_SPREAD, PROFILE_SCHEMA, Profile, ProfileError  # noqa: E402
from neobench.neo_engine.executor.base import Executor  # noqa: E402
from neobench.neo_engine.executor.gpu import GpuExecutor  # noqa: E402
from neobench.neo_engine.executor.inputs import BatchInputs  # noqa: E402
from neobench.neo_engine.model.weights import build_model  # noqa: E402
from neobench.neo_engine.profiler import (  # noqa: E402
    QUICK,
    _Measurement,
    cache_path,
    capped_by_larger,
    load_or_measure,
    measure,
    profile_key,
    spread_lengths,
)


@pytest.mark.parametrize("host_blocks", [0, 40])
def test_the_gpu_executor_is_profiled_beyond_its_budget(host_blocks: int) -> None:
    config = EngineConfig(device_blocks=30, host_threads=1, max_batch_tokens=32, max_batch_rows=16)
    config = replace(config, host_memory_bytes=host_blocks * config.block_bytes(config.host_layout))
    executor = GpuExecutor(config, build_model(config, device=torch.device("cpu")))
    try:
        tables = measure(config, executor, replace(QUICK, repeats=1, max_point_seconds=60.0))
    finally:
        executor.close()
    assert tables.linear.sizes[-1] == 1024, "longer than the budget and than any one request"
    assert tables.linear(64) > 0
    assert tables.device_decode(4, 400) > 0
    assert (tables.host_decode(4, 400) > 0) is (host_blocks > 0)
    assert 1 <= tables.raggedness.device_decode < 10
    assert 1 <= tables.raggedness.host_decode < (10 if host_blocks else 1.001)
    assert 0.1 < tables.raggedness.several_prompts < 10


def test_profile_is_measured_once_kept_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(profiler, "QUICK", replace(QUICK, repeats=1))
    config = EngineConfig(device_blocks=64, device_threads=1, host_threads=1, max_batch_tokens=256)
    executor = build_executor(config)
    try:
        first = load_or_measure(config, executor)
        assert cache_path(first.key).is_file()
        assert load_or_measure(config, executor) == first, "the kept profile is used, not measured again"
        for curve in (first.tables.linear, first.tables.prefill_attention, first.tables.head, first.tables.move):
            assert 0 < curve.times_ns[0] <= curve.times_ns[-1]
        assert first.tables.host_decode(64, 64 * 256) > first.tables.host_decode(1, 16) > 0

        kept = cache_path(first.key)
        kept.write_text(kept.read_text().replace(PROFILE_SCHEMA, "neobench/profile/v1"))
        again = load_or_measure(config, executor)
        assert "schema is 'neobench/profile/v1'" in caplog.text
        assert Profile.load(kept) == again, "tables of an older schema are measured anew"

        other = tmp_path / "other.json"
        Profile({**first.key, "dtype": "bfloat16", "cpu": "another"}, first.tables).save(other)
        with pytest.raises(ProfileError, match="another cpu, dtype"):
            load_or_measure(replace(config, profile_path=other), executor)
        assert profile_key(config, executor) != profile_key(replace(config, dtype="bfloat16"), executor)
        assert first.key["device"] == executor.describe()["device"], "tables of one GPU are not another's"
    finally:
        executor.close()


def test_an_outlier_of_a_small_size_does_not_lift_the_larger_ones() -> None:
    assert capped_by_larger([9.0, 2.0, 3.0, 8.0, 7.0]) == (2.0, 2.0, 3.0, 7.0, 7.0)


@pytest.mark.parametrize(("mean", "count"), [(256, 8), (1024, 65), (100, 2), (1, 4), (3, 7), (50, 1)])
def test_spread_lengths_have_their_mean_and_the_spread_that_costs_refer_to(mean: int, count: int) -> None:
    lengths = spread_lengths(mean, count)
    assert (len(lengths), sum(lengths)) == (count, mean * count)
    assert min(lengths) >= 1
    if count > 1:
        assert max(lengths) == mean + int(MEASURED_SPREAD * mean)


def test_ragged_points_are_compared_with_even_ones_and_several_prompts_with_each_alone() -> None:
    """An executor under which the longest row decides what a decode takes, and prompts are cheaper together."""
    config = EngineConfig(device_blocks=200, max_model_tokens=1000)

    class Longest:
        def execute(self, _mode: Mode, batches: Sequence[BatchInputs], *_: object) -> tuple[list[int], StageTimes]:
            (batch,) = batches
            device, host = (max(rows.contexts, default=0) for rows in (batch.device, batch.host))
            prompts = 1000 + batch.num_prefill_tokens
            return [], StageTimes(
                total_ns=1, device_decode_ns=2 * device, host_decode_ns=host, prefill_attention_ns=prompts
            )

    measurement = _Measurement(config, cast(Executor, Longest()), QUICK, None)
    found = measurement._raggedness()
    assert found.device_decode == found.host_decode == 1 + MEASURED_SPREAD
    # 1,024 and 2,048 tokens in four prompts.
    assert found.several_prompts == pytest.approx((2024 / 5024 + 3048 / 6048) / 2)


def test_a_point_that_is_too_slow_ends_its_series() -> None:
    config = EngineConfig(device_blocks=64, device_threads=1, host_threads=1)
    executor = build_executor(config)
    try:
        hasty = replace(QUICK, max_point_seconds=1e-6)
        tables = measure(config, executor, hasty)
        assert tables.linear.sizes == (QUICK.row_sizes[0],)
        assert tables.linear(2048) >= tables.linear(1)
    finally:
        executor.close()


def test_a_first_run_that_compiles_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was, where it took longer than a point may: all larger sizes were then a slope from it."""
    config = EngineConfig(device_blocks=200, max_model_tokens=1000)
    seen = set()
    now_ns = 0
    monkeypatch.setattr(profiler, "perf_counter_ns", lambda: now_ns)

    class Compiling:
        def execute(self, _mode: Mode, batches: Sequence[BatchInputs], *_: object) -> tuple[list[int], StageTimes]:
            nonlocal now_ns
            (batch,) = batches
            compiles = batch.num_prefill_tokens not in seen
            seen.add(batch.num_prefill_tokens)
            stages_ns = 10**10 if compiles else 1000 * batch.num_prefill_tokens
            now_ns += 2 * stages_ns
            return [], StageTimes(total_ns=2 * stages_ns, linear_ns=stages_ns, prefill_attention_ns=stages_ns)

    linear, _ = _Measurement(config, cast(Executor, Compiling()), QUICK, None)._prompts()
    assert linear.sizes == QUICK.row_sizes
    assert linear(1024) == pytest.approx(1000 * 1024 / config.shape.num_layers)
