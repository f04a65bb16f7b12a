"""Layers started by flags, with a thread in the GPU's place: order, resets, several sub-batches, lost flags, ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from neobench import pacpu

NUM_LAYERS = 3
NEVER_S = 60.0


class Iteration:
    """Cases, one a sub-batch, with their plans and the flags of all their layers."""

    def __init__(self, cases: Sequence, pool: pacpu.WorkerPool) -> None:
        self.cases = cases
        self.plans = [case.plan(pool) for case in cases]
        self.ready, self.done = (np.ones(NUM_LAYERS * len(cases), dtype=np.uint32) for _ in range(2))
        self.sequence = pacpu.FlagSequence(pool, ready=self.ready, done=self.done)

    def slot(self, layer: int, sub_batch: int) -> int:
        return layer * len(self.cases) + sub_batch

    def arm(self, *, timeout_s: float = NEVER_S) -> None:
        for case, plan in zip(self.cases, self.plans, strict=True):
            plan.begin(len(case.context_lens))
        steps = [
            (self.plans[sub_batch], layer, self.slot(layer, sub_batch), sub_batch)
            for layer in range(NUM_LAYERS)
            for sub_batch in range(len(self.cases))
        ]
        self.sequence.arm(steps, timeout_s=timeout_s)

    def raise_ready(self, layer: int, sub_batch: int) -> None:
        self.ready[self.slot(layer, sub_batch)] = 1

    def await_done(self, layer: int, sub_batch: int) -> None:
        await_true(lambda: self.done[self.slot(layer, sub_batch)] == 1)

    def run_gpu(self, query_seed: int = 0) -> None:
        """What the stream of one iteration does: new queries, ready, the other sub-batch, done, output."""
        generator = torch.Generator().manual_seed(query_seed)
        for layer in range(NUM_LAYERS):
            for sub_batch, case in enumerate(self.cases):
                case.query.normal_(generator=generator)
                case.output.fill_(float("nan"))
                self.raise_ready(layer, sub_batch)
            for sub_batch, case in enumerate(self.cases):
                self.await_done(layer, sub_batch)
                case.check_layer(layer)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + NEVER_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


@pytest.fixture
def iteration(attention_case, pools):
    def build(*contexts: Sequence[int], num_threads: int = 2, **options: object) -> Iteration:
        cases = [
            attention_case(lengths, num_layers=NUM_LAYERS, seed=seed, **options)
            for seed, lengths in enumerate(contexts)
        ]
        return Iteration(cases, pools[num_threads])

    return build


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("contexts", [[(30, 300)], [(30, 300), (700, 1, 64)]])
def test_iterations_in_a_row(contexts, num_threads, iteration):
    """No flag is ever lowered by the GPU's side, and none is stale in the next iteration."""
    served = iteration(*contexts, num_threads=num_threads)
    for step in range(5):
        served.arm()
        served.run_gpu(query_seed=step)
        served.sequence.wait()
        assert not served.ready.any()
        assert served.done.tolist() == [0] * len(contexts) * (NUM_LAYERS - 1) + [1] * len(contexts)


def test_flags_may_be_raised_before_the_sequence_is_armed(iteration):
    served = iteration((30, 300))
    gpu = threading.Thread(target=served.run_gpu)
    gpu.start()
    await_true(lambda: served.ready[0] == 1)
    served.arm()
    gpu.join()
    served.sequence.wait()


def test_a_sub_batch_is_served_while_the_gpu_has_the_other(iteration):
    served = iteration((30, 300), (64,))
    served.arm()
    served.raise_ready(0, 0)
    served.await_done(0, 0)
    served.raise_ready(0, 1)
    served.await_done(0, 1)
    assert served.done[served.slot(0, 0)] == 1
    served.raise_ready(1, 0)
    served.await_done(1, 0)
    assert served.done[: served.slot(1, 0)].tolist() == [0, 1]
    served.sequence.cancel()
    served.sequence.wait()


