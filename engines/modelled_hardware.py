"""neobench's own engine on a machine that need not be there: in process, in virtual time, without a server.

Requests, policies and block tables are those of a real run; the executor alone is a model. It says how long a step
takes, and the engine's task sleeps for so long before it hands out the step's tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from neobench.engines.launch import Launch, PromptLimits, nearest_names
from neobench.engines.modelled_entries import OPTIONS
from neobench.harness.engine import Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.neo_engine.config import ConfigError, EngineConfig
from neobench.neo_engine.cost_model import CostModel, ProfileError
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.executor.modelled import TOKEN, ModelledExecutor, Noise
from neobench.neo_engine.modelled_machine import ModelledMachine, machine_of
from neobench.neo_engine.request import RequestRejectedError, SamplingParams, TokenOutput
from neobench.neo_engine.settings import config_of
from neobench.results.record import Outcome

DEFAULT_DTYPE = "float16"
_MACHINE_OPTIONS = ("hardware", "host_bandwidth", "noise")
_OF_THIS_MACHINE = ("scheduling_ns",)
"""Counters of Python's own time: not the modelled machine's, and another in every run."""


@dataclass(frozen=True)
class Model:
    """Everything that an engine is made of, before it is."""

    config: EngineConfig
    machine: ModelledMachine
    noise: Noise

    def engine(self) -> tuple[NeoEngine, ModelledExecutor]:
        costs = CostModel(self.machine.tables, self.config.shape.num_layers)
        facts = {"hardware": self.machine.name, **self.machine.facts}
        executor = ModelledExecutor(costs, self.config.block_size, self.noise, facts)
        return NeoEngine(self.config, executor, costs), executor


def model_of(
    model: str,
    options: Mapping[str, Any],
    *,
    policy: str,
    argument: str | None = None,
    step_overhead_ns: int | None = None,
    **fixed: Any,
) -> Model:
    """`argument` is vLLM's token budget; `step_overhead_ns` stands in place of the engine's own cost of a step.

    Raises EngineError for options that cannot work.
    """
    for option in options:
        if option not in OPTIONS:
            raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, OPTIONS)}?")
    settings = {name: value for name, value in options.items() if name not in _MACHINE_OPTIONS and value is not None}
    settings = {"dtype": DEFAULT_DTYPE, "model": model, **settings, **fixed}
    if argument is not None:
        settings["max_batch_tokens"] = _token_budget(argument)
    try:
        machine = machine_of(
            options["hardware"],
            config_of(settings, policy=policy),
            host_bandwidth=options.get("host_bandwidth") or "typical",
            kv_is_given="device_blocks" in settings,
        )
        config = config_of(_with_kv_of(machine, settings), policy=policy)
        noise = Noise(options.get("noise") or 0.0, config.seed)
    except (ConfigError, ProfileError) as error:
        raise EngineError(str(error)) from None
    if step_overhead_ns is not None:
        machine = replace(machine, tables=replace(machine.tables, step_fixed_ns=float(step_overhead_ns)))
    return Model(config, machine, noise)


def _token_budget(argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise EngineError(f"{argument!r} is not a number of tokens; write e.g. vllm:512")
    return int(argument)


def _with_kv_of(machine: ModelledMachine, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks and host memory as given, or else what the machine has."""
    from_machine = {"device_blocks": machine.device_blocks, "host_memory": machine.host_memory_bytes}
    known = {name: value for name, value in from_machine.items() if value is not None}
    return {**known, **settings}


def limits(model: str, options: Mapping[str, Any], *, policy: str, **of_name: Any) -> PromptLimits:
    """Raises EngineError for a model, a machine, settings or an argument that cannot work."""
    config = model_of(model, options, policy=policy, **of_name).config
    return PromptLimits(vocab_size=config.shape.vocab_size, max_model_tokens=config.max_request_tokens)


class _Served(NamedTuple):
    """A request on its way, and who waits for it."""

    sink: TokenSink
    ended: asyncio.Future[None]


class ModelledHardwareEngine:
    """Meant for a VirtualTimeLoop; on another loop it takes as long as the machine would."""

    process_id = None

    def __init__(self, name: str, launch: Launch, *, policy: str, **fixed: Any) -> None:
        self.name = name
        self._model = model_of(launch.model, launch.options, policy=policy, argument=launch.argument, **fixed)
        self._engine, self._executor = self._model.engine()
        self._served: dict[int, _Served] = {}
        self._has_work = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._failure: EngineError | None = None

    async def start(self) -> None:
        assert self._steps is None, f"{self.name} is started already"
        self._steps = asyncio.create_task(self._run())

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        self._check()
        params = SamplingParams(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True)
        try:
            request_id = self._engine.add_request([TOKEN] * request.prompt_tokens, params)
        except RequestRejectedError as error:
            return Completion(outcome=Outcome.HTTP_ERROR, http_status=400, error=str(error))
        served = _Served(sink, asyncio.get_running_loop().create_future())
        self._served[request_id] = served
        self._has_work.set()
        try:
            await served.ended
        finally:
            if self._served.pop(request_id, None) is not None:
                self._engine.abort(request_id)
        return Completion(outcome=Outcome.OK, output_tokens=request.output_tokens, prompt_tokens=request.prompt_tokens)

    async def _run(self) -> None:
        try:
            while True:
                if not self._engine.has_work:
                    self._has_work.clear()
                    await self._has_work.wait()
                outputs = self._engine.step()
                await asyncio.sleep(self._executor.elapsed_ns / 1e9)
                self._hand_out(outputs)
        except Exception as error:
            self._failure = EngineError(f"the modelled engine failed: {type(error).__name__}: {error}")
            for served in self._served.values():
                served.ended.set_exception(self._failure)
            self._served.clear()

    def _hand_out(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            served = self._served.get(output.request_id)
            if served is None:
                continue  # aborted while the step was under way
            served.sink.tokens_arrived()
            if output.finish_reason is not None:
                del self._served[output.request_id]
                if not served.ended.done():
                    served.ended.set_result(None)

    async def check_alive(self) -> None:
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._steps is None:
            raise EngineError(f"{self.name} is not started")

    async def describe(self) -> Mapping[str, Any]:
        return {**self._engine.info(), "name": self.name}

    async def stats(self) -> Mapping[str, int | float]:
        return {name: value for name, value in self._engine.stats().items() if name not in _OF_THIS_MACHINE}

    async def stop(self) -> None:
        if self._steps is not None:
            self._steps.cancel()
            await asyncio.gather(self._steps, return_exceptions=True)
            self._steps = None
            self._engine.close()
