"""Derive a joint length table of a workload from a file with the lengths of real requests; only figures are kept.

The table that ships as workloads/tables/carperai.json was made from the 2,000 requests published with the NEO artifact
(NEO-MLSys25/NEO, evaluation/data, Apache-2.0):

    python tools/derive_length_table.py osc_llama2_7b_lengths.json -o workloads/tables/carperai.json --name carperai \
        --source "..." --licence Apache-2.0 --tokenizer Llama-2-7B --date 2026-11-21

Those of azure-code and azure-conv were made from the Azure LLM inference traces of 2023 (Azure/AzurePublicDataset,
CC-BY-4.0):

    python tools/derive_length_table.py AzureLLMInferenceTrace_code.csv -o workloads/tables/azure-code.json \
        --name azure-code --source "..." --licence CC-BY-4.0 --tokenizer unknown --date 2026-11-26 --long-tail
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from neobench.workloads.length_files import read_lengths
from neobench.workloads.lengths import (
    LONG_TAIL_OUTPUT_LEVELS,
    OUTPUT_LEVELS,
    PROMPT_LEVELS,
    LengthTable,
    derive_quantiles,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="lengths: .json, .jsonl or .csv")
    parser.add_argument("-o", "--output", type=Path, required=True)
    for option in ("--name", "--source", "--licence", "--tokenizer", "--date"):
        parser.add_argument(option, required=True)
    parser.add_argument("--long-tail", action="store_true", help="more levels in the longest percent of outputs")
    arguments = parser.parse_args()
    output_levels = LONG_TAIL_OUTPUT_LEVELS if arguments.long_tail else OUTPUT_LEVELS
    prompt_tokens, output_tokens = read_lengths(arguments.file)
    prompt_quantiles, output_quantiles = derive_quantiles(prompt_tokens, output_tokens, output_levels)
    table = LengthTable(
        name=arguments.name,
        source=arguments.source,
        licence=arguments.licence,
        tokenizer=arguments.tokenizer,
        derived_on=arguments.date,
        num_requests=len(prompt_tokens),
        mean_prompt_tokens=round(float(prompt_tokens.mean()), 3),
        mean_output_tokens=round(float(output_tokens.mean()), 3),
        prompt_levels=list(PROMPT_LEVELS),
        prompt_quantiles=prompt_quantiles,
        output_levels=list(output_levels),
        output_quantiles=output_quantiles,
    )
    text = _one_row_a_line(table)
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {len(prompt_tokens)} requests, {len(text)} characters")


def _one_row_a_line(table: LengthTable) -> str:
    """JSON with one line for each field, and for each bin of the output quantiles."""
    fields = msgspec.to_builtins(table)
    rows = ",\n    ".join(json.dumps(row) for row in fields["output_quantiles"])
    head = "".join(f"  {json.dumps(key)}: {json.dumps(fields[key])},\n" for key in fields if key != "output_quantiles")
    return f'{{\n{head}  "output_quantiles": [\n    {rows}\n  ]\n}}\n'


if __name__ == "__main__":
    main()
