"""The contract of a scheduling policy, and the table of policies by name."""

from __future__ import annotations

import difflib
import importlib
from typing import Protocol

from neobench.neo_engine.batch import BatchLimits, KvView, QueuesView, StepPlan
from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.cost_model import CostModel

POLICIES: dict[str, str] = {
    "gpu_only": "neobench.neo_engine.scheduler.gpu_only:GpuOnly",
    "chunked_prefill": "neobench.neo_engine.scheduler.chunked_prefill:ChunkedPrefill",
    "full_offload": "neobench.neo_engine.scheduler.full_offload:FullOffload",
    "asymmetric_pipeline": "neobench.neo_engine.scheduler.asymmetric_pipeline:AsymmetricPipeline",
}

OFFLOADING = ("full_offload", "asymmetric_pipeline")
"""Policies that put decodes on the host."""

CUTTING_PROMPTS = ("chunked_prefill", "asymmetric_pipeline")
"""Policies that compute prompts by chunks, of the token budget at most."""


class Policy(Protocol):
    """Decides one iteration. Pure and deterministic: the same arguments give the same plan."""

    def __init__(self, limits: BatchLimits) -> None: ...

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        """The plan of the next iteration; it fits into `kv` when carried out in the order StepPlan states.

        With any request in `queues` that fits into a tier by itself, the plan is never empty.
        """
        ...


def check_policy_name(name: str) -> None:
    """Raises ConfigError for an unknown name, with the nearest known one."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown policy {name!r}{hint} Policies: {', '.join(POLICIES)}")


def make_policy(name: str, limits: BatchLimits) -> Policy:
    """Raises ConfigError for an unknown name."""
    check_policy_name(name)
    module, _, class_name = POLICIES[name].partition(":")
    policy: Policy = getattr(importlib.import_module(module), class_name)(limits)
    return policy
