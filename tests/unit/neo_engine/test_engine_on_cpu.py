"""The whole engine on the CPU: tokens must not depend on where KV lives, when it moves, or who shares a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.batch import Mode, Prefill, StepPlan, SubBatch  # noqa: E402
from neobench.neo_engine.build import build_executor, check_memory  # noqa: E402
from neobench.neo_engine.config import ConfigError, EngineConfig  # noqa: E402
from neobench.neo_engine.cost_model import CostModel, CostTables  # noqa: E402
from neobench.neo_engine.engine import NeoEngine  # noqa: E402
from neobench.neo_engine.executor.base import Executor  # noqa: E402
from neobench.neo_engine.executor.gpu import GpuExecutor  # noqa: E402
from neobench.neo_engine.model.weights import build_model  # noqa: E402
from neobench.neo_engine.request import SamplingParams, Tier  # noqa: E402

Requests = list[tuple[list[int], SamplingParams]]


def mixed_requests(count: int, *, seed: int = 0, longest_prompt: int = 150, vocab_size: int = 4096) -> Requests:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, vocab_size, rng.integers(1, longest_prompt)).tolist(),
            SamplingParams(max_tokens=int(rng.integers(2, 40)), temperature=0.0, ignore_eos=True),
        )
        for _ in range(count)
    ]


def gpu_code_on_the_cpu(config: EngineConfig) -> Executor:
    """The GPU's executor with its kernels' torch twins, and no streams, flags or graphs."""
    return GpuExecutor(config, build_model(config, device=torch.device("cpu")))


def run_engine(
    config: EngineConfig,
    tables: CostTables,
    requests: Requests,
    build: Callable[[EngineConfig], Executor] = build_executor,
) -> tuple[list[list[int]], dict[str, Any]]:
    """Tokens of each request in order, two arriving each step, and the engine's statistics; `tables` are kept to."""
    config = replace(config, correct_costs=False)
    engine = NeoEngine(config, build(config), CostModel(tables, config.shape.num_layers))
    tokens: dict[int, list[int]] = {}
    pending = list(requests)
    try:
        while pending or engine.has_work:
            for prompt, params in pending[:2]:
                tokens[engine.add_request(prompt, params)] = []
            del pending[:2]
            for output in engine.step():
                assert output.token_id is not None
                tokens[output.request_id].append(output.token_id)
        stats = engine.stats()
        assert stats["device_blocks_used"] == stats["host_blocks_used"] == 0
        return list(tokens.values()), stats
    finally:
        engine.close()


@pytest.fixture(scope="module")
def card() -> CostTables:
    """Tables that make offloading worthwhile whatever this machine is, so that every mode is exercised."""
    from neobench.neo_engine.cost_model import Curve, Surface

    flat = Surface((1, 256), (16, 2048), ((1e4, 2e4), (2e4, 4e5)))
    return CostTables(
        linear=Curve((1, 128, 2048), (4e5, 4.1e5, 6e6)),
        prefill_attention=Curve((1, 2048), (1e4, 1e6)),
        device_decode=flat,
        host_decode=Surface((1, 256), (16, 2048), ((3e4, 6e4), (3e5, 6e6))),
        head=Curve((1, 256), (1e5, 2e5)),
        move=Curve((1, 64), (1e4, 5e5)),
        step_fixed_ns=1e5,
        sub_batch_fixed_ns=1e5,
    )


@pytest.fixture(scope="module")
def roomy(card: CostTables) -> list[list[int]]:
    """The truth of the tests below: every request in a device tier that never fills."""
    config = EngineConfig(policy="gpu_only", device_blocks=2000, host_memory_bytes=0, device_threads=1)
    tokens, stats = run_engine(config, card, mixed_requests(50))
    assert stats["preemptions"] == 0
    return tokens


