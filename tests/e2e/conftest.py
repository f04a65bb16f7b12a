"""The real thing: the command line in a process of its own, with a cost-table cache that all these tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def neobench_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("torch")
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="session")
def start_neobench(neobench_env: dict[str, str]) -> Start:
    """start_neobench("run", ...) -> a running process with its output captured as text."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "neobench", *arguments],
            env=neobench_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def small_run(tmp_path: Path) -> list[str]:
    """Arguments of a run whose device tier holds some four requests, so that NEO needs the host."""
    return [
        *("run", "--workload", "synthetic:60,24", "--device-blocks", "24", "--host-memory", "64MiB"),
        *("--num-warmup", "2", "--output", str(tmp_path / "runs")),
    ]
