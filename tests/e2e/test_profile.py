"""`neobench profile`, and what the engine makes of its file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from neobench.neo_engine.cost_model import Profile

Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.slow


def test_a_profile_is_written_used_and_refused_where_it_does_not_fit(start_neobench: Start, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    small = ("--device-threads", "1", "--host-threads", "1", "--device-blocks", "64", "--host-memory", "16MiB")
    measuring = start_neobench("profile", "--quick", "-o", str(path), *small)
    stdout, stderr = measuring.communicate(timeout=120)
    assert measuring.returncode == 0, stderr
    assert str(path) in stdout
    assert Profile.load(path).key["device_threads"] == 1

    run = ("run", "--workload", "synthetic:20,4", "--num-requests", "5", "--rate", "20", "--json")
    using = start_neobench(*run, *small, "--profile", str(path), "--output", str(tmp_path / "runs"))
    stdout, stderr = using.communicate(timeout=120)
    assert json.loads(stdout)["completed"] == 5, stderr
    assert "profiling" not in (tmp_path / "runs" / "neo.log").read_text()

    refusing = start_neobench("serve", *small, "--dtype", "bfloat16", "--profile", str(path), "--port", "0")
    _, stderr = refusing.communicate(timeout=120)
    assert refusing.returncode == 1
    assert "measured with another dtype" in stderr