def test_steps_start_in_their_order_only(iteration):
    served = iteration((30, 300), (64,))
    served.arm()
    served.raise_ready(0, 1)
    time.sleep(0.02)
    assert not served.done.any()
    served.raise_ready(0, 0)
    served.await_done(0, 0)
    served.await_done(0, 1)
    served.sequence.cancel()
    served.sequence.wait()


def test_empty_sub_batches_are_answered(iteration):
    served = iteration((30, 300), (5,))
    served.cases[1].context_lens = ()
    served.arm()
    for layer in range(NUM_LAYERS):
        for sub_batch in range(2):
            served.raise_ready(layer, sub_batch)
            served.await_done(layer, sub_batch)
    served.sequence.wait()


def test_plans_outside_the_sequence_share_the_pool(attention_case, iteration, pools):
    served = iteration((30, 300), (64,))
    other = attention_case((20, 500), num_layers=1)
    plan = other.plan(pools[2])
    plan.begin(2)
    served.arm()
    gpu = threading.Thread(target=served.run_gpu)
    gpu.start()
    for _ in range(200):
        plan.run(0)
    gpu.join()
    served.sequence.wait()
    other.check_layer(0)


def test_a_lost_flag_is_named_and_lets_the_gpu_go(iteration):
    served = iteration((30, 300), (64,))
    served.arm(timeout_s=0.2)
    served.raise_ready(0, 0)
    served.raise_ready(0, 1)
    # Of both, which are under way at once: a flag may be raised only after its sub-batch's step before is done.
    served.await_done(0, 0)
    served.await_done(0, 1)
    served.raise_ready(1, 0)
    start = time.monotonic()
    lost = r"ready\[3\] \(layer 1, sub-batch 1\) was not raised within 0\.2 s; 3 of 6 steps were started"
    with pytest.raises(TimeoutError, match=lost):
        served.sequence.wait()
    assert time.monotonic() - start < NEVER_S / 10
    assert served.done.tolist() == [0, 1, 1, 1, 1, 1]


def test_a_flag_that_comes_just_in_time_is_not_lost(iteration):
    """The timeout is of one flag, not of the iteration."""
    served = iteration((30,))
    served.arm(timeout_s=2.0)
    for layer in range(NUM_LAYERS):
        time.sleep(0.8)
        served.raise_ready(layer, 0)
        served.await_done(layer, 0)
    served.sequence.wait()


@pytest.mark.parametrize("end", ["lost", "cancelled"])
def test_after_an_early_end_the_next_iteration_is_served(end, iteration):
    served = iteration((30, 300), (64,))
    for step in range(3):
        served.arm(timeout_s=0.05 if end == "lost" else NEVER_S)
        served.raise_ready(0, 0)
        served.await_done(0, 0)
        if end == "lost":
            with pytest.raises(TimeoutError):
                served.sequence.wait()
        else:
            served.sequence.cancel()
            served.sequence.wait()
        assert served.done[1:].all()
        served.ready[:] = 1  # too late
        served.arm()
        served.run_gpu(query_seed=step)
        served.sequence.wait()


def test_cancelling_while_another_thread_waits(iteration):
    served = iteration((30, 300))
    served.arm()
    canceller = threading.Timer(0.05, served.sequence.cancel)
    canceller.start()
    served.sequence.wait()
    canceller.join()
    assert served.done.all()


def test_what_a_worker_raises_surfaces_and_ends_the_sequence(iteration):
    served = iteration((30, 600))
    served.arm()
    served.cases[0].block_tables[1, 20] = 1 << 30
    for layer in range(NUM_LAYERS):
        served.raise_ready(layer, 0)
        served.await_done(layer, 0)
    with pytest.raises(RuntimeError, match="block_tables changed after begin"):
        served.sequence.wait()


def test_what_the_last_layer_raises_surfaces(iteration):
    served = iteration((30, 600))
    served.arm()
    for layer in range(NUM_LAYERS):
        if layer == NUM_LAYERS - 1:
            served.cases[0].block_tables[1, 20] = 1 << 30
        served.raise_ready(layer, 0)
        served.await_done(layer, 0)
    with pytest.raises(RuntimeError, match="block_tables changed after begin"):
        served.sequence.wait()


