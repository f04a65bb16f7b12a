import os
import subprocess
import sys
import time

import psutil
import pytest

from neobench.harness.telemetry.cpu import CoreTimes, CpuSampler, ProcessTree, core_shares, cpu_stat_path, throttled_ms

SPIN = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


def spin_for(seconds: float) -> None:
    """CPU time, so that it is the same on a busy machine."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def spinning_child():
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    yield child
    child.kill()
    child.wait()


def wait_for_cpu(pid: int, seconds: float) -> None:
    process = psutil.Process(pid)
    start = process.cpu_times().user
    deadline = time.monotonic() + 60
    while process.cpu_times().user - start < seconds:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_work_in_this_process_is_the_clients():
    sampler = CpuSampler(os.getpid())
    sampler.open()
    start_s = time.perf_counter()
    spin_for(0.3)
    values = sampler.sample()
    elapsed_s = time.perf_counter() - start_s
    assert values["client_cpu_percent"] == pytest.approx(100 * 0.3 / elapsed_s, abs=100 * 0.06 / elapsed_s)
    assert values["client_rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert "engine_cpu_percent" not in values
    assert 0 < values["cpu_percent"] <= 100
    assert len(values["core_percent"]) == psutil.cpu_count()
    assert 0 <= values["cpu_steal_percent"] <= 100
    assert values["other_cpu_percent"] <= values["cpu_percent"]


def test_work_of_the_engine_is_not_the_clients(spinning_child):
    sampler = CpuSampler(spinning_child.pid)
    sampler.open()
    wait_for_cpu(spinning_child.pid, 0.4)
    values = sampler.sample()
    assert values["engine_cpu_percent"] > values["client_cpu_percent"]
    assert values["engine_rss_bytes"] > 1e6


def test_work_of_a_child_that_is_no_engine_is_the_clients(spinning_child):
    sampler = CpuSampler(None)
    sampler.open()
    wait_for_cpu(spinning_child.pid, 0.4)
    values = sampler.sample()
    assert values["client_cpu_percent"] > 0
    assert "other_cpu_percent" not in values, "an engine elsewhere on this machine would be in it"


def test_a_process_that_has_died_is_no_failure(spinning_child):
    tree = ProcessTree(spinning_child.pid)
    tree.read()
    spinning_child.kill()
    spinning_child.wait()
    assert tree.read() == (0.0, 0)


def test_shares_are_of_the_time_of_all_cpus():
    before = [CoreTimes(100, 50, 0), CoreTimes(100, 20, 0)]
    after = [CoreTimes(110, 60, 0), CoreTimes(110, 20, 5)]
    assert core_shares(before, after) == {
        "cpu_percent": 50.0,
        "cpu_steal_percent": 25.0,
        "core_percent": [100.0, 0.0],
    }
    assert core_shares(before, before) == {}


def test_an_idle_core_is_never_less_than_idle() -> None:
    before, after = CoreTimes(total=10.0, busy=2.0, steal=0.0), CoreTimes(total=11.0, busy=2.0 - 1e-9, steal=0.0)
    assert core_shares([before], [after])["core_percent"] == [0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("usage_usec 5\nnr_throttled 2\nthrottled_usec 1500\n", 1.5),
        ("nr_periods 0\nnr_throttled 0\nthrottled_time 2500000\n", 2.5),
        ("usage_usec 5\nuser_usec 5\n", None),
    ],
)
def test_throttled_time_of_both_cgroup_versions(text, expected):
    assert throttled_ms(text) == expected


@pytest.mark.parametrize(
    ("membership", "folder"),
    [
        ("0::/user/me\n", "user/me"),
        ("4:memory:/x\n1:cpu,cpuacct:/user/me\n0::/\n", "cpu,cpuacct/user/me"),
        ("1:cpu:/hidden/outside\n0::/\n", "cpu"),
    ],
)
def test_the_own_cgroup_is_found(tmp_path, membership, folder):
    (tmp_path / "cgroup").write_text(membership)
    (tmp_path / "fs" / folder).mkdir(parents=True)
    stat = tmp_path / "fs" / folder / "cpu.stat"
    stat.write_text("throttled_usec 1\n" if membership.startswith("0") else "throttled_time 1\n")
    assert cpu_stat_path(tmp_path / "fs", tmp_path / "cgroup") == stat


def test_no_cgroup_is_none(tmp_path):
    assert cpu_stat_path(tmp_path, tmp_path / "missing") is None
