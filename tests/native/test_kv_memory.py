"""The slab of a KV cache: alignment, residency, lifetime, refusals, and what it says of its huge pages."""

from __future__ import annotations

import gc
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from neobench import pacpu
from neobench.pacpu import memory

MIB = 1 << 20
HUGE_PAGE_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mapping_of(array: np.ndarray) -> tuple[int, int, dict[str, str]]:
    """First and last address of the mapping that holds the array, and the fields of /proc/self/smaps."""
    found: tuple[int, int, dict[str, str]] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key.endswith(":"):
            if found:
                found[2][key[:-1]] = value.strip()
        elif found:
            return found
        else:
            first, last = (int(address, 16) for address in key.split("-"))
            found = (first, last, {}) if first <= array.ctypes.data < last else None
    raise AssertionError("no mapping")


def mapped_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("num_threads", [None, 1, 3])
@pytest.mark.parametrize("num_bytes", [1, 4097, 2 * MIB, 7 * MIB + 123])
def test_zeros_aligned_and_writable(num_bytes, num_threads, pools):
    array = pacpu.KvMemory(num_bytes, pool=pools.get(num_threads)).array
    assert (array.dtype, array.shape) == (np.uint8, (num_bytes,))
    assert array.ctypes.data % (2 * MIB) == 0
    assert not array.any()
    array[:] = 255
    assert array.min() == 255


@pytest.mark.parametrize("num_threads", [None, 2])
def test_every_page_is_resident_before_the_first_use(num_threads, pools, monkeypatch):
    monkeypatch.setattr(memory, "PIECE_BYTES", 4 * MIB)
    slab = pacpu.KvMemory(33 * MIB + 1, pool=pools.get(num_threads))
    _, _, fields = mapping_of(slab.array)
    assert int(fields["Rss"].split()[0]) << 10 > 33 * MIB


def test_the_threads_of_the_pool_take_the_page_faults(pools):
    def faults_of_caller(pool: pacpu.WorkerPool | None) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        pacpu.KvMemory(256 * MIB, pool=pool)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    num_huge_pages = 128
    assert faults_of_caller(None) >= num_huge_pages
    assert faults_of_caller(pools[2]) < num_huge_pages


def test_neighbours_are_never_joined_to_it():
    """Or the huge pages of one slab would count for another."""
    for slab in [pacpu.KvMemory(3 * MIB) for _ in range(3)]:
        first, last, _ = mapping_of(slab.array)
        assert (first, last - first) == (slab.array.ctypes.data, 4 * MIB)


@pytest.mark.skipif(not HUGE_PAGE_SETTING.exists(), reason="no transparent huge pages")
def test_huge_pages_are_asked_for():
    _, _, fields = mapping_of(pacpu.KvMemory(4 * MIB).array)
    assert "hg" in fields["VmFlags"].split()


def test_the_array_outlives_its_owner_and_frees_with_its_last_view():
    before = mapped_bytes()
    view = pacpu.KvMemory(512 * MIB).array[100 * MIB :].view(np.int32)
    gc.collect()
    view[:] = 7
    assert (view == 7).all()
    assert mapped_bytes() - before > 500 * MIB
    del view
    assert mapped_bytes() - before < 256 * MIB


def test_progress_counts_the_bytes_touched(monkeypatch):
    monkeypatch.setattr(memory, "PIECE_BYTES", 4 * MIB)
    seen: list[int] = []
    pacpu.KvMemory(9 * MIB, on_progress=seen.append)
    assert seen == [4 * MIB, 8 * MIB, 9 * MIB]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_touch_leaves_no_mapping(kind, pools):
    before = mapped_bytes()

    def interrupt(touched_bytes: int) -> None:
        raise kind(f"after {touched_bytes}")

    with pytest.raises(kind, match=f"^after {memory.PIECE_BYTES}$") as caught:
        pacpu.KvMemory(512 * MIB, pool=pools[2], on_progress=interrupt)
    assert caught.tb is not None, "a traceback that is kept must not keep the memory"
    assert mapped_bytes() - before < 256 * MIB


def test_a_closed_pool_is_an_error_and_leaves_no_mapping():
    before = mapped_bytes()
    pool = pacpu.WorkerPool(1)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pacpu.KvMemory(512 * MIB, pool=pool)
    assert mapped_bytes() - before < 256 * MIB


@pytest.mark.parametrize("num_bytes", [0, -1])
def test_no_bytes_at_all(num_bytes):
    with pytest.raises(ValueError, match=f"num_bytes: expected 1 or more, got {num_bytes}"):
        pacpu.KvMemory(num_bytes)


