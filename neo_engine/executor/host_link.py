"""How a device's decode rows reach host attention and come back: driven by flags of its stream, or by this thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Protocol

import torch

from neobench.neo_engine.cpu_attention import PagedDecodeAttention
from neobench.neo_engine.executor import stream_flags
from neobench.neo_engine.executor.lanes import Lane
from neobench.neo_engine.kernels.copies import copy_rows

_logger = logging.getLogger(__name__)

LOST_FLAG_TIMEOUT_S = 5.0
"""How long a flag may take. A captured step waits for layers of prompts, not for Python."""


class HostLink(Protocol):
    """For each layer and lane with host rows `send`, then, after work that hides it, `await_sent` and `receive`."""

    @property
    def in_graphs(self) -> bool:
        """Whether `receive` may be captured; the other calls never are."""
        ...

    def begin(self, slots: Sequence[int]) -> None:
        """Of the lanes with host rows, which take turns layer by layer; these slots of the attention have begun."""
        ...

    def send(self, layer: int, lane: Lane) -> None:
        """q, k, v of the host rows, as they are in the lane's heads."""
        ...

    def await_sent(self, lane: Lane) -> None:
        """What is queued after it comes after what the lane sent last."""
        ...

    def receive(self, layer: int, lane: Lane) -> None:
        """Puts the output into the lane's attention."""
        ...

    def finish(self) -> int:
        """Once the device has come to the end: nanoseconds that host attention took. Raises what went wrong in it."""
        ...

    def abort(self) -> None:
        """After an error in mid-step: the device is not left waiting."""
        ...


class DirectLink:
    """This thread hands over and waits. The fallback where streams know no flags, and the way without a GPU."""

    in_graphs = False

    def __init__(self, attention: PagedDecodeAttention) -> None:
        self._attention = attention
        self._started_ns = [0, 0]
        self._busy_ns = 0

    def begin(self, slots: Sequence[int]) -> None:
        """Nothing to do."""

    def send(self, layer: int, lane: Lane) -> None:
        heads, _ = self._attention.buffers(lane.slot)
        # Not `non_blocking`: the workers read at once.
        heads[: lane.num_host].copy_(lane.heads[lane.host_rows])
        self._started_ns[lane.slot] = perf_counter_ns()
        self._attention.start_in_place(lane.slot, layer)

    def await_sent(self, lane: Lane) -> None:
        """Nothing to do: `send` waited."""

    def receive(self, layer: int, lane: Lane) -> None:  # noqa: ARG002
        output = self._attention.wait(lane.slot)
        self._busy_ns += self._attention.finished_ns(lane.slot) - self._started_ns[lane.slot]
        lane.attention[lane.host_rows] = output.view(-1, *lane.attention.shape[1:])

    def finish(self) -> int:
        busy_ns, self._busy_ns = self._busy_ns, 0
        return busy_ns

    def abort(self) -> None:
        self._attention.drain()


class FlagLink:
    """No Python between device and host: a stream raises a flag when q, k, v have landed, and waits for another.

    q, k, v leave by the copy engine on a stream of their own. The output comes back by a kernel that reads page-locked
    memory: behind the copies of whole blocks it would wait its turn.
    """

    in_graphs = True

    def __init__(self, attention: PagedDecodeAttention, num_layers: int, device: torch.device) -> None:
        self._attention = attention
        self._num_layers = num_layers
        self._device = device
        self._ready, self._done = (torch.zeros(2 * num_layers, dtype=torch.int32, pin_memory=True) for _ in range(2))
        self._sequence = attention.flag_sequence(self._ready, self._done)
        self._out = stream_flags.new_stream(device)
        self._armed = False
        # Of each slot: q, k, v are there, and they have left.
        self._computed, self._sent = (
            [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def begin(self, slots: Sequence[int]) -> None:
        layers = range(self._num_layers)
        flags = [(slot, layer, self._flag(layer, slot)) for layer in layers for slot in slots]
        self._attention.arm(self._sequence, flags, timeout_s=LOST_FLAG_TIMEOUT_S)
        self._armed = True

    @staticmethod
    def _flag(layer: int, slot: int) -> int:
        return 2 * layer + slot

    def send(self, layer: int, lane: Lane) -> None:
        heads, _ = self._attention.buffers(lane.slot)
        self._computed[lane.slot].record(torch.cuda.current_stream(self._device))
        self._out.wait_event(self._computed[lane.slot])
        stream_flags.copy_to_host(self._out, lane.heads[lane.host_rows], heads[: lane.num_host])
        stream_flags.raise_flag(self._out, self._address(self._ready, layer, lane.slot))
        self._sent[lane.slot].record(self._out)

    def await_sent(self, lane: Lane) -> None:
        """The wait for a flag thereby depends on the flag's own write: no channel that works in order may hold that
        behind it."""
        torch.cuda.current_stream(self._device).wait_event(self._sent[lane.slot])

    def receive(self, layer: int, lane: Lane) -> None:
        compute = torch.cuda.current_stream(self._device)
        stream_flags.await_flag(compute, self._address(self._done, layer, lane.slot))
        _, output = self._attention.buffers(lane.slot)
        # Of all rows that the host could have sent: a graph fetches as many as there are when it is replayed.
        target = lane.attention[lane.decode_rows][: len(output)]
        copy_rows(output[: len(target)].flatten(1), target.flatten(1), count=lane.host_count)

    def _address(self, flags: torch.Tensor, layer: int, slot: int) -> int:
        return flags.data_ptr() + flags.element_size() * self._flag(layer, slot)

    def finish(self) -> int:
        if not self._armed:
            return 0
        self._armed = False
        self._sequence.wait()
        return self._sequence.busy_ns

    def abort(self) -> None:
        if self._armed:
            self._armed = False
            self._sequence.cancel()
            # What is queued runs to its end, over useless data.
            torch.cuda.synchronize(self._device)
            self._sequence.wait()


def make_link(attention: PagedDecodeAttention, num_layers: int, device: torch.device) -> HostLink:
    """By flags where the device knows them."""
    if device.type != "cuda":
        return DirectLink(attention)
    if problem := stream_flags.problem(device):
        _logger.warning("%s; host attention is driven from Python instead, which hides less of it", problem)
        return DirectLink(attention)
    return FlagLink(attention, num_layers, device)
