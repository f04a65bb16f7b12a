"""From options to the engine's settings: how large the KV of a GPU is to be."""

from __future__ import annotations

from typing import Any

import click
import pytest

from neobench.cli.engine_config import engine_config
from neobench.neo_engine.config import EngineConfig


@pytest.mark.parametrize(
    ("options", "fraction", "blocks"),
    [
        ({}, None, EngineConfig.device_blocks),
        ({"device": "cuda"}, 0.9, EngineConfig.device_blocks),
        ({"device": "cuda", "device_memory_fraction": 0.5}, 0.5, EngineConfig.device_blocks),
        ({"device": "cuda", "device_blocks": 7}, None, 7),
        ({"sms": 8}, 0.9, EngineConfig.device_blocks),
        ({"sms": 8, "device_blocks": 7}, None, 7),
    ],
)
def test_the_kv_of_a_gpu_takes_what_fits_unless_blocks_are_given(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], fraction: float | None, blocks: int
) -> None:
    monkeypatch.setattr("neobench.cli.engine_config.check_emulation", lambda: None)
    config = engine_config(options, policy="gpu_only")
    assert (config.device_memory_fraction, config.device_blocks) == (fraction, blocks)


def test_a_card_implies_the_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neobench.cli.engine_config.check_emulation", lambda: None)
    assert engine_config({"emulate": "t4"}, policy="gpu_only").device_memory_fraction is None


@pytest.mark.parametrize("fixed", [{"device": "cuda", "device_blocks": 7}, {"emulate": "t4"}])
def test_a_fraction_of_what_is_fixed_is_refused(fixed: dict[str, Any]) -> None:
    with pytest.raises(click.UsageError, match="leave one of them out"):
        engine_config({"device_memory_fraction": 0.5, **fixed}, policy="gpu_only")
