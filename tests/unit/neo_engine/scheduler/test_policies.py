"""What every policy must keep, on whole runs of the engine over a counting executor. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.batch import Mode, RequestView
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.request import FinishReason, RequestRejectedError, SamplingParams
from neobench.neo_engine.scheduler.full_offload import equal_halves
from neobench.neo_engine.scheduler.policy import POLICIES

EngineFactory = Callable[..., NeoEngine]
lengths = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=25)


def run_to_the_end(engine: NeoEngine, workload: list[tuple[int, int]], *, arrivals_a_step: int = 3) -> dict[int, int]:
    """Tokens of each request; fails if the engine does not finish in a generous number of steps."""
    pending = list(workload)
    tokens: dict[int, int] = {}
    budget = 50 * sum(output + 2 for _, output in workload) + 100
    while pending or engine.has_work:
        for prompt, output in pending[:arrivals_a_step]:
            tokens[engine.add_request([1] * prompt, SamplingParams(max_tokens=output, ignore_eos=True))] = 0
        del pending[:arrivals_a_step]
        outputs = engine.step()
        seen = [output.request_id for output in outputs]
        assert len(seen) == len(set(seen))
        for output in outputs:
            tokens[output.request_id] += 1
        budget -= 1
        assert budget > 0, "no end in sight"
    return tokens


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=100, deadline=None)
@given(
    workload=lengths,
    device_blocks=st.integers(9, 40),
    host_blocks=st.sampled_from([0, 9, 60]),
    host_ns_per_token=st.sampled_from([1.0, 40.0, 5000.0]),
    arrivals=st.integers(1, 30),
    max_batch_tokens=st.sampled_from([16, 200]),
    max_batch_rows=st.sampled_from([2, 5, 256]),
)
def test_every_request_finishes_with_its_length_and_every_block_comes_back(
    make_engine: EngineFactory,
    policy: str,
    workload: list[tuple[int, int]],
    device_blocks: int,
    host_blocks: int,
    host_ns_per_token: float,
    arrivals: int,
    max_batch_tokens: int,
    max_batch_rows: int,
) -> None:
    engine = make_engine(
        policy,
        device_blocks=device_blocks,
        host_blocks=max(9, host_blocks) if policy == "full_offload" else host_blocks,
        host_ns_per_token=host_ns_per_token,
        max_batch_tokens=max_batch_tokens,
        max_batch_rows=max_batch_rows,
    )
    tokens = run_to_the_end(engine, workload, arrivals_a_step=arrivals)
    assert sorted(tokens.values()) == sorted(output for _, output in workload)
    stats = engine.stats()
    assert stats["device_blocks_used"] == 0
    assert stats["host_blocks_used"] == 0
    assert stats["finished_requests"] == len(workload)


def test_chunks_hold_up_decodes_for_one_budget_at_most(make_engine: EngineFactory) -> None:
    engine = make_engine("chunked_prefill", device_blocks=100, max_batch_tokens=64)
    short = engine.add_request([1] * 10, SamplingParams(max_tokens=40, ignore_eos=True))
    engine.step()
    long = engine.add_request([1] * 600, SamplingParams(max_tokens=2, ignore_eos=True))
    for _ in range(-(-600 // 63) - 1):
        assert [output.request_id for output in engine.step()] == [short]
    assert {output.request_id for output in engine.step()} == {short, long}
    assert engine.stats()["prefill_chunks"] == 1 + -(-600 // 63)


def test_chunked_prefill_takes_up_what_fits_as_a_whole_and_preempts_the_newest(make_engine: EngineFactory) -> None:
    engine = make_engine("chunked_prefill", device_blocks=10, max_batch_tokens=64)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    engine.add_request([1] * 31, params)
    engine.step()
    engine.add_request([1] * 100, params)
    engine.add_request([1] * 20, params)
    engine.step()
    assert engine.stats()["device_blocks_used"] == 2 + 4, "63 tokens of the second"
    blocks = engine.config.device_blocks
    assert engine.stats()["device_kv_used_fraction"] == pytest.approx((2 + 4) / blocks)
    assert (engine.stats()["running_requests"], engine.stats()["waiting_requests"]) == (2.0, 1.0)
    assert engine.stats()["num_waiting"] == 1, "the third leaves alone what the second will need"
    while not engine.stats()["preemptions"]:
        engine.step()
    assert engine.stats()["num_running"] == 1
    assert engine.stats()["prefill_tokens"] == 31 + 100, "the second yields, and the third has not overtaken it"


def test_full_offload_halves_the_context(make_engine: EngineFactory) -> None:
    engine = make_engine("full_offload", device_blocks=1, host_blocks=400)
    for length in (500, 10, 300, 200, 11, 12, 13):
        engine.add_request([1] * length, SamplingParams(max_tokens=3, ignore_eos=True))
    engine.step()
    plan = engine._policy.next_step(engine._queues(), engine._tables.view(), engine._costs)
    contexts = [[row.context_tokens for row in batch.host_decodes] for batch in plan.sub_batches]
    assert plan.mode is Mode.ASYMMETRIC
    assert [len(half) for half in contexts] == [4, 3]
    assert abs(sum(contexts[0]) - sum(contexts[1])) <= 20


@given(st.lists(st.integers(2, 3000), max_size=40))
def test_equal_halves_differ_by_no_more_than_the_longest(contexts: list[int]) -> None:
    first, second = equal_halves([RequestView(i, context, 0) for i, context in enumerate(contexts)])
    assert sorted(row.context_tokens for row in (*first, *second)) == sorted(contexts)
    assert 0 <= len(first) - len(second) <= 1
    difference = sum(row.context_tokens for row in first) - sum(row.context_tokens for row in second)
    assert abs(difference) <= max(contexts, default=0)


@pytest.mark.parametrize(("device_blocks", "host_blocks"), [(1, 60), (4, 60), (60, 1)])
def test_a_request_that_fits_only_one_tier_is_served_there(
    make_engine: EngineFactory, device_blocks: int, host_blocks: int
) -> None:
    engine = make_engine("asymmetric_pipeline", device_blocks=device_blocks, host_blocks=host_blocks)
    workload = [(10, 20), (300, 30), (5, 40), (400, 50), (20, 5)]
    tokens = run_to_the_end(engine, workload)
    assert list(tokens.values()) == [output for _, output in workload]


def test_a_request_that_fits_no_tier_is_refused_at_the_door(make_engine: EngineFactory) -> None:
    engine = make_engine("gpu_only", device_blocks=4, host_blocks=100)
    with pytest.raises(RequestRejectedError, match="64 at most"):
        engine.add_request([1] * 60, SamplingParams(max_tokens=5))
    engine.add_request([1] * 60, SamplingParams(max_tokens=4))
    with pytest.raises(RequestRejectedError, match="empty"):
        engine.add_request([], SamplingParams())
    with pytest.raises(RequestRejectedError, match="outside the vocabulary"):
        engine.add_request([1, 4096], SamplingParams())


def test_host_memory_lets_neo_run_more_requests_at_once(make_engine: EngineFactory) -> None:
    workload = [(370, 45)] * 40
    steps = {}
    for policy in ("gpu_only", "asymmetric_pipeline"):
        engine = make_engine(policy, device_blocks=54, host_blocks=2000)
        run_to_the_end(engine, workload, arrivals_a_step=40)
        steps[policy] = engine.stats()["steps"]
    assert steps["asymmetric_pipeline"] < steps["gpu_only"] / 2


def test_abort_in_any_state_frees_everything(make_engine: EngineFactory) -> None:
    engine = make_engine("asymmetric_pipeline", device_blocks=30, host_blocks=60)
    ids = [engine.add_request([1] * 60, SamplingParams(max_tokens=50, ignore_eos=True)) for _ in range(20)]
    for request_id in ids[::2]:
        engine.step()
        engine.abort(request_id)
        engine.abort(request_id)
    for request_id in ids:
        engine.abort(request_id)
    assert not engine.has_work
    assert engine.stats()["device_blocks_used"] == engine.stats()["host_blocks_used"] == 0
    assert engine.step() == []


def test_eos_and_stop_tokens_end_a_request(make_engine: EngineFactory) -> None:
    engine = make_engine("gpu_only", device_blocks=10)
    engine.add_request([5], SamplingParams(max_tokens=9, stop_token_ids=(1,)))
    (output,) = engine.step()
    assert output.finish_reason is FinishReason.STOP
    assert not engine.has_work


def test_the_scheduler_needs_no_torch() -> None:
    import subprocess

    program = (
        "import sys; import neobench.neo_engine.engine, neobench.neo_engine.scheduler.asymmetric_pipeline, "
        "neobench.neo_engine.scheduler.gpu_only; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
