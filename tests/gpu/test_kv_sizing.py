"""The KV of a real GPU takes the memory that it is allowed, and what serving then takes stays within it."""

from __future__ import annotations

import gc

import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.build import build_sized  # noqa: E402
from neobench.neo_engine.config import ConfigError, EngineConfig  # noqa: E402
from neobench.neo_engine.kv_sizing import run_largest_steps  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KV_BYTES = 4 * 2**30


def fraction_with_room_for(num_bytes: int) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return float((total - free + num_bytes) / total)


@pytest.mark.parametrize("policy", ["gpu_only", "asymmetric_pipeline"])
def test_what_is_allowed_is_used_and_no_more(policy: str) -> None:
    fraction = fraction_with_room_for(KV_BYTES)
    config = EngineConfig(
        policy=policy,
        device="cuda",
        dtype="float16",
        device_memory_fraction=fraction,
        host_memory_bytes=2**28,
        host_threads=4,
    )
    said: list[str] = []
    found, executor = build_sized(config, said.append)
    try:
        executor.warm_up(offloads=policy == "asymmetric_pipeline")
        run_largest_steps(found, executor)
        free, total = torch.cuda.mem_get_info()
        assert executor.describe()["device_kv_bytes"] == found.device_blocks * found.block_bytes(found.device_layout)
    finally:
        executor.close()
    assert found.device_memory_fraction is None
    assert any(f"{found.device_blocks:,} KV blocks fit" in line for line in said)
    # Pages of 2 MiB, and graphs of sizes that the few blocks of the trial have no room for.
    assert total - free == pytest.approx(fraction * total, abs=0.1 * KV_BYTES)


def test_a_gpu_without_room_says_what_would_help() -> None:
    config = EngineConfig(device="cuda", dtype="float16", device_memory_fraction=fraction_with_room_for(2**20))
    with pytest.raises(ConfigError, match=r"no room for KV: .* larger --device-memory-fraction"):
        build_sized(config, lambda _line: None)
