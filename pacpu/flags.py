"""Attention started by flags in memory: a GPU stream raises them and waits for the answers, without Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neobench.pacpu import _native
from neobench.pacpu.arrays import ArrayInfo, inspect_array, require_contiguous_tail, require_shape
from neobench.pacpu.plan import DecodePlan, WorkerPool

MAX_TIMEOUT_S = 3600


class FlagSequence:
    """Layers of an iteration, each started when its `ready` flag is raised and answered by its `done` flag.

    ready, done   uint32 or int32 [num_slots]: numpy arrays or torch tensors in CPU memory, pinned or not; kept alive.
                  Lowered (set to 0) here. A slot stands for one layer of one sub-batch.

    For each step in turn the GPU puts query, new_key and new_value of the plan in place, writes 1 to ready[slot] and,
    before it uses the output, waits until done[slot] is 1. It writes and awaits no other value: a worker lowers
    ready[slot] when it sees it, and with it the done flag of the same sub-batch's previous step, which may be of the
    previous sequence. Flags are to be raised in the order of the steps, and within a sub-batch after the step before
    is done; steps of several sub-batches may be under way at once.

    While a sequence is armed the workers of the pool do not sleep, and one sequence a pool can be armed. A sequence
    that ends early raises the done flags of all steps it did not start, so that the GPU ends, over useless data.
    One thread at a time may use this object, except for `cancel`. Dropping it cancels.
    """

    def __init__(self, pool: WorkerPool, *, ready: Any, done: Any) -> None:
        ready_flags, done_flags = _inspect_flags("ready", ready), _inspect_flags("done", done)
        require_shape(done_flags, "num_slots", ready_flags.shape)
        self._sequence = _native.FlagSequence(
            pool._pool,  # noqa: SLF001
            ready=ready_flags.data,
            done=done_flags.data,
            num_slots=ready_flags.shape[0],
            owners=(ready, done),
        )

    def arm(self, steps: Sequence[tuple[DecodePlan, int, int, int]], *, timeout_s: float = 3.0) -> None:
        """Serves `steps` of (plan, layer, slot, sub-batch) in this order; each plan must have begun.

        The plans belong to the sequence until `wait` returns. `timeout_s` is how long a flag may take while no started
        layer is under way. Flags raised before this call count, unless the sequence before ended early: then all flags
        are lowered here, so the GPU must be at rest.

        ValueError: a timeout or slot out of range, or a slot in two steps in a row of a sub-batch. RuntimeError: a
        sequence is armed, here or on the same pool, or the pool is closed.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s: expected more than 0 and at most {MAX_TIMEOUT_S}, got {timeout_s}")
        plans = [plan._plan for plan, _, _, _ in steps]  # noqa: SLF001
        sources = {plan: plan.source for plan in plans}
        native_steps = [
            (sources[plan], layer, slot, sub_batch)
            for plan, (_, layer, slot, sub_batch) in zip(plans, steps, strict=True)
        ]
        self._sequence.arm(native_steps, timeout_s=timeout_s, owners=tuple(sources))

    def wait(self) -> None:
        """Returns when every step is done, or, after `cancel`, every layer under way. Releases the GIL.

        TimeoutError names the flag that was lost. Otherwise raises what starting or running a layer raised.
        """
        self._sequence.wait()

    @property
    def busy_ns(self) -> int:
        """From each ready flag seen to its layer done, summed over the steps of the sequence that `wait` last ended."""
        return self._sequence.busy_ns

    def cancel(self) -> None:
        """Ends the sequence early, if one is armed; from any thread. `wait` is still to be called."""
        self._sequence.cancel()


def _inspect_flags(name: str, flags: Any) -> ArrayInfo:
    info = inspect_array(name, flags, dtypes=("uint32", "int32"), writable=True)
    require_shape(info, "num_slots", (None,))
    require_contiguous_tail(info, 1)
    return info
