from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from neobench.neo_engine.batch import StageTimes
from neobench.neo_engine.config import NAMED_SHAPES, ConfigError, EngineConfig
from neobench.neo_engine.cost_model import CostModel, Profile, ProfileError
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.executor.modelled import ModelledExecutor, Noise
from neobench.neo_engine.modelled_machine import machine_of, shard_of, with_all_reduce
from neobench.neo_engine.request import SamplingParams

SHAPE = NAMED_SHAPES["llama-2-7b"]


def modelled(costs: CostModel, policy: str, noise: Noise | None = None, **settings: Any) -> list[StageTimes]:
    """Stage times of each step of six requests, from an engine over the modelled executor."""
    settings = {"model": "llama-2-7b", "dtype": "float16", "device_blocks": 54, "host_memory_bytes": 2**32, **settings}
    config = EngineConfig(policy=policy, **settings)
    executor = ModelledExecutor(costs, config.block_size, noise or Noise())
    times = []
    execute = executor.execute

    def noted(*arguments: Any) -> tuple[list[int], StageTimes]:
        tokens, measured = execute(*arguments)
        times.append(measured)
        return tokens, measured

    executor.execute = noted  # type: ignore[method-assign, assignment]
    engine = NeoEngine(config, executor, costs)
    for length in (400, 300, 200, 100, 350, 250):
        engine.add_request([0] * length, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert engine.stats()["finished_requests"] == 6
    return times


def test_a_prefill_and_a_decode_take_what_the_tables_say(costs: CostModel) -> None:
    config = EngineConfig(model="llama-2-7b", policy="gpu_only", dtype="float16")
    executor = ModelledExecutor(costs, config.block_size)
    engine = NeoEngine(config, executor, costs)
    engine.add_request([0] * 512, SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
    tables = costs.tables
    engine.step()
    layer = tables.linear(512) + tables.prefill_attention(512)
    assert executor.elapsed_ns == round(32 * layer + tables.head(1) + tables.step_fixed_ns)
    engine.step()
    layer = tables.linear(1) + tables.device_decode(1, 513)
    assert executor.elapsed_ns == round(32 * layer + tables.head(1) + tables.step_fixed_ns)


@pytest.mark.parametrize("policy", ["gpu_only", "chunked_prefill", "full_offload", "asymmetric_pipeline"])
def test_noise_alone_varies_and_follows_its_seed(costs: CostModel, policy: str) -> None:
    quiet = modelled(costs, policy)
    assert quiet == modelled(costs, policy)
    noisy = modelled(costs, policy, Noise(0.1, seed=1))
    assert noisy == modelled(costs, policy, Noise(0.1, seed=1)) != quiet
    assert noisy != modelled(costs, policy, Noise(0.1, seed=2))


def test_kv_that_leaves_for_the_host_lengthens_steps_with_host_attention(costs: CostModel) -> None:
    times = modelled(costs, "full_offload", max_batch_tokens=600)
    # The second iteration has prompts bound for the host beside decodes on it.
    both = next(one for one in times if one.prefill_attention_ns and one.host_decode_ns)
    stages = both.linear_ns + both.prefill_attention_ns + both.device_decode_ns + both.host_wait_ns
    assert both.total_ns >= stages
    assert all(one.host_wait_ns >= 0 for one in times)


def test_noise_must_be_a_spread() -> None:
    with pytest.raises(ValueError, match="finite"):
        Noise(math.inf)


def test_an_all_reduce_is_added_twice_a_layer(costs: CostModel) -> None:
    tables = with_all_reduce(costs.tables, SHAPE, "float16", num_gpus=2, link_bytes_per_s=4.096e9, latency_ns=10_000)
    # 4096 values of 2 bytes, of which a ring of two sends each once: 2 us a row.
    assert tables.linear(256) - costs.tables.linear(256) == pytest.approx(2 * (10_000 + 256 * 2_000))
    assert with_all_reduce(costs.tables, SHAPE, "float16", num_gpus=1, link_bytes_per_s=1, latency_ns=1) is costs.tables


def test_a_shard_has_its_share_of_heads() -> None:
    shard = shard_of(SHAPE, 2)
    assert (shard.num_query_heads, shard.num_kv_heads, shard.intermediate_size) == (16, 16, 5504)
    with pytest.raises(ConfigError, match="evenly"):
        shard_of(SHAPE, 3)


def test_a_profile_is_a_machine_of_its_own_model_alone(costs: CostModel, tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    Profile({"dtype": "float16", "shape": {"num_layers": 32}}, costs.tables).save(path)
    config = EngineConfig(model="llama-2-7b", dtype="float16")
    assert machine_of(str(path), config).tables == costs.tables
    with pytest.raises(ProfileError, match="num_layers 32, not 8"):
        machine_of(str(path), EngineConfig(model="tiny", dtype="float16"))
    with pytest.raises(ConfigError, match="unknown machine"):
        machine_of("t5", config)
