"""Decode iterations by themselves: what their rows are, and what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.h200.iterations_child import Split, _inputs
from neobench.neo_engine.batch import Mode
from neobench.neo_engine.config import EngineConfig

CONFIG = EngineConfig(device_blocks=12, host_memory_bytes=24 * 2**20)


def test_no_two_rows_share_a_block_and_both_sub_batches_have_their_own() -> None:
    split = Split(device_rows=3, host_rows=2, context=50)
    assert (split.mode, split.tokens) == (Mode.ASYMMETRIC, 7)
    first = _inputs(CONFIG, split, 3, first_host_row=0)
    second = _inputs(CONFIG, split, 0, first_host_row=2)
    assert [len(batch.device) for batch in (first, second)] == [3, 0]
    on_device = [block for table in first.device.tables for block in table]
    on_host = [block for batch in (first, second) for table in batch.host.tables for block in table]
    assert len(set(on_device)) == len(on_device) == 3 * 4
    assert len(set(on_host)) == len(on_host) == 4 * 4
    assert [batch.num_requests for batch in split.sub_batches()] == [5, 2]


def test_a_tier_too_small_for_the_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="4 rows of 50 tokens need 16 of 12 blocks"):
        _inputs(CONFIG, Split(4, 0, 50), 4, first_host_row=0)


def test_the_device_alone_is_one_sub_batch() -> None:
    split = Split(device_rows=3, host_rows=0, context=50)
    assert (split.mode, len(split.sub_batches())) == (Mode.GPU_ONLY, 1)
