"""The choice of CPUs, over trees of /sys as machines have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from neobench import pacpu
from neobench.pacpu import topology

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes /sys/devices/system of `nodes` (a CPU list each) and `cores` (CPUs each); this process may use `usable`."""

    def make(nodes: Sequence[str], cores: Iterable[Sequence[int]], usable: Iterable[int]) -> Path:
        files = {f"node/node{node}/cpulist": cpus for node, cpus in enumerate(nodes)}
        files["node/possible"] = "0-7"
        for core in cores:
            siblings = ",".join(map(str, core))
            files |= {f"cpu/cpu{cpu}/topology/thread_siblings_list": siblings for cpu in core}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        allowed = set(usable)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed, raising=False)
        return tmp_path

    return make


def plain(num_cpus: int) -> list[tuple[int, ...]]:
    return [(cpu,) for cpu in range(num_cpus)]


def paired(num_cores: int) -> list[tuple[int, ...]]:
    """SMT siblings as Linux numbers them: core i has CPUs i and i + num_cores."""
    return [(core, core + num_cores) for core in range(num_cores)]


ONE_NODE = (["0-3"], plain(4), range(4))
ONE_NODE_SMT = (["0-7"], paired(4), range(8))
TWO_NODES = (["0-3", "4-7"], plain(8), range(8))
TWO_NODES_SMT = (["0-3,8-11", "4-7,12-15"], paired(8), range(16))
UNEVEN_NODES = (["0-1", "2-7", ""], plain(8), range(8))
RESTRICTED = (["0-3,8-11", "4-7,12-15"], paired(8), (2, 3, 5, 6, 7, 11, 13))
BARE = ([], [], range(4))


@pytest.mark.parametrize(
    ("shape", "nodes", "siblings_of"),
    [
        (ONE_NODE_SMT, {0: tuple(range(8))}, {1: (1, 5), 5: (1, 5)}),
        (TWO_NODES_SMT, {0: (0, 1, 2, 3, 8, 9, 10, 11), 1: (4, 5, 6, 7, 12, 13, 14, 15)}, {12: (4, 12)}),
        (UNEVEN_NODES, {0: (0, 1), 1: (2, 3, 4, 5, 6, 7)}, {7: (7,)}),
        (RESTRICTED, {0: (2, 3, 11), 1: (5, 6, 7, 13)}, {2: (2,), 3: (3, 11), 13: (5, 13)}),
        (BARE, {0: (0, 1, 2, 3)}, {3: (3,)}),
        ((["0-1"], plain(4), range(4)), {0: (0, 1, 2, 3)}, {}),
        ((["0-1", "2-3"], plain(4), (2, 3)), {1: (2, 3)}, {}),
    ],
    ids=["SMT", "two nodes", "a node without CPUs", "restricted", "bare", "CPUs of no node", "one usable node"],
)
def test_nodes_and_siblings(shape, nodes, siblings_of, machine):
    system = machine(*shape)
    assert topology.numa_nodes(system) == nodes
    siblings = topology.smt_siblings(system)
    assert tuple(siblings) == topology.usable_cpus()
    assert {cpu: siblings[cpu] for cpu in siblings_of} == siblings_of


@pytest.mark.parametrize(
    ("shape", "num_threads", "chosen"),
    [
        # CPU 0 is left free as long as the threads have room without it.
        (ONE_NODE, 1, (1,)),
        (ONE_NODE, 3, (1, 2, 3)),
        (ONE_NODE, 4, (0, 1, 2, 3)),
        (ONE_NODE, 5, None),
        # Physical cores first, the sibling of the free CPU last.
        (ONE_NODE_SMT, 3, (1, 2, 3)),
        (ONE_NODE_SMT, 4, (1, 2, 3, 5)),
        (ONE_NODE_SMT, 7, (1, 2, 3, 5, 6, 7, 4)),
        # The node with most CPUs left; where no node is large enough, from each in turn.
        (TWO_NODES, 2, (4, 5)),
        (TWO_NODES, 4, (4, 5, 6, 7)),
        (TWO_NODES, 5, (1, 4, 2, 5, 3)),
        (UNEVEN_NODES, 6, (2, 3, 4, 5, 6, 7)),
        (UNEVEN_NODES, 7, (1, 2, 3, 4, 5, 6, 7)),
        (TWO_NODES_SMT, 6, (4, 5, 6, 7, 12, 13)),
        (TWO_NODES_SMT, 9, (1, 4, 2, 5, 3, 6, 7, 9, 10)),
        # CPU 0 is not ours: the first usable core is left free instead.
        (RESTRICTED, 2, (5, 6)),
        (RESTRICTED, 4, (5, 6, 7, 13)),
        (RESTRICTED, 6, (3, 5, 6, 7, 11, 13)),
        (RESTRICTED, 7, (2, 5, 3, 6, 7, 11, 13)),
        (BARE, 2, (1, 2)),
        ((["0"], plain(1), [0]), 1, None),
    ],
)
def test_choice(shape, num_threads, chosen, machine):
    assert pacpu.choose_cpus(num_threads, system=machine(*shape)) == chosen


@pytest.mark.parametrize(
    ("reserved", "num_threads", "chosen"),
    [
        (0, 2, (0, 1)),
        (0, 5, (0, 1, 2, 3, 4)),
        (2, 3, (1, 2, 3)),
        (2, 6, (1, 2, 3, 5, 6, 7)),
        (3, 4, (2, 3, 6, 7)),
        (3, 6, (1, 2, 3, 5, 6, 7)),
        (8, 8, (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_reserved_cpus_are_whole_cores_first_and_yield_to_threads(reserved, num_threads, chosen, machine):
    system = machine(*ONE_NODE_SMT)
    assert pacpu.choose_cpus(num_threads, reserved=reserved, system=system) == chosen


@pytest.mark.parametrize("shape", [ONE_NODE, ONE_NODE_SMT, TWO_NODES, TWO_NODES_SMT, UNEVEN_NODES, RESTRICTED, BARE])
@pytest.mark.parametrize("reserved", [0, 1, 3])
def test_any_choice_is_of_distinct_usable_cpus_and_leaves_the_reserve(shape, reserved, machine):
    system, usable = machine(*shape), set(shape[2])
    for num_threads in range(1, len(usable) + 1):
        chosen = pacpu.choose_cpus(num_threads, reserved=reserved, system=system)
        assert chosen is not None
        assert len(set(chosen)) == len(chosen) == num_threads
        assert usable.issuperset(chosen)
        assert len(usable.difference(chosen)) >= min(reserved, len(usable) - num_threads)
    assert pacpu.choose_cpus(len(usable) + 1, reserved=reserved, system=system) is None


def test_no_pinning_where_the_system_has_none(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert topology.usable_cpus() == ()
    assert topology.numa_nodes() == {}
    assert pacpu.choose_cpus(1) is None


@pytest.mark.parametrize(("num_threads", "reserved", "word"), [(0, 1, "num_threads"), (1, -1, "reserved")])
def test_wrong_numbers(num_threads, reserved, word):
    with pytest.raises(ValueError, match=f"{word}: expected"):
        pacpu.choose_cpus(num_threads, reserved=reserved)


def test_a_pool_takes_the_choice_on_this_machine():
    num_threads = max(1, len(topology.usable_cpus()) - 1)
    with pacpu.WorkerPool(num_threads, cpus=pacpu.choose_cpus(num_threads)) as pool:
        assert pool.num_threads == num_threads
