"""Measures the cost tables by running made-up plans through the real executor, and keeps them with their key."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cost_model import (
    MEASURED_SPREAD,
    CostTables,
    Curve,
    Profile,
    ProfileError,
    Raggedness,
    Surface,
)
from neobench.neo_engine.executor.base import Executor, SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs, DecodeInput, PrefillInput
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.request import SamplingParams, Tier

_logger = logging.getLogger(__name__)

_WARM_UP_NS = 500_000_000
_EXECUTOR_FACTS = ("executor", "device", "device_threads", "host_threads", "pacpu_targets", "torch")

Progress = Callable[[str, int, int], None]
"""Called with what is measured, points done and points in all."""


@dataclass(frozen=True)
class Effort:
    """How much is measured. A point that takes longer than `max_point_seconds` ends its series: the rest is slope."""

    row_sizes: tuple[int, ...]
    decode_rows: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    repeats: int
    max_point_seconds: float


QUICK_ON_GPU = Effort(
    (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192),
    (1, 4, 16, 32, 64, 128, 256),
    (64, 512, 1024, 2048),
    repeats=3,
    max_point_seconds=1.0,
)
QUICK = Effort((1, 4, 16, 64, 256, 1024), (1, 8, 64), (32, 256, 1024), repeats=3, max_point_seconds=1.0)
THOROUGH = Effort(
    (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192),
    (1, 2, 4, 8, 16, 32, 64, 128, 256),
    (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    repeats=7,
    max_point_seconds=20.0,
)


def profile_key(config: EngineConfig, executor: Executor) -> dict[str, Any]:
    """Everything that a table depends on; two equal keys may share a profile."""
    facts = executor.describe()
    shape = asdict(config.shape)
    del shape["name"], shape["eos_token_ids"]
    return {
        "shape": shape,
        "dtype": config.dtype,
        "host_kv_dtype": config.host_kv_dtype,
        "block_size": config.block_size,
        "cpu": _cpu_model(),
        "sms": config.sms,
        **{name: facts[name] for name in _EXECUTOR_FACTS},
        "pacpu_target": config.pacpu_target,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def cache_path(key: dict[str, Any]) -> Path:
    """Where a profile of this key is kept between runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return root / "neobench" / "profiles" / f"{digest}.json"


def load_or_measure(config: EngineConfig, executor: Executor, progress: Progress | None = None) -> Profile:
    """The given profile, else the kept one, else a quick new one, which is then kept.

    Raises ProfileError if the given one was made for something else; the message names what differs.
    """
    key = json.loads(json.dumps(profile_key(config, executor)))
    if config.profile_path is not None:
        profile = Profile.load(config.profile_path)
        different = sorted(name for name in key if profile.key.get(name) != key[name])
        if different:
            raise ProfileError(
                f"profile {config.profile_path} was measured with another {', '.join(different)}; "
                "make one for this machine and model with `neobench profile`, or leave --profile out"
            )
        return profile
    path = cache_path(key)
    try:
        profile = Profile.load(path)
        if profile.key == key:
            return profile
    except ProfileError as error:
        if path.exists():
            _logger.warning("%s", error)
    effort = QUICK_ON_GPU if config.device == "cuda" else QUICK
    profile = Profile(key, measure(config, executor, effort, progress))
    try:
        profile.save(path)
    except OSError as error:
        _logger.warning("the profile could not be kept in %s: %s", path, error)
    return profile


def measure(config: EngineConfig, executor: Executor, effort: Effort, progress: Progress | None = None) -> CostTables:
    """Run every point and return the tables. Overwrites KV: only for an executor that serves nobody yet."""
    executor.measure_stages(every_stage=True)
    try:
        return _Measurement(config, executor, effort, progress).tables()
    finally:
        executor.measure_stages(every_stage=False)


