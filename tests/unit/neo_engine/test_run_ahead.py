"""Iterations queued behind one another: the same tokens, and nothing left behind by what ends in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.batch import Mode  # noqa: E402
from neobench.neo_engine.config import EngineConfig  # noqa: E402
from neobench.neo_engine.cost_model import CostModel  # noqa: E402
from neobench.neo_engine.engine import NeoEngine  # noqa: E402
from neobench.neo_engine.executor.base import SampleRow  # noqa: E402
from neobench.neo_engine.executor.gpu import GpuExecutor  # noqa: E402
from neobench.neo_engine.executor.inputs import BatchInputs, DecodeInput  # noqa: E402
from neobench.neo_engine.kv_cache.block_tables import BlockMove  # noqa: E402
from neobench.neo_engine.model.llama import LlamaModel  # noqa: E402
from neobench.neo_engine.model.weights import build_model  # noqa: E402
from neobench.neo_engine.request import SamplingParams  # noqa: E402

CONFIG = EngineConfig(policy="chunked_prefill", device_blocks=40, host_threads=1, max_batch_tokens=64)
CONFIG = replace(CONFIG, host_memory_bytes=0)


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    return build_model(CONFIG, device=torch.device("cpu"))


class Watched(GpuExecutor):
    """Counts what is started, and how often beside another; `ahead` off is what the others must equal."""

    def __init__(self, config: EngineConfig, model: LlamaModel, *, ahead: bool = True) -> None:
        self.runs_ahead = ahead
        self.starts = self.beside = self.unknown_tokens = 0
        super().__init__(config, model)

    def start(self, batches: Sequence[BatchInputs], moves: Sequence[BlockMove], sampling: Sequence[SampleRow]) -> None:
        self.starts += 1
        self.beside += bool(self._started)
        self.unknown_tokens += sum(token_id < 0 for batch in batches for token_id in batch.token_ids)
        if self._started:
            assert not moves
            assert not any(batch.host for batch in batches)
        super().start(batches, moves, sampling)


@pytest.fixture
def make(model: LlamaModel, costs: CostModel) -> Iterator[Callable[..., tuple[NeoEngine, Watched]]]:
    made: list[NeoEngine] = []

    def make(*, ahead: bool = True, config: EngineConfig = CONFIG) -> tuple[NeoEngine, Watched]:
        executor = Watched(config, model, ahead=ahead)
        made.append(NeoEngine(config, executor, costs))
        return made[-1], executor

    yield make
    for engine in made:
        engine.close()


def requests(count: int, **params: object) -> list[tuple[list[int], SamplingParams]]:
    rng = np.random.default_rng(1)
    return [
        (
            rng.integers(0, 4096, int(rng.integers(1, 90))).tolist(),
            SamplingParams(
                **{"max_tokens": int(rng.integers(1, 30)), "temperature": 0.0, "ignore_eos": True, **params}
            ),
        )
        for _ in range(count)
    ]


def serve(engine: NeoEngine, pending: list[tuple[list[int], SamplingParams]]) -> list[list[int | None]]:
    """Tokens by request, two arriving each step."""
    tokens: dict[int, list[int | None]] = {}
    pending = list(pending)
    while pending or engine.has_work:
        for prompt, params in pending[:2]:
            tokens[engine.add_request(prompt, params)] = []
        del pending[:2]
        for output in engine.step():
            tokens[output.request_id].append(output.token_id)
    assert engine.stats()["device_blocks_used"] == 0
    return list(tokens.values())


def test_iterations_queue_up_and_make_the_same_tokens(make: Callable[..., tuple[NeoEngine, Watched]]) -> None:
    """Through a device tier so small that requests are preempted."""
    expected = serve(make(ahead=False)[0], requests(20))
    engine, executor = make()
    assert serve(engine, requests(20)) == expected
    assert engine.stats()["preemptions"] > 0
    assert executor.beside > 0.8 * executor.starts
    assert executor.unknown_tokens > 100


def test_a_stop_token_ends_a_request_that_is_in_the_next_iteration_already(
    make: Callable[..., tuple[NeoEngine, Watched]],
) -> None:
    free = serve(make(ahead=False)[0], requests(6, max_tokens=24))
    stop = tuple(tokens[len(tokens) // 2] for tokens in free if tokens[len(tokens) // 2] is not None)
    expected = serve(make(ahead=False)[0], requests(6, max_tokens=24, stop_token_ids=stop))
    assert any(len(short) < len(long) for short, long in zip(expected, free, strict=True))
    assert serve(make()[0], requests(6, max_tokens=24, stop_token_ids=stop)) == expected


def test_requests_that_are_drawn_run_between_those_that_are_not(
    make: Callable[..., tuple[NeoEngine, Watched]],
) -> None:
    mixed = requests(6) + requests(6, temperature=0.8, seed=5) + requests(6)
    engine, executor = make()
    assert serve(engine, mixed) == serve(make(ahead=False)[0], mixed)
    assert 0 < executor.beside < executor.starts


def test_an_aborted_request_leaves_nothing_behind(make: Callable[..., tuple[NeoEngine, Watched]]) -> None:
    engine, executor = make()
    ids = [engine.add_request(prompt, params) for prompt, params in requests(3, max_tokens=20)]
    for _ in range(5):
        engine.step()
    assert executor._started
    for request_id in ids:
        engine.abort(request_id)
    assert engine.has_work, "an iteration is under way"
    assert engine.step() == []
    assert not engine.has_work
    assert engine.stats()["device_blocks_used"] == 0


@pytest.mark.parametrize("call", ["start", "finish"])
def test_after_an_error_requests_go_on_from_where_they_were(
    make: Callable[..., tuple[NeoEngine, Watched]], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    expected = serve(make(ahead=False)[0], requests(4, max_tokens=12))
    engine, executor = make()
    tokens: dict[int, list[int | None]] = {}
    for prompt, params in requests(4, max_tokens=12):
        tokens[engine.add_request(prompt, params)] = []

    def fails(*_: object) -> None:
        raise ArithmeticError("as if a kernel had failed")

    step = 0
    while engine.has_work:
        step += 1
        if step in (4, 9):
            with monkeypatch.context() as broken:
                broken.setattr(executor, call, fails)
                with pytest.raises(ArithmeticError):
                    engine.step()
        for output in engine.step():
            tokens[output.request_id].append(output.token_id)
    assert list(tokens.values()) == expected


def test_with_rows_on_the_host_plans_are_made_ahead_and_hold_until_somebody_comes_or_goes(
    make: Callable[..., tuple[NeoEngine, Watched]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, policy="full_offload", host_memory_bytes=120 * CONFIG.block_bytes(CONFIG.host_layout))
    expected = serve(make(ahead=False, config=config)[0], requests(8, max_tokens=12))
    engine, executor = make(config=config)
    assert serve(engine, requests(8, max_tokens=12)) == expected
    assert executor.beside == 0
    stop = tuple(tokens[4] for tokens in expected if tokens[4] is not None)
    free = serve(make(ahead=False, config=config)[0], requests(8, max_tokens=12, stop_token_ids=stop))
    assert serve(make(config=config)[0], requests(8, max_tokens=12, stop_token_ids=stop)) == free

    engine, _ = make(config=config)
    for prompt, params in requests(3, max_tokens=12):
        engine.add_request(prompt, params)
    engine.step()
    planned = engine._planned
    assert planned is not None
    carried_out = []
    real = engine._apply
    monkeypatch.setattr(engine, "_apply", lambda plan: carried_out.append(plan) or real(plan))
    engine.step()
    assert carried_out == [planned]
    latest = engine.add_request([1, 2, 3], SamplingParams(max_tokens=3, temperature=0.0))
    engine.step()
    assert latest in {row.request_id for batch in carried_out[-1].sub_batches for row in batch.prefills}


def test_the_hosts_time_is_counted_in_the_iteration_that_had_it(
    make: Callable[..., tuple[NeoEngine, Watched]],
) -> None:
    config = replace(CONFIG, policy="full_offload", host_memory_bytes=120 * CONFIG.block_bytes(CONFIG.host_layout))
    _, executor = make(config=config)
    none = DecodeInput((), ())
    device, host = (
        BatchInputs([1], [0], (), *((one, none) if on_device else (none, one)))
        for on_device, one in ((True, DecodeInput(((0,),), (1,))), (False, DecodeInput(((0,),), (1,))))
    )
    row = SampleRow(SamplingParams(temperature=0.0), seed=0, position=0)
    _, with_host = executor.execute(Mode.SERIAL, [host], (), [row])
    _, without = executor.execute(Mode.GPU_ONLY, [device], (), [row])
    assert with_host.host_decode_ns > 0
    assert without.host_decode_ns == 0