@pytest.mark.parametrize("build", [build_executor, gpu_code_on_the_cpu], ids=["cpu", "gpu_code"])
@pytest.mark.parametrize(
    ("policy", "max_batch_tokens", "device_blocks", "host_blocks", "expected"),
    [
        ("gpu_only", 2048, 20, 0, ["preemptions"]),
        ("chunked_prefill", 23, 20, 0, ["preemptions"]),
        ("chunked_prefill", 61, 300, 0, ["gpu_decode_tokens"]),
        ("full_offload", 2048, 1, 400, ["cpu_decode_tokens", "iterations_asymmetric", "prefills_to_host"]),
        ("full_offload", 100, 1, 18, ["preemptions", "iterations_asymmetric"]),
        ("asymmetric_pipeline", 23, 20, 400, ["cpu_decode_tokens", "swaps_out", "swaps_in", "prefills_to_host"]),
        ("asymmetric_pipeline", 37, 13, 14, ["cpu_decode_tokens", "preemptions", "swaps_in", "prefills_to_host"]),
        ("asymmetric_pipeline", 2048, 20, 400, ["cpu_decode_tokens", "iterations_asymmetric", "swaps_out", "swaps_in"]),
        ("asymmetric_pipeline", 2048, 13, 14, ["cpu_decode_tokens", "preemptions", "swaps_in", "prefills_to_host"]),
        ("asymmetric_pipeline", 2048, 3, 400, ["cpu_decode_tokens", "iterations_asymmetric"]),
    ],
)
def test_greedy_tokens_do_not_depend_on_policy_tier_sizes_or_executor(
    card: CostTables,
    roomy: list[list[int]],
    build: Callable[[EngineConfig], Executor],
    policy: str,
    max_batch_tokens: int,
    device_blocks: int,
    host_blocks: int,
    expected: list[str],
) -> None:
    config = EngineConfig(policy=policy, device_blocks=device_blocks, device_threads=1, host_threads=1)
    config = replace(config, max_batch_tokens=max_batch_tokens)
    config = replace(config, host_memory_bytes=host_blocks * config.block_bytes(config.host_layout))
    tokens, stats = run_engine(config, card, mixed_requests(50), build)
    assert tokens == roomy
    assert {name: stats[name] for name in expected if not stats[name]} == {}
    assert len({tuple(sequence) for sequence in tokens}) == 50, "degenerate output would prove nothing"
    if max_batch_tokens < 100 and policy != "full_offload":
        prompts = stats["prefills_to_device"] + stats["prefills_to_host"]
        assert stats["prefill_chunks"] > 1.5 * prompts


def test_a_prompt_in_chunks_may_move_and_be_dropped_between_them(card: CostTables) -> None:
    """Chunks that begin and end in mid-block, on either side, with a swap each way and a preemption among them."""
    requests = mixed_requests(2, seed=4)
    requests = [(prompt, replace(params, max_tokens=12)) for prompt, params in requests]
    config = EngineConfig(policy="gpu_only", device_blocks=100, device_threads=1, host_threads=1)
    whole, _ = run_engine(config, card, requests)
    size = len(requests[0][0])
    assert size > 60

    def chunk(tier: Tier, start: int, end: int) -> SubBatch:
        return SubBatch((Prefill(0, end - start, tier, start, size - end),))

    script = [
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.HOST, 0, 5),)),
        StepPlan(Mode.GPU_ONLY, preempt=(0,)),
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.DEVICE, 0, 13),)),
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.DEVICE, 13, 14),)),
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.HOST, 14, 31),), swap_out=(0,)),
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.HOST, 31, 50),)),
        StepPlan(Mode.IDLE, swap_in=(0,)),
        StepPlan(Mode.GPU_ONLY, (chunk(Tier.DEVICE, 50, size - 1),)),
    ]
    engine = NeoEngine(config, build_executor(config), CostModel(card, config.shape.num_layers))
    try:
        policy, engine._policy = engine._policy, Scripted(script)
        engine.add_request(*requests[0])
        for _ in script:
            assert engine.step() == [], "no token before the prompt's end"
        assert [view.request_id for view in engine._queues().on_device] == [0], "its last token decodes"
        engine._policy = policy
        tokens = [engine.step()[0].token_id for _ in range(12)]
    finally:
        engine.close()
    assert tokens == whole[0]


class Scripted:
    def __init__(self, plans: list[StepPlan]) -> None:
        self._plans = iter(plans)

    def next_step(self, *_: object) -> StepPlan:
        return next(self._plans)


@pytest.mark.parametrize("max_batch_tokens", [2048, 37])
def test_int8_kv_on_the_host_keeps_most_tokens(card: CostTables, roomy: list[list[int]], max_batch_tokens: int) -> None:
    """Requests move both ways through the conversion; an error in it would change nearly every token after a move.

    Of a random model the best two tokens are often close, and one changed token changes all that follow.
    """
    config = EngineConfig(policy="asymmetric_pipeline", device_blocks=20, device_threads=1, host_threads=1)
    config = replace(config, host_kv_dtype="int8", max_batch_tokens=max_batch_tokens)
    config = replace(config, host_memory_bytes=400 * config.block_bytes(config.host_layout))
    assert config.block_bytes(config.host_layout) < 0.3 * config.block_bytes(config.device_layout)
    tokens, stats = run_engine(config, card, mixed_requests(50))
    assert stats["cpu_decode_tokens"]
    assert stats["swaps_in"]
    pairs = [pair for got, truth in zip(tokens, roomy, strict=True) for pair in zip(got, truth, strict=True)]
    assert sum(got == truth for got, truth in pairs) >= 0.4 * len(pairs)


