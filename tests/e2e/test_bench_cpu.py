"""`neobench bench-cpu` on this machine, one small point."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("neobench.pacpu._pacpu")

Start = Callable[..., "subprocess.Popen[str]"]


def test_one_point_gives_one_row(start_neobench: Start, tmp_path: Path) -> None:
    point = ("--shape", "gqa4", "--dtype", "bfloat16", "--threads", "1", "--batch", "1", "--context", "128")
    folder = tmp_path / "bench"
    running = start_neobench("bench-cpu", *point, "--no-peer", "--memory", "64MiB", "--json", "--output", str(folder))
    stdout, stderr = running.communicate(timeout=60)
    (row,) = json.loads(stdout)
    assert {"kernel", "shape", "dtype", "threads", "batch", "context"} <= set(row)
    assert (row["shape"], row["dtype"], row["threads"], row["batch"], row["context"]) == ("gqa4", "bfloat16", 1, 1, 128)
    assert min(row[name] for name in ("gbps", "read_gbps", "percent_of_read", "tokens_per_s")) > 0
    # A machine that does something else meanwhile makes the run invalid, and says so.
    assert running.returncode == (4 if row["busy"] else 0), stderr
    assert not row["busy"] or row["busy"] in stderr
    assert (folder / "roofline.png").stat().st_size > 0
