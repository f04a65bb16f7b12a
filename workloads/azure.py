"""Requests of two LLM services in Azure in November 2023: code completion and conversation.

Microsoft published when they came and how long they were (Azure/AzurePublicDataset, CC-BY-4.0; Patel et al.,
"Splitwise", ISCA 2024). Lengths ship as tables; the times need the trace itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neobench.workloads.options import check_options, flag
from neobench.workloads.sources import FileLengths, TableLengths
from neobench.workloads.workload import Workload, WorkloadError

TABLES = Path(__file__).parent / "tables"
OPTIONS = ("file", "skip_malformed")


def create_code(argument: str | None, options: Mapping[str, Any]) -> Workload:
    return _create("azure-code", argument, options)


def create_conv(argument: str | None, options: Mapping[str, Any]) -> Workload:
    return _create("azure-conv", argument, options)


def _create(name: str, argument: str | None, options: Mapping[str, Any]) -> Workload:
    """Lengths from the shipped table; with `file`, lengths and times from the trace itself."""
    if argument is not None:
        raise WorkloadError(f"{name} takes no argument, but got {argument!r}; its options are {', '.join(OPTIONS)}")
    check_options(name, options, OPTIONS)
    if "file" in options:
        return FileLengths(name, Path(options["file"]), skip_malformed=flag(options, "skip_malformed"))
    if options:
        raise WorkloadError(f"{name}: skip_malformed is about a file; give one, or leave it out")
    return TableLengths(name, TABLES / f"{name}.json")
