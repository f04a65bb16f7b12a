"""The engine on a real GPU: flags, graphs and both tiers must not change a token, and an error must not hang it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.build import build_executor  # noqa: E402
from neobench.neo_engine.config import EngineConfig, HostKvDType  # noqa: E402
from neobench.neo_engine.cost_model import CostModel, CostTables, Curve, Surface  # noqa: E402
from neobench.neo_engine.engine import NeoEngine  # noqa: E402
from neobench.neo_engine.request import SamplingParams  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Tables under which offloading pays whatever this machine is, so that every mode is exercised.
TABLES = CostTables(
    linear=Curve((1, 128, 2048), (4e5, 4.1e5, 6e6)),
    prefill_attention=Curve((1, 2048), (1e4, 1e6)),
    device_decode=Surface((1, 256), (16, 2048), ((1e4, 2e4), (2e4, 4e5))),
    host_decode=Surface((1, 256), (16, 2048), ((3e4, 6e4), (3e5, 6e6))),
    head=Curve((1, 256), (1e5, 2e5)),
    move=Curve((1, 64), (1e4, 5e5)),
    step_fixed_ns=1e5,
    sub_batch_fixed_ns=1e5,
)


def make_engine(
    policy: str,
    *,
    device_blocks: int,
    host_blocks: int,
    max_batch_tokens: int = 2048,
    host_kv_dtype: HostKvDType = "same",
) -> NeoEngine:
    config = EngineConfig(
        policy=policy,
        device="cuda",
        device_blocks=device_blocks,
        host_threads=4,
        max_batch_tokens=max_batch_tokens,
        correct_costs=False,
        host_kv_dtype=host_kv_dtype,
    )
    config = replace(config, host_memory_bytes=host_blocks * config.block_bytes(config.host_layout))
    return NeoEngine(config, build_executor(config), CostModel(TABLES, config.shape.num_layers))


def run(engine: NeoEngine, count: int = 50) -> list[list[int]]:
    """Greedy tokens of each request in order, two arriving each step."""
    rng = np.random.default_rng(0)
    pending = [
        (
            rng.integers(0, 4096, rng.integers(1, 150)).tolist(),
            SamplingParams(max_tokens=int(rng.integers(2, 40)), temperature=0.0, ignore_eos=True),
        )
        for _ in range(count)
    ]
    tokens: dict[int, list[int]] = {}
    while pending or engine.has_work:
        for prompt, params in pending[:2]:
            tokens[engine.add_request(prompt, params)] = []
        del pending[:2]
        for output in engine.step():
            assert output.token_id is not None
            tokens[output.request_id].append(output.token_id)
    return list(tokens.values())


@pytest.fixture(scope="module")
def roomy() -> list[list[int]]:
    engine = make_engine("gpu_only", device_blocks=2000, host_blocks=0)
    try:
        return run(engine)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("policy", "max_batch_tokens", "device_blocks", "host_blocks", "expected"),
    [
        ("chunked_prefill", 23, 20, 0, ["preemptions"]),
        ("full_offload", 100, 1, 18, ["preemptions", "iterations_asymmetric"]),
        ("asymmetric_pipeline", 23, 20, 400, ["cpu_decode_tokens", "swaps_out", "swaps_in", "prefills_to_host"]),
        ("asymmetric_pipeline", 2048, 13, 14, ["cpu_decode_tokens", "preemptions", "swaps_in"]),
        ("asymmetric_pipeline", 2048, 3, 400, ["cpu_decode_tokens", "iterations_asymmetric"]),
    ],
)
def test_greedy_tokens_do_not_depend_on_policy_or_tier_sizes(
    roomy: list[list[int]],
    policy: str,
    max_batch_tokens: int,
    device_blocks: int,
    host_blocks: int,
    expected: list[str],
) -> None:
    engine = make_engine(
        policy, device_blocks=device_blocks, host_blocks=host_blocks, max_batch_tokens=max_batch_tokens
    )
    try:
        assert run(engine) == roomy
        stats, facts = engine.stats(), engine.info()
    finally:
        engine.close()
    assert {name: stats[name] for name in expected if not stats[name]} == {}
    assert facts["host_link"] == "FlagLink"
    assert facts["decode_graphs"] > 0


def test_an_int8_host_serves_nearly_the_same_tokens(roomy: list[list[int]]) -> None:
    engine = make_engine(
        "asymmetric_pipeline", device_blocks=13, host_blocks=40, max_batch_tokens=23, host_kv_dtype="int8"
    )
    try:
        tokens = run(engine)
        stats = engine.stats()
    finally:
        engine.close()
    assert [len(sequence) for sequence in tokens] == [len(sequence) for sequence in roomy]
    assert sum(ours[0] == theirs[0] for ours, theirs in zip(tokens, roomy, strict=True)) >= 45
    assert stats["cpu_decode_tokens"] > 0
    assert stats["swaps_in"] > 0


def test_an_error_in_mid_step_neither_hangs_the_gpu_nor_spoils_the_next(
    fail_in_layer_4: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While layers are at the workers and the stream waits for flags that nobody will raise."""
    broken = make_engine("full_offload", device_blocks=1, host_blocks=400)
    try:
        for _ in range(2):
            broken.add_request([1, 2, 3], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
        broken.step()
        fail_in_layer_4()
        with pytest.raises(ArithmeticError):
            broken.step()
        monkeypatch.undo()
        while broken.has_work:
            broken.step()
    finally:
        broken.close()
