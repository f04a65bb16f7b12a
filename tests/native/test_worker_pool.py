"""Threads: overlap, order, several plans and pools, pinning, closing."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from neobench import pacpu


def test_start_returns_before_the_work_is_done(attention_case, pools):
    """The caller has the GIL and its core while the workers attend."""
    case = attention_case((4000,) * 4, heads_per_kv_head=8, head_dim=128, num_layers=1)
    plan = case.plan(pools[1], target="cpp")
    plan.begin(4)
    start = time.perf_counter_ns()
    plan.start(0)
    started = time.perf_counter_ns()
    plan.wait()
    finished = time.perf_counter_ns()
    assert started - start < finished - started
    case.check_layer(0)


def test_waiting_releases_the_gil(attention_case, pools):
    case = attention_case((4000,) * 8, heads_per_kv_head=8, head_dim=128, num_layers=1)
    plan = case.plan(pools[1], target="cpp")
    plan.begin(8)
    finished, laps = threading.Event(), []

    def count_laps():
        while not finished.is_set():
            laps.append(time.perf_counter_ns())
            time.sleep(0)

    thread = threading.Thread(target=count_laps)
    thread.start()
    before = time.perf_counter_ns()
    plan.run(0)
    after = time.perf_counter_ns()
    finished.set()
    thread.join()
    assert sum(before < lap < after for lap in laps) > 10


def test_plans_of_one_pool_are_served_in_order(attention_case, pools):
    cases = [attention_case((30, 300, 5), seed=seed, cache_dtype="bfloat16") for seed in range(6)]
    plans = [case.plan(pools[2]) for case in cases]
    for plan in plans:
        plan.begin(3)
    for layer in range(2):
        for plan in plans:
            plan.start(layer)
        for plan in reversed(plans):
            plan.wait()
        for case in cases:
            case.check_layer(layer)


def test_two_pools_at_once(attention_case):
    cases = [attention_case((400, 20), seed=seed) for seed in range(2)]
    with pacpu.WorkerPool(1) as one, pacpu.WorkerPool(2) as two:
        plans = [case.plan(pool) for case, pool in zip(cases, (one, two), strict=True)]
        for plan in plans:
            plan.begin(2)
            plan.start(1)
        for plan in plans:
            plan.wait()
    for case in cases:
        case.check_layer(1)


def test_many_short_layers_with_sleeps_between(attention_case, pools):
    """Workers are caught both spinning and asleep, and slots of the job ring are used again many times."""
    case = attention_case((20, 3), num_layers=1)
    plan = case.plan(pools[3])
    plan.begin(2)
    for step in range(3000):
        plan.run(0)
        if step % 100 == 0:
            time.sleep(0.0003)
    case.check_layer(0)


def test_two_threads_share_a_pool(attention_case, pools):
    cases = [attention_case((100, 300), seed=seed, num_layers=1) for seed in range(2)]

    def repeat(plan):
        for _ in range(300):
            plan.begin(2)
            plan.run(0)

    threads = [threading.Thread(target=repeat, args=(case.plan(pools[2]),)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for case in cases:
        case.check_layer(0)


def test_a_full_queue_makes_start_wait(attention_case):
    case = attention_case((600,) * 2, num_layers=1, with_new_tokens=False)
    with pacpu.WorkerPool(1) as pool:
        plans = [case.plan(pool, target="cpp", output=case.output.clone()) for _ in range(150)]
        for plan in plans:
            plan.begin(2)
            plan.start(0)
        for plan in plans:
            plan.wait()


def test_closing_finishes_the_layer_under_way_and_refuses_more(attention_case):
    case = attention_case((3000, 50), num_layers=1)
    pool = pacpu.WorkerPool(2)
    plan = case.plan(pool)
    plan.begin(2)
    plan.start(0)
    pool.close()
    plan.wait()
    case.check_layer(0)
    with pytest.raises(RuntimeError, match="closed"):
        plan.run(0)
    pool.close()


def test_dropping_a_plan_and_its_arrays_while_it_runs(attention_case, pools):
    for _ in range(20):
        case = attention_case((2000, 50), num_layers=1)
        plan = case.plan(pools[2], target="cpp")
        plan.begin(2)
        plan.start(0)
        del plan, case


def test_closing_with_nothing_to_do():
    with pacpu.WorkerPool(3) as pool:
        assert pool.num_threads == 3
    pool.close()


def test_pinned_workers_attend(attention_case):
    cpu = min(os.sched_getaffinity(0))
    with pacpu.WorkerPool(2, cpus=[cpu, cpu]) as pool:
        attention_case((50, 300)).check(pool)


def test_pinning_leaves_the_caller_alone():
    before = os.sched_getaffinity(0)
    with pacpu.WorkerPool(1, cpus=[min(before)]):
        assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("num_threads", "cpus", "words"),
    [
        (0, None, "num_threads: expected 1"),
        (5000, None, "num_threads"),
        (2, [0], "cpus: expected one CPU for each of 2 threads, got 1"),
        (1, [-1], r"cpus: expected CPUs of .*got \[-1\]"),
        (1, [100000], "cpus"),
    ],
)
def test_wrong_pools(num_threads, cpus, words):
    with pytest.raises(ValueError, match=words):
        pacpu.WorkerPool(num_threads, cpus=cpus)


def test_a_table_under_one_thread_is_the_same_under_many(attention_case, pools):
    """Chunks are cut by the rows alone, so the number of threads does not change a bit of the output."""
    case = attention_case((900, 31, 513), num_layers=1)
    outputs = []
    for pool in pools.values():
        plan = case.plan(pool)
        plan.begin(3)
        plan.run(0)
        outputs.append(case.output.numpy().copy())
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])
