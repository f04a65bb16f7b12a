"""`trace:FILE`: the requests of a recorded trace, in any order or as they arrived."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neobench.workloads.options import check_options, flag
from neobench.workloads.sources import FileLengths
from neobench.workloads.workload import Workload, WorkloadError

OPTIONS = ("skip_malformed",)


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    if not argument:
        raise WorkloadError("trace needs a file: trace:FILE, such as trace:burstgpt.csv (.csv, .jsonl or .json)")
    check_options("trace", options, OPTIONS)
    path = Path(argument)
    return FileLengths(f"trace:{path.name}", path, skip_malformed=flag(options, "skip_malformed"))
