"""Corrects the cost tables online by the stage times that an executor measures. Knows no torch and no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

from neobench.neo_engine.batch import StageTimes

_WEIGHT = 0.1
"""Of the newest step: after ten steps a third of an old error is left."""

_MAX_FACTOR = 4.0
"""No factor leaves [1/4, 4], and no single step counts as more: beyond that a step was disturbed, not mispredicted."""


@dataclass(frozen=True)
class Correction:
    """Measured over tabulated time by kind of stage: exponentially weighted geometric means, 1.0 before any step.

    `fixed` is all that a step does outside its layers: inputs, moves, LM head, sampling.
    """

    linear: float = 1.0
    device_attention: float = 1.0
    host_attention: float = 1.0
    fixed: float = 1.0

    def after(self, predicted: StageTimes, measured: StageTimes) -> Correction:
        """The factors once a step that was predicted with these ones has been measured.

        A kind that the step did not have keeps its factor. Where an executor measures no stages but the total and the
        host's, the total stands for the others.
        """
        has_stages = measured.linear_ns > 0
        updated = []
        for kind, ours, theirs in zip(fields(self), _kinds(predicted), _kinds(measured), strict=True):
            is_measured = has_stages or (kind.name == "host_attention" and theirs > 0)
            if ours > 0 and not is_measured:
                theirs = measured.total_ns * ours // predicted.total_ns
            updated.append(_moved(getattr(self, kind.name), ours, theirs))
        return Correction(*updated)


UNCORRECTED = Correction()


def _kinds(times: StageTimes) -> Iterator[int]:
    device_attention_ns = times.prefill_attention_ns + times.device_decode_ns
    yield times.linear_ns
    yield device_attention_ns
    yield times.host_decode_ns
    yield times.total_ns - times.linear_ns - device_attention_ns - times.host_wait_ns


def _moved(factor: float, predicted_ns: int, measured_ns: int) -> float:
    if predicted_ns <= 0 or measured_ns <= 0:
        return factor
    ratio = min(max(measured_ns / predicted_ns, 1 / _MAX_FACTOR), _MAX_FACTOR)
    return min(max(factor * math.pow(ratio, _WEIGHT), 1 / _MAX_FACTOR), _MAX_FACTOR)


class PredictionErrors:
    """Relative errors |predicted - measured| / measured of the last iterations."""

    def __init__(self, capacity: int = 4096) -> None:
        self._errors: deque[float] = deque(maxlen=capacity)

    def add(self, predicted_ns: int, measured_ns: int) -> None:
        if measured_ns > 0:
            self._errors.append(abs(predicted_ns - measured_ns) / measured_ns)

    def percentile(self, percent: float) -> float:
        """By nearest rank; 0.0 before the first iteration."""
        if not self._errors:
            return 0.0
        return sorted(self._errors)[max(0, math.ceil(percent / 100 * len(self._errors)) - 1)]
