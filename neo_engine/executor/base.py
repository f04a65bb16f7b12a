"""The contract of an executor: memory of the two KV tiers, and the compute of one iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.request import SamplingParams


class SampleRow(NamedTuple):
    """How one row's token is drawn: its parameters, a seed, and how many tokens the request already produced."""

    params: SamplingParams
    seed: int
    position: int


class Executor(Protocol):
    """Carries out plans; called from one thread."""

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        """Do the moves in order, then the sub-batches, and draw one token for each request whose prompt is complete.

        `sampling` has a row for each of `logit_rows`, sub-batch 0's first; so has the result. Measured stage times
        beside it, 0 for a stage that was not timed; `total_ns` always is, and so are the host's.
        """
        ...

    def measure_stages(self, every_stage: bool) -> None:
        """Whether all stages are timed from here on, where that has a cost."""
        ...

    def warm_up(self, *, offloads: bool) -> None:
        """Whatever would make the first steps slow, before there is anything to serve. Overwrites KV.

        `offloads`: there will be decodes on the host.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for reports: threads, kernels, bytes of the tiers."""
        ...

    def close(self) -> None: ...


class AheadExecutor(Executor, Protocol):
    """One that takes the next iteration while it carries out another, so that planning costs the device no time."""

    @property
    def runs_ahead(self) -> bool:
        """True; an executor without it, or with False, is asked to `execute` alone."""
        ...

    def start(self, batches: Sequence[BatchInputs], moves: Sequence[BlockMove], sampling: Sequence[SampleRow]) -> None:
        """As `execute`, but does not wait for the end: `finish` does.

        A second may be started before the first is finished where both are one sub-batch with nothing on the host, no
        moves, and greedy rows. A token id of -1 - i in it stands for token i of the first, which nobody knows yet.
        """
        ...

    def finish(self) -> tuple[list[int], StageTimes]:
        """As `execute`, of the first that was started; its total is how long it kept the next waiting."""
        ...

    def discard(self) -> None:
        """After an error: nothing is under way any longer."""
        ...


def ahead_executor(executor: Executor) -> AheadExecutor | None:
    """The executor, where it can run ahead."""
    return cast(AheadExecutor, executor) if getattr(executor, "runs_ahead", False) else None
