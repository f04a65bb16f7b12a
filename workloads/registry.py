"""Names of workloads -> what makes them. Importing this costs next to nothing; a workload is imported when created."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from neobench.workloads.workload import Workload


class WorkloadEntry(NamedTuple):
    factory: str
    """"module:callable"; the callable takes the argument behind the colon of the name (or None) and the options."""
    description: str


WORKLOADS: Mapping[str, WorkloadEntry] = {
    "carperai": WorkloadEntry(
        "neobench.workloads.carperai:create",
        "summarization requests, about 373 tokens in and 45 out; lengths ship with the package",
    ),
    "azure-code": WorkloadEntry(
        "neobench.workloads.azure:create_code",
        "code completion in Azure in 2023, about 2,048 tokens in and 28 out; lengths ship with the package",
    ),
    "azure-conv": WorkloadEntry(
        "neobench.workloads.azure:create_conv",
        "conversations in Azure in 2023, about 1,155 tokens in and 211 out; lengths ship with the package",
    ),
    "hf": WorkloadEntry(
        "neobench.workloads.hf:create",
        "hf:DATASET has the lengths of a dataset of the hub, a folder or a file (options prompt_column, output_column, "
        "split, config; tokenizer for texts)",
    ),
    "sharegpt": WorkloadEntry(
        "neobench.workloads.sharegpt:create",
        "sharegpt:FILE has the first question and answer of each conversation in ShareGPT's JSON, with --turns the "
        "further ones too (option tokenizer)",
    ),
    "synthetic": WorkloadEntry(
        "neobench.workloads.synthetic:create",
        "synthetic:IN,OUT draws lengths uniformly within 10 % of IN and OUT; synthetic:fixed:IN,OUT exactly; "
        "synthetic:lognormal:IN,OUT with these means (option sigma); synthetic:zipf:IN,OUT up to these (exponent)",
    ),
    "trace": WorkloadEntry(
        "neobench.workloads.trace:create",
        "trace:FILE has the lengths of a CSV, JSONL or JSON file (Mooncake, BurstGPT, Azure, vLLM column names); "
        "with --arrival trace its times too",
    ),
}


def create(name: str, options: Mapping[str, Any]) -> Workload:
    """`name` may carry an argument behind a colon. Raises WorkloadError for unknown names, arguments and options."""
    base_name, colon, argument = name.partition(":")
    entry = WORKLOADS.get(base_name)
    if entry is None:
        from neobench.workloads.workload import WorkloadError

        nearest = difflib.get_close_matches(base_name, WORKLOADS, n=3, cutoff=0.4) or list(WORKLOADS)
        raise WorkloadError(f"unknown workload {name!r}; did you mean {' or '.join(nearest)}?")
    module_name, _, function_name = entry.factory.partition(":")
    factory = getattr(importlib.import_module(module_name), function_name)
    workload: Workload = factory(argument if colon else None, options)
    return workload