def test_seeded_sampling_does_not_depend_on_policy_or_tier_sizes(card: CostTables) -> None:
    requests = [
        (prompt, replace(params, temperature=0.8, top_p=0.9, top_k=50, seed=index))
        for index, (prompt, params) in enumerate(mixed_requests(12, seed=1))
    ]
    outputs = []
    for policy, device_blocks in (("gpu_only", 500), ("chunked_prefill", 20), ("asymmetric_pipeline", 12)):
        config = EngineConfig(policy=policy, device_blocks=device_blocks, device_threads=1, host_threads=1)
        config = replace(config, max_batch_tokens=50)
        outputs.append(run_engine(config, card, requests)[0])
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ],
    ids=["mha", "gqa-tied", "mqa-llama3"],
)
def test_offloaded_greedy_tokens_equal_transformers_generate(
    card: CostTables, settings: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    torch.manual_seed(0)
    hf_config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=None,
        bos_token_id=None,
        initializer_range=0.2,
        **settings,
    )
    truth = transformers.LlamaForCausalLM(hf_config).eval()
    truth.save_pretrained(tmp_path)
    requests = mixed_requests(8, seed=2, vocab_size=512)
    config = EngineConfig(
        model=str(tmp_path), policy="asymmetric_pipeline", device_blocks=12, device_threads=1, host_threads=1
    )
    tokens, stats = run_engine(config, card, requests)
    assert stats["cpu_decode_tokens"] > 0
    for (prompt, params), ours in zip(requests, tokens, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            generated = truth.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=params.max_tokens,
                min_new_tokens=params.max_tokens,
                pad_token_id=0,
            )
        assert ours == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_both_tiers(card: CostTables, dtype: Any) -> None:
    config = EngineConfig(policy="asymmetric_pipeline", dtype=dtype, device_blocks=20, device_threads=1, host_threads=1)
    requests = mixed_requests(10, seed=3)
    tokens, stats = run_engine(config, card, requests)
    assert [len(sequence) for sequence in tokens] == [params.max_tokens for _, params in requests]
    assert stats["cpu_decode_tokens"] > 0


def test_an_int8_host_serves_both_executors_alike(card: CostTables) -> None:
    """Nearly: a last bit of difference before rounding to 8 bits is one of a percent after it."""
    config = EngineConfig(policy="asymmetric_pipeline", device_blocks=13, host_threads=1, device_threads=1)
    config = replace(config, host_kv_dtype="int8")
    config = replace(config, host_memory_bytes=40 * config.block_bytes(config.host_layout))
    requests = mixed_requests(30, seed=8)
    tokens, stats = run_engine(config, card, requests)
    others, _ = run_engine(config, card, requests, gpu_code_on_the_cpu)
    assert [len(sequence) for sequence in others] == [len(sequence) for sequence in tokens]
    assert sum(ours != theirs for ours, theirs in zip(tokens, others, strict=True)) <= 4
    for name in ("cpu_decode_tokens", "swaps_in", "prefills_to_host"):
        assert stats[name] > 0, name


def test_an_error_in_mid_step_leaves_the_gpu_executor_usable(
    card: CostTables, fail_in_layer_4: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two sub-batches, each with a layer at the workers."""
    config = EngineConfig(policy="full_offload", device_blocks=1, host_threads=1, correct_costs=False)
    engine = NeoEngine(config, gpu_code_on_the_cpu(config), CostModel(card, config.shape.num_layers))
    try:
        for prompt, params in mixed_requests(4, seed=6):
            engine.add_request(prompt, replace(params, max_tokens=6))
        engine.step()
        fail_in_layer_4()
        with pytest.raises(ArithmeticError, match="as if"):
            engine.step()
        monkeypatch.undo()
        while engine.has_work:
            engine.step()
        assert engine.stats()["finished_requests"] == 4
    finally:
        engine.close()


def test_more_memory_than_there_is_is_refused_before_it_is_taken() -> None:
    config = EngineConfig(host_memory_bytes=2**50)
    with pytest.raises(ConfigError, match="smaller --dtype, --host-memory"):
        build_executor(config)
    check_memory(config, 2**51)
