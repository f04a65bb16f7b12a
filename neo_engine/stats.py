"""What an engine counts since its start. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from neobench.neo_engine.batch import Mode, StageTimes, StepPlan
from neobench.neo_engine.request import Tier


@dataclass
class EngineStats:
    """Counters since start; none ever falls. Times are sums over steps in nanoseconds."""

    steps: int = 0
    iterations_gpu_only: int = 0
    iterations_serial: int = 0
    iterations_asymmetric: int = 0
    prefill_tokens: int = 0
    prefill_chunks: int = 0
    prefills_to_device: int = 0
    prefills_to_host: int = 0
    gpu_decode_tokens: int = 0
    cpu_decode_tokens: int = 0
    cpu_attended_tokens: int = 0
    """Context tokens of the decodes on the host: times a token's KV bytes, what host attention has read."""
    swaps_out: int = 0
    swaps_in: int = 0
    swapped_blocks: int = 0
    preemptions: int = 0
    finished_requests: int = 0
    aborted_requests: int = 0
    scheduling_ns: int = 0
    predicted_iteration_ns: int = 0
    measured_iteration_ns: int = 0
    iteration_error_ns: int = 0
    """Sum of |predicted - measured|."""
    measured_linear_ns: int = 0
    measured_prefill_attention_ns: int = 0
    measured_device_decode_ns: int = 0
    measured_host_decode_ns: int = 0
    measured_host_wait_ns: int = 0
    predicted_linear_ns: int = 0
    predicted_prefill_attention_ns: int = 0
    predicted_device_decode_ns: int = 0
    predicted_host_decode_ns: int = 0
    predicted_host_wait_ns: int = 0

    def count_plan(self, plan: StepPlan) -> None:
        if plan.mode is not Mode.IDLE:
            name = f"iterations_{plan.mode.value}"
            setattr(self, name, getattr(self, name) + 1)
        for batch in plan.sub_batches:
            self.gpu_decode_tokens += len(batch.device_decodes)
            self.cpu_decode_tokens += len(batch.host_decodes)
            self.cpu_attended_tokens += sum(row.context_tokens for row in batch.host_decodes)
            for prefill in batch.prefills:
                self.prefill_tokens += prefill.num_tokens
                self.prefill_chunks += 1
                self.prefills_to_device += prefill.ends_prompt and prefill.tier is Tier.DEVICE
                self.prefills_to_host += prefill.ends_prompt and prefill.tier is Tier.HOST
        self.swaps_out += len(plan.swap_out)
        self.swaps_in += len(plan.swap_in)
        self.preemptions += len(plan.preempt)

    def count_times(self, predicted: StageTimes, measured: StageTimes) -> None:
        self.predicted_iteration_ns += predicted.total_ns
        self.measured_iteration_ns += measured.total_ns
        self.iteration_error_ns += abs(predicted.total_ns - measured.total_ns)
        for stage in ("linear", "prefill_attention", "device_decode", "host_decode", "host_wait"):
            for kind, times in (("predicted", predicted), ("measured", measured)):
                name = f"{kind}_{stage}_ns"
                setattr(self, name, getattr(self, name) + getattr(times, f"{stage}_ns"))

    def counters(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