def test_a_plan_that_has_not_begun_ends_the_sequence(iteration):
    served = iteration((30, 300))
    served.sequence.arm([(served.plans[0], layer, layer, 0) for layer in range(NUM_LAYERS)], timeout_s=NEVER_S)
    served.raise_ready(0, 0)
    served.await_done(NUM_LAYERS - 1, 0)
    with pytest.raises(RuntimeError, match="begin"):
        served.sequence.wait()
    assert served.done.all()


def test_closing_the_pool_ends_the_sequence(attention_case):
    pool = pacpu.WorkerPool(2)
    served = Iteration([attention_case((30, 300), num_layers=NUM_LAYERS)], pool)
    served.arm()
    pool.close()
    assert served.done.all()
    with pytest.raises(RuntimeError, match="closed under an armed flag sequence"):
        served.sequence.wait()
    with pytest.raises(RuntimeError, match="closed"):
        served.arm()


def test_dropping_everything_while_armed(iteration):
    for _ in range(10):
        served = iteration((2000, 50), (64,))
        served.arm()
        done = served.done
        served.raise_ready(0, 0)
        del served
        gc.collect()
        assert done[1:].all()


def test_workers_sleep_again_after_a_sequence(iteration):
    served = iteration((30, 300))
    served.arm()
    served.run_gpu()
    served.sequence.wait()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_one_sequence_a_pool(iteration):
    first, second = iteration((30,)), iteration((30,))
    first.arm()
    with pytest.raises(RuntimeError, match="polling already"):
        second.arm()
    with pytest.raises(RuntimeError, match=r"arm\(\) while a sequence is armed"):
        first.sequence.arm([(first.plans[0], 0, 0, 0)])
    first.sequence.cancel()
    first.sequence.wait()
    second.arm()
    second.run_gpu()
    second.sequence.wait()


def test_waiting_without_arming(iteration):
    with pytest.raises(RuntimeError, match=r"wait\(\) without arm"):
        iteration((30,)).sequence.wait()


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ([], "steps: expected one or more, got none"),
        ([0, 3], r"slot: expected 0\.\.2, got 3"),
        ([0, -1], r"slot: expected 0\.\.2, got -1"),
        ([0, 1, 1], "slot 1: expected one for each layer"),
    ],
)
def test_wrong_steps(slots, words, iteration):
    served = iteration((30,))
    steps = [(served.plans[0], layer, slot, 0) for layer, slot in enumerate(slots)]
    with pytest.raises(ValueError, match=words):
        served.sequence.arm(steps)


def test_a_slot_that_still_says_done_is_refused(iteration):
    """The GPU would take the previous iteration's answer for this one's."""
    served = iteration((30,))
    served.arm()
    served.run_gpu()
    served.sequence.wait()
    with pytest.raises(ValueError, match="slot 2: expected one for each layer"):
        served.sequence.arm([(served.plans[0], 0, 2, 0)])


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf")])
def test_wrong_timeouts(timeout_s, iteration):
    with pytest.raises(ValueError, match="timeout_s: expected more than 0"):
        iteration((30,)).arm(timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("name", "flags", "error", "words"),
    [
        ("ready", [0, 0], TypeError, "numpy array or a torch tensor"),
        ("ready", np.zeros(3, dtype=np.int64), TypeError, "uint32 or int32, got int64"),
        ("done", np.zeros(2, dtype=np.uint32), ValueError, "num_slots=3"),
        ("done", np.zeros(6, dtype=np.uint32)[::2], ValueError, "contiguous"),
        ("done", np.zeros((3, 1), dtype=np.uint32), ValueError, r"got \[3, 1\]"),
    ],
)
def test_wrong_flags(name, flags, error, words, pools):
    good = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(error, match=f"^{name}:.*{words}"):
        pacpu.FlagSequence(pools[1], **{"ready": good, "done": good.clone(), name: flags})
