"""The engines that --hardware can model, by the names that they have in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neobench.engines.entry import EngineEntry

OPTIONS = (
    "model",
    "hardware",
    "host_bandwidth",
    "host_threads",
    "noise",
    "device_blocks",
    "host_memory",
    "host_kv_dtype",
    "dtype",
    "block_size",
    "seed",
    "max_model_tokens",
    "max_batch_tokens",
)

VLLM_GRAPHS_STEP_NS = 1_000_000
VLLM_EAGER_STEP_NS = 5_000_000
"""What vLLM's host code adds to each iteration: scheduling, inputs, sampling, detokenising, as far as the GPU waits
for it. Assumptions, not measurements: about a millisecond with CUDA graphs and asynchronous output, several without
both, as the NEO paper's artifact runs it (--enforce-eager, --disable-async-output-proc). docs/model.md says more."""


def _own(policy: str, **fixed: Any) -> EngineEntry:
    return EngineEntry(
        "neobench.engines.modelled_hardware:ModelledHardwareEngine",
        "modelled on a machine of the catalogue",
        settings={"policy": policy, **fixed},
        options=OPTIONS,
        limits="neobench.engines.modelled_hardware:limits",
    )


def _vllm(step_overhead_ns: int) -> EngineEntry:
    """vLLM by its rules: a token budget, decodes first, preemption by recompute."""
    return _own("chunked_prefill", step_overhead_ns=step_overhead_ns)._replace(argument="TOKENS")


MODELLED: Mapping[str, EngineEntry] = {
    "neo": _own("asymmetric_pipeline"),
    "gpu_only": _own("gpu_only"),
    "chunked_prefill": _own("chunked_prefill"),
    "chunked_prefill_256": _own("chunked_prefill", max_batch_tokens=256),
    "chunked_prefill_512": _own("chunked_prefill", max_batch_tokens=512),
    "full_offload": _own("full_offload"),
    "vllm": _vllm(VLLM_GRAPHS_STEP_NS),
    "vllm-neo-paper": _vllm(VLLM_EAGER_STEP_NS),
}