def test_more_than_is_available_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * MIB)
    with pytest.raises(MemoryError, match=rf"at most the {3 * MIB} bytes .* got {4 * MIB} bytes"):
        pacpu.KvMemory(4 * MIB)
    pacpu.KvMemory(3 * MIB)


@pytest.mark.parametrize("num_bytes", [1 << 50, 1 << 70])
def test_more_than_any_machine_has(num_bytes):
    with pytest.raises(MemoryError, match=str(num_bytes)):
        pacpu.KvMemory(num_bytes)


def test_a_refusal_of_the_system_says_how_much_was_wanted_and_is_free():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + 64 * MIB, hard))
    try:
        with pytest.raises(MemoryError, match=rf"refused {256 * MIB} bytes .* although \d+ bytes .*ulimit -v"):
            pacpu.KvMemory(256 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "300\n", "memory.stat": "anon 1\n"}, [700]),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "300\n", "memory.stat": "anon 1\n"}, []),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "1000\n",
                "job/memory.current": "1100\n",
                "job/memory.stat": "anon 400\ninactive_file 650\n",
                "job/step/memory.max": "800\n",
                "job/step/memory.current": "900\n",
                "job/step/memory.stat": "inactive_file 0\n",
            },
            [550, -100],
        ),
        (
            "5:cpu,memory:/docker/abc\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "500\n",
                "memory/memory.usage_in_bytes": "400\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
            },
            [120],
        ),
        ("4:pids:/\n", {"memory.max": "1\n", "memory.current": "1\n", "memory.stat": ""}, []),
    ],
    ids=["container", "no limit", "nested", "version 1", "no memory controller"],
)
def test_limits_of_cgroups(own, files, left, tmp_path, monkeypatch):
    write_files(tmp_path, files)
    write_files(tmp_path, {"own": own})
    monkeypatch.setattr(memory, "_CGROUP_MOUNT", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    assert memory._cgroup_available_bytes(tmp_path, tmp_path / "own") == left
    if left:
        assert memory.available_bytes() == max(0, min(left))
    else:
        assert memory.available_bytes() > MIB


def test_available_bytes_without_cgroups(tmp_path):
    assert memory._cgroup_available_bytes(tmp_path, tmp_path / "missing") == []


SMAPS = """\
1000-3000 rw-p 00000000 00:00 0
Rss:                   8 kB
AnonHugePages:      1024 kB
3000-5000 rw-p 00000000 00:00 0                          [anon: name: with colons]
AnonHugePages:      4096 kB
VmFlags: rd wr hg
5000-6000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
6000-7000 r--p 00000000 fe:00 2                          /lib/x
AnonHugePages:       512 kB
"""


def test_huge_pages_of_an_address_range(tmp_path):
    (tmp_path / "smaps").write_text(SMAPS)
    assert memory._huge_page_bytes(0x3000, 0x6000, tmp_path / "smaps") == 6 * MIB
    assert memory._huge_page_bytes(0x3000, 0x4FFF, tmp_path / "smaps") == 4 * MIB
    assert memory._huge_page_bytes(0x7000, 0x8000, tmp_path / "smaps") == 0
    assert memory._huge_page_bytes(0x3000, 0x6000, tmp_path / "missing") == 0


def test_describe_agrees_with_the_system():
    slab = pacpu.KvMemory(8 * MIB)
    facts = slab.describe()
    granted = int(mapping_of(slab.array)[2]["AnonHugePages"].split()[0]) << 10
    assert (facts["bytes"], facts["huge_page_bytes"]) == (8 * MIB, granted)
    assert facts["huge_pages"] == {0: "none", 8 * MIB: "all"}.get(granted, "some")
    assert (facts["note"] is None) == (facts["huge_pages"] == "all")


@pytest.mark.parametrize(
    ("setting", "huge_bytes", "words"),
    [
        ("always madvise [never]\n", 0, "enabled is .never.; to allow 2 MiB pages: echo madvise .* /"),
        ("always [madvise] never\n", 2 * MIB, f"only {2 * MIB} bytes .* of {4 * MIB} bytes .*fragmented"),
        (None, 0, "no transparent huge pages: there is no .*enabled"),
    ],
)
def test_why_there_are_no_huge_pages(setting, huge_bytes, words, tmp_path):
    path = tmp_path / "enabled"
    if setting:
        path.write_text(setting)
    note = memory._huge_page_note(4 * MIB, huge_bytes, path)
    assert note is not None
    assert re.search(words, note)
    assert memory._huge_page_note(4 * MIB, 4 * MIB, path) is None
