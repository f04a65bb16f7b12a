"""What a long run takes of memory: `neobench run` as a user starts it, to the end of its summary and its figure.

    python -m benchmarks.loadgen.memory [--requests 100000] [--tokens 128] [--concurrency 64] [-o FILE]

A closed loop of one client process against `neobench.engines.null_server`. Prints JSON. `peak_rss_bytes` is the largest
resident memory of the command, or of a process that it started if one is larger, as the kernel reports it at the exit;
`client_peak_rss_bytes` the client's up to its last request, so that the difference is what the evaluation adds. Exits
with 1 when the peak is over the limit, or when a request failed: a run that lost some would need less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_BYTES = 2**30
PROMPT_TOKENS = 32
TAIL_LINES = 5


class FailedError(Exception):
    """The run did not come to an end that can be measured."""


def command_of(folder: Path, *, requests: int, tokens: int, concurrency: int) -> list[str]:
    return [
        *(sys.executable, "-m", "neobench", "run", "--engine", "null_server"),
        *("--workload", f"synthetic:fixed:{PROMPT_TOKENS},{tokens}", "--arrival", "closed"),
        *("--concurrency", str(concurrency), "--num-requests", str(requests), "--output", str(folder)),
    ]


def measure(*, requests: int, tokens: int, concurrency: int) -> dict[str, Any]:
    """One run into a folder that is removed. Raises FailedError.

    To be called in a small process: what the kernel counts of a child begins with the memory of its parent.
    """
    with tempfile.TemporaryDirectory(prefix="neobench-memory-") as scratch:
        folder = Path(scratch, "run")
        command = command_of(folder, requests=requests, tokens=tokens, concurrency=concurrency)
        log_path = Path(scratch, "log")
        start_s = time.monotonic()
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        # Not Popen.wait: what the kernel counted of a child goes with the one call that reaps it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - start_s
        summaries = list(folder.glob("*/summary.json"))
        if len(summaries) != 1:
            said = "\n".join(log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise FailedError(f"the run ended with exit status {process.returncode} and no summary:\n{said}")
        summary = json.loads(summaries[0].read_text())
    return {
        "requests": requests,
        "tokens": tokens,
        "concurrency": concurrency,
        "completed": summary["completed"],
        "request_throughput": summary["request_throughput"],
        "output_throughput": summary["output_throughput"],
        "run_s": summary["duration"],
        "wall_s": wall_s,
        "client_peak_rss_bytes": summary["client_peak_rss_bytes"],
        "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "limit_bytes": LIMIT_BYTES,
        # A closed loop runs its client at its ceiling, which the rules call saturated.
        "reasons": summary["validity"]["reasons"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer, default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight, default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the figures as JSON")
    given = parser.parse_args()
    if min(given.requests, given.tokens, given.concurrency) < 1:
        parser.error("--requests, --tokens and --concurrency must be at least 1")
    try:
        figures = measure(requests=given.requests, tokens=given.tokens, concurrency=given.concurrency)
    except FailedError as error:
        sys.exit(str(error))
    text = json.dumps(figures, indent=2)
    print(text)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")
    if figures["completed"] < given.requests:
        sys.exit(f"{given.requests - figures['completed']} of {given.requests} requests did not complete")
    if figures["peak_rss_bytes"] > LIMIT_BYTES:
        sys.exit(f"the run took {figures['peak_rss_bytes'] / 2**20:.0f} MiB, more than {LIMIT_BYTES / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
