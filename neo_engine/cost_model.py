"""Predicts how long an iteration takes from measured tables. Knows no torch and no clock.

The arithmetic of two sub-batches comes from the NEO paper (arXiv 2411.01142, section 4): with L layers, linear time l,
device attention ga and host attention ca of sub-batches 0 and 1,
T = L * (max(l0, ca1) + max(l1 + ga0, ca0)).
Ours are not in step: each goes on when its own attention is back, the device and the host take them in turn. A layer
then lasts as long as the slowest of four: the device, the host, and each sub-batch on its way through both, with h for
the handing over of q, k, v and output:
T = L * max(l0 + l1 + ga0, ca0 + ca1, l0 + ca0 + h, l1 + ca1 + h).
To it come the terms that the paper leaves out: LM head and sampling, moves between the tiers, a fixed part per step.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neobench.neo_engine.batch import Mode, Prefill, StageTimes, SubBatch
from neobench.neo_engine.correction import UNCORRECTED, Correction

PROFILE_SCHEMA = "neobench/profile/v2"
MEASURED_SPREAD = 0.75
"""Of ragged rows as they are measured the longest context is so much of the mean above it, the shortest below."""


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Curve:
    """Nanoseconds by one size: linear between the measured points, and beyond the last by the last slope.

    Size 0 costs nothing: there is nothing to launch.
    """

    sizes: tuple[int, ...]
    times_ns: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.times_ns) or not self.sizes:
            raise ProfileError(f"{len(self.sizes)} sizes and {len(self.times_ns)} times do not make a curve")
        if list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise ProfileError(f"sizes must be positive and rise: {self.sizes}")
        if min(self.times_ns) < 0:
            raise ProfileError(f"times must not be negative: {self.times_ns}")

    def __call__(self, size: float) -> float:
        if size <= 0:
            return 0.0
        return _interpolate(self.sizes, self.times_ns, size)


@dataclass(frozen=True)
class Surface:
    """Nanoseconds of decode attention, bilinear in rows and context per row; times_ns is [rows, contexts]."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    times_ns: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.times_ns) != len(self.rows):
            raise ProfileError(f"{len(self.rows)} rows and {len(self.times_ns)} lines of times do not make a surface")
        for line in self.times_ns:
            Curve(self.contexts, line)
        Curve(self.rows, tuple(line[0] for line in self.times_ns))

    def __call__(self, rows: int, total_context: int) -> float:
        """Time of `rows` rows which attend to `total_context` tokens together."""
        if rows <= 0:
            return 0.0
        context = total_context / rows
        low = min(max(bisect.bisect_right(self.rows, rows) - 1, 0), max(len(self.rows) - 2, 0))
        high = min(low + 1, len(self.rows) - 1)
        at_low = _interpolate(self.contexts, self.times_ns[low], context)
        if high == low:
            return at_low * rows / self.rows[low]
        at_high = _interpolate(self.contexts, self.times_ns[high], context)
        slope = (at_high - at_low) / (self.rows[high] - self.rows[low])
        return max(0.0, at_low + slope * (rows - self.rows[low]))


def _interpolate(sizes: Sequence[int], times_ns: Sequence[float], size: float) -> float:
    if len(sizes) == 1:
        return times_ns[0] * max(1.0, size / sizes[0])
    if size <= sizes[0]:
        return times_ns[0]
    low = min(bisect.bisect_right(sizes, size) - 1, len(sizes) - 2)
    slope = (times_ns[low + 1] - times_ns[low]) / (sizes[low + 1] - sizes[low])
    if size > sizes[-1]:
        # Noise can make the last slope negative; more work never costs less than the last measured point.
        slope = max(slope, 0.0)
        return times_ns[-1] + slope * (size - sizes[-1])
    return times_ns[low] + slope * (size - sizes[low])


@dataclass(frozen=True)
class Raggedness:
    """Factors on the tables, which are of equal rows and single prompts; 1.0 where that makes no difference."""

    device_decode: float = 1.0
    """Of rows whose longest context exceeds their mean by MEASURED_SPREAD, over equal ones of the same sum."""
    host_decode: float = 1.0
    several_prompts: float = 1.0
    """Attention of several unequal prompts in one iteration, over the sum of each by itself."""


