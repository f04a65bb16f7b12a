"""Which share of a GPU a card gets, and that its restriction is entered around every step and left again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import USABLE_MEMORY_FRACTION, ConfigError, EngineConfig
from neobench.neo_engine.emulation import (
    CARDS,
    emulated_settings,
    kv_blocks_left,
    resolve_card,
)

torch = pytest.importorskip("torch")

from neobench.neo_engine.build import build_executor  # noqa: E402
from neobench.neo_engine.device_limits import copy_bytes_per_s, gemm_flops_per_s  # noqa: E402
from neobench.neo_engine.green_context import RestrictedExecutor, Restriction, create_context  # noqa: E402

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")


class RecordingContext:
    """Stands for a green context, which needs a GPU."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def set_context(self) -> None:
        self.events.append("set")

    def pop_context(self) -> None:
        self.events.append("pop")


class RecordingExecutor:
    def __init__(self, events: list[str], error: Exception | None = None) -> None:
        self._events = events
        self._error = error

    def execute(
        self, mode: Mode, batches: Sequence[Any], moves: Sequence[Any], sampling: Sequence[Any]
    ) -> tuple[list[int], StageTimes]:
        self._events.append(f"execute {mode.value} {len(batches)} {len(moves)} {len(sampling)}")
        if self._error is not None:
            raise self._error
        return [7], StageTimes(total_ns=5)

    def describe(self) -> dict[str, Any]:
        return {"executor": "recording"}

    def close(self) -> None:
        self._events.append("close")


def restriction(context: RecordingContext) -> Restriction:
    return Restriction(context, card="a10g", sms=8, device=torch.device("cpu"))


def test_kv_blocks_are_what_16_bit_weights_leave_of_the_card() -> None:
    card = CARDS["a10g"]
    config = EngineConfig(model="llama-3.1-8b", dtype="bfloat16")
    blocks = kv_blocks_left(card, config)
    kv_bytes_per_token = 2 * 32 * 8 * 128 * 2
    used = config.shape.num_parameters * 2 + blocks * 16 * kv_bytes_per_token
    budget = USABLE_MEMORY_FRACTION * 23028 * 2**20
    assert used <= budget < used + 16 * kv_bytes_per_token
    assert kv_blocks_left(card, replace(config, dtype="float32")) == blocks // 2


def test_a_model_larger_than_the_card_is_refused() -> None:
    config = EngineConfig(model="llama-3.1-70b", dtype="float16")
    with pytest.raises(ConfigError, match=r"131\.\d GiB of weights in 16 bits, and the h100 has 79\.6 GiB"):
        kv_blocks_left(CARDS["h100"], config)


def test_a_card_fills_in_what_is_not_given() -> None:
    settings = {"model": "llama-3.1-8b", "dtype": "bfloat16", "emulate": "a10g"}
    filled = EngineConfig(**emulated_settings(settings))
    assert (filled.device, filled.sms, filled.host_threads, filled.emulate) == ("cuda", 8, 8, "a10g")
    assert filled.device_blocks == kv_blocks_left(CARDS["a10g"], filled)
    given = EngineConfig(**emulated_settings({**settings, "sms": 16, "device_blocks": 1650, "host_threads": 2}))
    assert (given.sms, given.device_blocks, given.host_threads) == (16, 1650, 2)


def test_settings_without_emulation_stay_as_they_are() -> None:
    assert emulated_settings({"model": "tiny"}) == {"model": "tiny"}
    assert emulated_settings({"sms": 16}) == {"sms": 16, "device": "cuda"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sms": 8}, "device is 'cpu'"),
        ({"sms": 12, "device": "cuda"}, "multiple of 8, not 12"),
        ({"sms": 0, "device": "cuda"}, "multiple of 8, not 0"),
        ({"emulate": "a10g", "device": "cuda"}, "sms is not set"),
        ({"device": "tpu"}, "not one of cpu, cuda"),
    ],
)
def test_impossible_restrictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


def test_an_unknown_card_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown card 'a10'; did you mean a10g\?"):
        resolve_card("a10")


def test_every_card_can_be_had_from_an_h200() -> None:
    for card in CARDS.values():
        assert EngineConfig(device="cuda", sms=card.sms).sms == card.sms
        assert card.sms < 132


@needs_no_gpu
def test_without_a_gpu_a_restriction_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="torch finds none here"):
        create_context(8, torch.device("cuda"))
    with pytest.raises(ConfigError, match="torch finds none here"):
        build_executor(EngineConfig(model="llama-3.1-70b", device="cuda", sms=8))


def test_no_restriction_without_sms() -> None:
    assert Restriction.of(EngineConfig()) is None


def test_every_step_runs_inside_the_restriction() -> None:
    context = RecordingContext()
    executor = RestrictedExecutor(RecordingExecutor(context.events), restriction(context))
    for _ in range(2):
        assert executor.execute(Mode.GPU_ONLY, (), (), ()) == ([7], StageTimes(total_ns=5))
    executor.close()
    assert context.events == [*["set", "execute gpu_only 0 0 0", "pop"] * 2, "close"]


def test_the_restriction_is_left_when_a_step_fails() -> None:
    context = RecordingContext()
    executor = RestrictedExecutor(RecordingExecutor(context.events, RuntimeError("lost")), restriction(context))
    with pytest.raises(RuntimeError, match="lost"):
        executor.execute(Mode.SERIAL, (), (), ())
    assert context.events[-1] == "pop"


def test_what_the_restricted_device_reaches_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neobench.neo_engine.green_context.copy_bytes_per_s", lambda _device: 637e9)
    monkeypatch.setattr("neobench.neo_engine.green_context.gemm_flops_per_s", lambda _device: 54.04e12)
    context = RecordingContext()
    measured = restriction(context)
    facts = {"card": "a10g", "sms": 8, "copy_gbps": 637.0, "fp16_tflops": 54.0}
    assert measured.measure() == facts
    assert context.events == ["set", "pop"]
    executor = RestrictedExecutor(RecordingExecutor(context.events), measured)
    assert executor.describe() == {"executor": "recording", "emulation": facts}


def test_limits_of_a_device_are_plausible() -> None:
    cpu = torch.device("cpu")
    assert 1e8 < copy_bytes_per_s(cpu, num_bytes=2**26) < 1e13
    assert 1e8 < gemm_flops_per_s(cpu, torch.float32, size=256) < 1e15
