"""How many KV blocks fit: the arithmetic, the steps that are tried, and what is said when the memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from neobench.neo_engine.config import ConfigError, EngineConfig

torch = pytest.importorskip("torch")

from neobench.neo_engine import build  # noqa: E402
from neobench.neo_engine.batch import Mode, StageTimes  # noqa: E402
from neobench.neo_engine.executor.base import Executor, SampleRow  # noqa: E402
from neobench.neo_engine.executor.gpu import GpuExecutor  # noqa: E402
from neobench.neo_engine.executor.inputs import BatchInputs  # noqa: E402
from neobench.neo_engine.kv_cache.block_tables import BlockMove  # noqa: E402
from neobench.neo_engine.kv_sizing import blocks_that_fit, explained_shortage, sized  # noqa: E402
from neobench.neo_engine.model.llama import LlamaModel  # noqa: E402
from neobench.neo_engine.model.weights import build_model  # noqa: E402
from neobench.neo_engine.request import Tier  # noqa: E402

GIB = 2**30
MAX_ROWS = 8


def test_blocks_that_fit_fill_the_fraction_and_no_more() -> None:
    assert blocks_that_fit(100 * GIB, 30 * GIB, 0.9, GIB) == 60
    assert blocks_that_fit(100 * GIB, 30 * GIB + 1, 0.9, GIB) == 59
    assert blocks_that_fit(100 * GIB, 89 * GIB, 0.9, GIB) == 1
    for used in (89 * GIB + 1, 95 * GIB):
        with pytest.raises(ConfigError, match=r"shorter --max-model-tokens, .* larger --device-memory-fraction"):
            blocks_that_fit(100 * GIB, used, 0.9, GIB)


class Watched:
    """Another executor, of which it is told what ran."""

    def __init__(self, config: EngineConfig, model: LlamaModel) -> None:
        self.config = config
        self.steps: list[tuple[Mode, list[BatchInputs], int]] = []
        self.moved: list[tuple[Tier, int]] = []
        self.closed = False
        self._executor = GpuExecutor(config, model)

    def execute(
        self, mode: Mode, batches: Sequence[BatchInputs], moves: Sequence[BlockMove], sampling: Sequence[SampleRow]
    ) -> tuple[list[int], StageTimes]:
        tokens, times = self._executor.execute(mode, batches, moves, sampling)
        assert len(tokens) == sum(len(batch.logit_rows) for batch in batches)
        assert all(row.params.temperature > 0 and row.params.top_p < 1 for row in sampling)
        self.steps.append((mode, list(batches), len(tokens)))
        self.moved += [(move.source_tier, len(move.source_blocks)) for move in moves]
        return tokens, times

    def measure_stages(self, every_stage: bool) -> None:
        self._executor.measure_stages(every_stage)

    def warm_up(self, *, offloads: bool) -> None:
        self._executor.warm_up(offloads=offloads)

    def describe(self) -> dict[str, Any]:
        return self._executor.describe()

    def close(self) -> None:
        self._executor.close()
        self.closed = True


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    return build_model(EngineConfig(), device=torch.device("cpu"))


def config_of(policy: str, **settings: Any) -> EngineConfig:
    return EngineConfig(
        policy=policy,
        device="cuda",
        device_memory_fraction=0.9,
        max_model_tokens=600,
        max_batch_tokens=100,
        max_batch_rows=MAX_ROWS,
        host_threads=1,
        **settings,
    )


def size_it(config: EngineConfig, model: LlamaModel, free_gib: Sequence[float]) -> tuple[EngineConfig, Watched]:
    """On a made-up device of 10 GiB with so much free memory before and after the trial."""
    built: list[Watched] = []
    free = iter(free_gib)

    def build_watched(trial: EngineConfig) -> Executor:
        built.append(Watched(trial, model))
        return built[0]

    return sized(config, build_watched, lambda _line: None, lambda: (int(next(free) * GIB), 10 * GIB)), built[0]


@pytest.mark.parametrize(
    ("policy", "host_kv_dtype", "prompt_tokens"),
    [
        ("gpu_only", "same", 600),
        ("chunked_prefill", "same", 100),
        ("full_offload", "same", 600),
        ("asymmetric_pipeline", "same", 100),
        ("asymmetric_pipeline", "int8", 100),
    ],
)
def test_the_largest_steps_of_each_policy_are_tried(
    model: LlamaModel, policy: str, host_kv_dtype: Any, prompt_tokens: int
) -> None:
    config = config_of(policy, host_kv_dtype=host_kv_dtype)
    found, trial = size_it(config, model, (8, 6))
    block_bytes = config.block_bytes(config.device_layout)
    used_bytes = 4 * GIB - trial.config.device_blocks * block_bytes
    assert found.device_blocks == (9 * GIB - used_bytes) // block_bytes
    assert found == replace(config, device_blocks=found.device_blocks, device_memory_fraction=None)
    assert found.max_request_tokens == trial.config.max_request_tokens == 600
    assert trial.config.device_blocks * block_bytes < 0.001 * found.device_blocks * block_bytes
    assert trial.config.host_blocks <= 16, "page-locking the whole host tier twice would take minutes"
    assert trial.closed

    device_prompt = trial.steps[0][1][0]
    assert sum(prefill.num_tokens for prefill in device_prompt.prefills) == prompt_tokens
    assert max(device_prompt.positions) == 599
    assert max(device_prompt.device.contexts) == 600
    assert len(device_prompt.device) == MAX_ROWS
    if policy in ("gpu_only", "chunked_prefill"):
        assert [mode for mode, _, _ in trial.steps] == [Mode.GPU_ONLY]
        return
    assert {mode for mode, _, _ in trial.steps[1:]} == {Mode.ASYMMETRIC}
    _, batches, sampled = trial.steps[-1]
    assert {prefill.tier for prefill in batches[0].prefills} == {Tier.HOST}
    assert sampled == len(batches[0].prefills) + 3 * MAX_ROWS
    assert trial.moved == [(Tier.DEVICE, 16), (Tier.HOST, 16)]


def test_short_requests_fill_the_budget_together(model: LlamaModel) -> None:
    config = replace(config_of("chunked_prefill"), max_model_tokens=40)
    _, trial = size_it(config, model, (8, 6))
    assert [prefill.num_tokens for prefill in trial.steps[0][1][0].prefills] == [40, 40, 20]


def test_the_longest_request_is_no_longer_than_could_fit(model: LlamaModel) -> None:
    """Beside the weights alone, before any step: else a long context would be tried that no device could hold."""
    config = config_of("gpu_only")
    room = 5 * config.block_bytes(config.device_layout) / GIB
    found, trial = size_it(config, model, (1 + room, 1 + room))
    assert trial.config.max_request_tokens == 5 * config.block_size
    assert found.device_blocks == 10, "the trial's own blocks are free again"


def test_a_trial_is_closed_where_nothing_is_left_or_it_fails(model: LlamaModel) -> None:
    closed: list[Watched] = []

    class Failing(Watched):
        def execute(self, *_: Any) -> tuple[list[int], StageTimes]:
            closed.append(self)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    config = config_of("gpu_only")
    with (
        pytest.raises(ConfigError, match=r"ran out: 2.00 GiB asked for, 1.00 GiB of 10.00 GiB free\. Choose shorter"),
        explained_shortage(config, lambda: (GIB, 10 * GIB)),
    ):
        sized(config, lambda trial: Failing(trial, model), lambda _line: None, lambda: (8 * GIB, 10 * GIB))
    assert closed[0].closed
    with pytest.raises(ConfigError, match="no room for KV"):
        size_it(config, model, (8, 0.5))


def test_a_shortage_names_the_blocks_that_were_asked_for() -> None:
    with (
        pytest.raises(ConfigError, match=r"fewer --device-blocks than 7, .*--host-memory is not the GPU's"),
        explained_shortage(EngineConfig(device_blocks=7), lambda: (0, GIB)),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_only_a_gpu_has_a_fraction_and_it_is_one() -> None:
    with pytest.raises(ConfigError, match="device is 'cpu'"):
        EngineConfig(device_memory_fraction=0.9)
    for fraction in (0.0, 1.1):
        with pytest.raises(ConfigError, match="at most 1"):
            EngineConfig(device="cuda", device_memory_fraction=fraction)
    with pytest.raises(ConfigError, match="build_sized"):
        build.build_executor(EngineConfig(device="cuda", device_memory_fraction=0.5))


def test_until_it_is_sized_a_device_bounds_no_request() -> None:
    for policy, expected in (("gpu_only", 2048), ("asymmetric_pipeline", 2048), ("full_offload", 32)):
        config = EngineConfig(policy=policy, device="cuda", device_memory_fraction=0.9, device_blocks=1)
        config = replace(config, host_memory_bytes=2 * config.block_bytes(config.host_layout))
        assert config.max_request_tokens == expected


@pytest.fixture
def small_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA describes a T4 most of whose memory is taken."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (GIB, 15 * GIB))


@pytest.mark.usefixtures("small_old_gpu")
def test_a_gpu_without_bfloat16_or_room_is_refused_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_model", lambda *_args, **_options: pytest.fail("must not be loaded"))
    gpu = EngineConfig(model="llama-3.1-8b", device="cuda", dtype="float16", host_memory_bytes=0)
    with pytest.raises(ConfigError, match=r"bfloat16 needs compute capability 8.0 or later.*7.5; use float16"):
        build.build_sized(replace(gpu, dtype="bfloat16"))
    with pytest.raises(ConfigError, match="smaller --device-blocks or model"):
        build.build_sized(gpu)
    with pytest.raises(ConfigError, match=r"0\.0 GiB for KV, .* smaller --dtype or model"):
        build.build_sized(replace(gpu, device_memory_fraction=0.9))