class _Measurement:
    def __init__(self, config: EngineConfig, executor: Executor, effort: Effort, progress: Progress | None) -> None:
        self._config = config
        self._executor = executor
        self._effort = effort
        self._progress = progress or (lambda _what, _done, _total: None)
        self._fixed_ns: list[int] = []
        self._handovers_ns: list[int] = []
        self._layers = config.shape.num_layers

    def tables(self) -> CostTables:
        self._warm_up()
        linear, prefill_attention = self._prompts()
        device, head = self._decodes(Tier.DEVICE)
        host, _ = self._decodes(Tier.HOST)
        step_fixed_ns = statistics.median(self._fixed_ns)
        return CostTables(
            linear=linear,
            prefill_attention=prefill_attention,
            device_decode=device,
            host_decode=host,
            head=head,
            move=self._moves(),
            step_fixed_ns=step_fixed_ns,
            sub_batch_fixed_ns=max(0.0, self._two_batches_fixed_ns() - step_fixed_ns),
            raggedness=self._raggedness(),
            handover_ns=statistics.median(self._handovers_ns or [0]) / self._layers,
        )

    def _warm_up(self) -> None:
        """Torch's threads, its kernel choices and the processor's clock take their time; one run is not enough."""
        inputs = [self._prompt_inputs([min(64, self._config.max_request_tokens - 1)])]
        sampling = [SampleRow(SamplingParams(temperature=0.0), seed=0, position=0)]
        deadline_ns = perf_counter_ns() + _WARM_UP_NS
        while perf_counter_ns() < deadline_ns:
            self._executor.execute(Mode.GPU_ONLY, inputs, (), sampling)

    def _run(self, mode: Mode, batches: Sequence[BatchInputs], moves: Sequence[BlockMove] = ()) -> StageTimes:
        """Median of each stage over the repeats. The first run, which may compile kernels, counts for nothing."""
        requests = sum(len(batch.logit_rows) for batch in batches)
        sampling = [SampleRow(SamplingParams(temperature=0.0), seed=0, position=0)] * requests
        self._executor.execute(mode, batches, moves, sampling)
        started = perf_counter_ns()
        runs = []
        for _ in range(self._effort.repeats):
            _, times = self._executor.execute(mode, batches, moves, sampling)
            runs.append(times)
            if self._too_slow(perf_counter_ns() - started):
                break
        return StageTimes(
            **{name: round(statistics.median(getattr(run, name) for run in runs)) for name in StageTimes.__slots__}
        )

    def _too_slow(self, elapsed_ns: int) -> bool:
        return elapsed_ns > self._effort.max_point_seconds * 1e9

    def _prompts(self) -> tuple[Curve, Curve]:
        """Linear time by rows, and attention by the length of one prompt."""
        # Not by a smaller budget of this engine: the kept profile serves others too.
        most = 2 * max(self._config.max_batch_tokens, EngineConfig.max_batch_tokens)
        sizes = [size for size in self._effort.row_sizes if size <= most]
        linear: dict[int, float] = {}
        attention: dict[int, float] = {}
        longest = self._config.max_request_tokens - 1
        for done, size in enumerate(sizes):
            self._progress("linear layers and prompts", done, len(sizes))
            lengths = [longest] * (size // longest) + ([size % longest] if size % longest else [])
            times = self._run(Mode.GPU_ONLY, [self._prompt_inputs(lengths)])
            linear[size] = self._linear_ns(size, times) / self._layers
            if len(lengths) == 1:
                attention[size] = times.prefill_attention_ns / self._layers
            if size <= 64:
                self._fixed_ns.append(_unaccounted_ns(times))
            if self._too_slow(times.total_ns):
                break
        return _curve(linear), _curve(attention)

    def _linear_ns(self, rows: int, prompts: StageTimes) -> int:
        """Of as many decodes where there may be so many: few rows are decodes, which a GPU replays as a graph."""
        if self._config.device != "cuda" or rows > self._config.max_batch_rows:
            return prompts.linear_ns
        return self._run(Mode.GPU_ONLY, [self._decode_inputs(Tier.DEVICE, [16] * rows)]).linear_ns

    def _decodes(self, tier: Tier) -> tuple[Surface, Curve]:
        """Decode attention of one tier by rows and context, and the LM head by rows."""
        effort, config = self._effort, self._config
        all_rows = [rows for rows in effort.decode_rows if rows <= config.max_batch_rows]
        contexts = [context for context in effort.decode_contexts if context < config.max_request_tokens]
        contexts = contexts or [config.max_request_tokens - 1]
        lines: list[tuple[float, ...]] = []
        head: dict[int, float] = {}
        if tier is Tier.HOST and not config.host_blocks:
            return Surface((1,), (1,), ((0.0,),)), Curve((1,), (0.0,))
        for index, rows in enumerate(all_rows):
            line: list[float] = []
            for context in contexts:
                self._progress(
                    f"{tier.value} decode attention", index * len(contexts) + len(line), len(all_rows) * len(contexts)
                )
                attention_ns, times = self._decode(tier, [context] * rows)
                line.append(attention_ns / self._layers)
                head[rows] = min(head.get(rows, times.head_ns), times.head_ns)
            lines.append(capped_by_larger(line))
        columns = [capped_by_larger(column) for column in zip(*lines, strict=True)]
        return Surface(tuple(all_rows), tuple(contexts), tuple(zip(*columns, strict=True))), _curve(head)

    def _decode(self, tier: Tier, contexts: Sequence[int]) -> tuple[int, StageTimes]:
        """Nanoseconds of attention in all layers, with all stages' times."""
        mode = Mode.GPU_ONLY if tier is Tier.DEVICE else Mode.SERIAL
        times = self._run(mode, [self._decode_inputs(tier, contexts)])
        if tier is Tier.HOST:
            # Nothing hides the host here, so the wait is the way there and back as well.
            self._handovers_ns.append(max(0, times.host_wait_ns - times.host_decode_ns))
        return times.device_decode_ns + times.host_decode_ns, times

    def _raggedness(self) -> Raggedness:
        self._progress("ragged batches", 0, 1)
        return Raggedness(
            device_decode=self._ragged_decodes(Tier.DEVICE),
            host_decode=self._ragged_decodes(Tier.HOST) if self._config.host_blocks else 1.0,
            several_prompts=self._several_prompts(),
        )

    def _ragged_decodes(self, tier: Tier) -> float:
        """At least 1.0: unequal rows are never less work, and less is noise."""
        longest = (self._config.max_request_tokens - 1) / (1 + MEASURED_SPREAD)
        contexts = [context for context in self._effort.decode_contexts if context <= longest]
        all_rows = [rows for rows in self._effort.decode_rows if 1 < rows <= self._config.max_batch_rows]
        if not contexts or not all_rows:
            return 1.0
        mean = contexts[len(contexts) // 2]
        ratios = []
        for rows in (all_rows[len(all_rows) // 3], all_rows[2 * len(all_rows) // 3]):
            even_ns, _ = self._decode(tier, [mean] * rows)
            ragged_ns, _ = self._decode(tier, spread_lengths(mean, rows))
            ratios.append(ragged_ns / max(even_ns, 1))
        return max(1.0, statistics.median(ratios))

    def _several_prompts(self) -> float:
        longest = int((self._config.max_request_tokens - 1) / (1 + MEASURED_SPREAD))
        ratios = []
        for tokens in (EngineConfig.max_batch_tokens // 2, EngineConfig.max_batch_tokens):
            lengths = spread_lengths(max(1, min(tokens // 4, longest)), 4)
            together_ns = self._run(Mode.GPU_ONLY, [self._prompt_inputs(lengths)]).prefill_attention_ns
            alone = [self._run(Mode.GPU_ONLY, [self._prompt_inputs([length])]) for length in lengths]
            ratios.append(together_ns / max(1, sum(times.prefill_attention_ns for times in alone)))
        return statistics.median(ratios)

    def _moves(self) -> Curve:
        """Copies from the device to the host by blocks."""
        most = min(self._config.device_blocks, self._config.host_blocks)
        times: dict[int, float] = {}
        if not most:
            return Curve((1,), (0.0,))
        for count in sorted({1, max(1, most // 8), max(1, min(most, 64))}):
            blocks = tuple(range(count))
            move = BlockMove(Tier.DEVICE, blocks, blocks)
            times[count] = self._run(Mode.IDLE, (), [move]).moves_ns
        return _curve(times)

    def _two_batches_fixed_ns(self) -> int:
        if not self._config.host_blocks:
            return 0
        times = self._run(
            Mode.ASYMMETRIC,
            [self._decode_inputs(Tier.DEVICE, [16]), self._decode_inputs(Tier.HOST, [16])],
        )
        return _unaccounted_ns(times)

    def _prompt_inputs(self, lengths: Sequence[int]) -> BatchInputs:
        blocks = self._config.blocks_for
        return BatchInputs(
            token_ids=[1] * sum(lengths),
            positions=[position for length in lengths for position in range(length)],
            prefills=tuple(
                PrefillInput(length, Tier.DEVICE, self._blocks(Tier.DEVICE, 0, blocks(length))) for length in lengths
            ),
            device=DecodeInput((), ()),
            host=DecodeInput((), ()),
        )

    def _decode_inputs(self, tier: Tier, contexts: Sequence[int]) -> BatchInputs:
        counts = [self._config.blocks_for(context) for context in contexts]
        starts = itertools.accumulate(counts, initial=0)
        tables = tuple(self._blocks(tier, start, count) for start, count in zip(starts, counts, strict=False))
        decodes = DecodeInput(tables, tuple(contexts))
        none = DecodeInput((), ())
        return BatchInputs(
            token_ids=[1] * len(contexts),
            positions=[context - 1 for context in contexts],
            prefills=(),
            device=decodes if tier is Tier.DEVICE else none,
            host=decodes if tier is Tier.HOST else none,
        )

    def _blocks(self, tier: Tier, first: int, count: int) -> list[int]:
        """Block numbers of a made-up request; they wrap around where a tier is smaller than the point measured."""
        total = self._config.device_blocks if tier is Tier.DEVICE else self._config.host_blocks
        return [(first + offset) % total for offset in range(count)]


def _unaccounted_ns(times: StageTimes) -> int:
    """What no stage covers: building tensors, embedding."""
    stages = times.linear_ns + times.prefill_attention_ns + times.device_decode_ns + times.host_wait_ns
    return max(0, times.total_ns - stages - times.head_ns - times.moves_ns)


def spread_lengths(mean: int, count: int) -> list[int]:
    """`count` lengths of this mean, spread evenly by MEASURED_SPREAD of it to either side, short and long in turn."""
    pairs = count // 2
    lengths = []
    for pair in range(pairs):
        below = int(mean * MEASURED_SPREAD * (1 - 2 * pair / max(1, count - 1)))
        lengths += [mean - below, mean + below]
    return lengths + [mean] * (count % 2)


def capped_by_larger(times_ns: Sequence[float]) -> tuple[float, ...]:
    """Times by rising size, none above that of a larger size: noise only adds time, and less work never takes more."""
    capped = itertools.accumulate(reversed(times_ns), min)
    return tuple(reversed(list(capped)))


def _curve(points: dict[int, float]) -> Curve:
    sizes = tuple(sorted(points))
    return Curve(sizes, capped_by_larger([points[size] for size in sizes]))