@dataclass(frozen=True)
class CostTables:
    """What `neobench profile` measures. Attention and linear times are of one layer, the others of one step."""

    linear: Curve
    """By rows: everything a layer does outside attention."""
    prefill_attention: Curve
    """By prompt tokens of one request."""
    device_decode: Surface
    host_decode: Surface
    """As long as the host's threads are busy."""
    head: Curve
    """By requests: last norm, LM head, sampling."""
    move: Curve
    """By blocks copied between the tiers, all layers."""
    step_fixed_ns: float
    """Once a step: building its inputs, embedding."""
    sub_batch_fixed_ns: float
    """Once more when there are two sub-batches."""
    raggedness: Raggedness = Raggedness()
    handover_ns: float = 0.0
    """Of a sub-batch in a layer: q, k, v on their way to the host, and its output on the way back."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> CostTables:
        """Raises ProfileError when a table is missing or malformed."""
        try:
            return cls(
                linear=_curve(raw["linear"]),
                prefill_attention=_curve(raw["prefill_attention"]),
                device_decode=_surface(raw["device_decode"]),
                host_decode=_surface(raw["host_decode"]),
                head=_curve(raw["head"]),
                move=_curve(raw["move"]),
                step_fixed_ns=float(raw["step_fixed_ns"]),
                sub_batch_fixed_ns=float(raw["sub_batch_fixed_ns"]),
                raggedness=Raggedness(**raw["raggedness"]),
                handover_ns=float(raw["handover_ns"]),
            )
        except (KeyError, TypeError) as error:
            raise ProfileError(f"cost tables are incomplete or malformed: {error!r}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _ragged(factor: float, rows: int, total_context: int, longest: int) -> float:
    """The measured factor in proportion to the spread, no more than measured: beyond that it is not known."""
    if not total_context:
        return 1.0
    spread = longest * rows / total_context - 1.0
    return 1.0 + (factor - 1.0) * min(max(spread / MEASURED_SPREAD, 0.0), 1.0)


def _curve(raw: dict[str, Any]) -> Curve:
    return Curve(tuple(raw["sizes"]), tuple(raw["times_ns"]))


def _surface(raw: dict[str, Any]) -> Surface:
    return Surface(tuple(raw["rows"]), tuple(raw["contexts"]), tuple(tuple(line) for line in raw["times_ns"]))


@dataclass(frozen=True)
class Profile:
    """Cost tables and the key of the machine, model and settings they were measured with."""

    key: dict[str, Any]
    tables: CostTables

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {"schema": PROFILE_SCHEMA, "key": self.key, "tables": self.tables.to_dict()}
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(json.dumps(body, indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        try:
            raw = json.loads(path.read_text())
            if raw.get("schema") != PROFILE_SCHEMA:
                raise ProfileError(f"schema is {raw.get('schema')!r}, not {PROFILE_SCHEMA!r}")
            return cls(key=raw["key"], tables=CostTables.from_dict(raw["tables"]))
        except (OSError, json.JSONDecodeError, KeyError, AttributeError, ProfileError) as error:
            raise ProfileError(f"cannot use profile {path}: {error}; make a new one with `neobench profile`") from None


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """What a sub-batch costs depends on these sums alone, and on the longest contexts; 0: all are equal."""

    rows: int = 0
    requests: int = 0
    prefills: int = 0
    prefill_attention_ns: float = 0.0
    """Of each prompt by itself."""
    device_rows: int = 0
    device_context: int = 0
    device_longest: int = 0
    host_rows: int = 0
    host_context: int = 0
    host_longest: int = 0

    def plus_host_decode(self, context_tokens: int) -> BatchLoad:
        return BatchLoad(
            rows=self.rows + 1,
            requests=self.requests + 1,
            prefills=self.prefills,
            prefill_attention_ns=self.prefill_attention_ns,
            device_rows=self.device_rows,
            device_context=self.device_context,
            device_longest=self.device_longest,
            host_rows=self.host_rows + 1,
            host_context=self.host_context + context_tokens,
            host_longest=max(self.host_longest, context_tokens),
        )


@dataclass(frozen=True)
class CostModel:
    """Predictions for one model on one machine. All times in nanoseconds; `*_per_layer` of one layer."""

    tables: CostTables
    num_layers: int
    correction: Correction = UNCORRECTED

    def corrected_by(self, predicted: StageTimes, measured: StageTimes) -> CostModel:
        """The model that has learnt from one step which it predicted itself."""
        return replace(self, correction=self.correction.after(predicted, measured))

    def load(self, batch: SubBatch) -> BatchLoad:
        return BatchLoad(
            rows=batch.num_rows,
            requests=batch.num_requests,
            prefills=len(batch.prefills),
            prefill_attention_ns=sum(map(self.prefill_attention_per_layer, batch.prefills)),
            device_rows=len(batch.device_decodes),
            device_context=sum(row.context_tokens for row in batch.device_decodes),
            device_longest=max((row.context_tokens for row in batch.device_decodes), default=0),
            host_rows=len(batch.host_decodes),
            host_context=sum(row.context_tokens for row in batch.host_decodes),
            host_longest=max((row.context_tokens for row in batch.host_decodes), default=0),
        )

    def prefill_attention_per_layer(self, prefill: Prefill) -> float:
        """Of a chunk: what the prompt takes to its end less what it takes to the chunk's start, by the curve of whole
        prompts, for the causal area of the chunk is the difference of two triangles. Never less than a first chunk of
        its length, whose area is smaller: that keeps the cost of a launch, which the difference loses.
        """
        curve = self.tables.prefill_attention
        time_ns = max(curve(prefill.num_tokens), curve(prefill.end_tokens) - curve(prefill.start_tokens))
        return self.correction.device_attention * time_ns

    def linear_per_layer(self, load: BatchLoad) -> float:
        return self.correction.linear * self.tables.linear(load.rows)

    def prefill_attentions_per_layer(self, load: BatchLoad) -> float:
        return load.prefill_attention_ns * (self.tables.raggedness.several_prompts if load.prefills > 1 else 1.0)

    def device_attention_per_layer(self, load: BatchLoad) -> float:
        decodes = self.tables.device_decode(load.device_rows, load.device_context)
        decodes *= _ragged(
            self.tables.raggedness.device_decode, load.device_rows, load.device_context, load.device_longest
        )
        return self.prefill_attentions_per_layer(load) + self.correction.device_attention * decodes

    def host_attention_per_layer(self, load: BatchLoad) -> float:
        decodes = self.tables.host_decode(load.host_rows, load.host_context)
        decodes *= _ragged(self.tables.raggedness.host_decode, load.host_rows, load.host_context, load.host_longest)
        return self.correction.host_attention * decodes

    def hides_host_attention(self, load0: BatchLoad, load1: BatchLoad) -> tuple[float, float, float]:
        """By how much the device's time for a layer exceeds sub-batch 0's way through device and host, sub-batch 1's,
        and the host's time; negative where the device has to wait. The first is the paper's l1 + ga0 - ca0 less the
        handing over.
        """
        linear0, linear1 = self.linear_per_layer(load0), self.linear_per_layer(load1)
        host0, host1 = self.host_attention_per_layer(load0), self.host_attention_per_layer(load1)
        attention = self.device_attention_per_layer(load0)
        return (
            linear1 + attention - host0 - self._handover(load0),
            linear0 + attention - host1 - self._handover(load1),
            linear0 + linear1 + attention - host0 - host1,
        )

    def _handover(self, load: BatchLoad) -> float:
        return self.tables.handover_ns if load.host_rows else 0.0

    def predict(self, mode: Mode, loads: Sequence[BatchLoad], moved_blocks: int = 0) -> StageTimes:
        """Stage times of a whole iteration."""
        linear = sum(map(self.linear_per_layer, loads))
        prefill = sum(map(self.prefill_attentions_per_layer, loads))
        device = sum(map(self.device_attention_per_layer, loads)) - prefill
        host = sum(map(self.host_attention_per_layer, loads))
        if mode is Mode.ASYMMETRIC:
            wait = max(0.0, -min(self.hides_host_attention(*loads)))
        else:
            wait = max(0.0, host + sum(map(self._handover, loads)) - device - prefill)
        layers = self.num_layers * (linear + prefill + device + wait)
        outside = self.correction.fixed
        head = outside * sum(self.tables.head(load.requests) for load in loads)
        moves = outside * self.tables.move(moved_blocks)
        fixed = outside * (self.tables.step_fixed_ns + (self.tables.sub_batch_fixed_ns if len(loads) > 1 else 0.0))
        return StageTimes(
            total_ns=round(layers + head + moves + fixed),
            linear_ns=round(self.num_layers * linear),
            prefill_attention_ns=round(self.num_layers * prefill),
            device_decode_ns=round(self.num_layers * device),
            host_decode_ns=round(self.num_layers * host),
            host_wait_ns=round(self.num_layers * wait),
            head_ns=round(head),
            moves_ns=round(moves),
        )

    def predict_plan(self, mode: Mode, batches: Iterable[SubBatch], moved_blocks: int = 0) -> StageTimes:
        return self.predict(mode, [self.load(batch) for batch in batches], moved_blocks)
