"""Many streams open at once, and none of them lost: `neobench run` against a server that holds each open.

    python -m benchmarks.loadgen.open_streams [--streams 10000] [--rate 1500] [--hold-s 10] [-o FILE]

Each stream gets its first token after FIRST_TOKEN_MS and its second and last one `--hold-s` later, from
`neobench.engines.null_server` in a process of its own. How many were open at once is counted twice, from the server's
own log and from the client's records. The command begins with a soft limit of SOFT_LIMIT open files, so that a run of
more streams shows that it raises its limit. Prints JSON; exits with 1 when a stream was lost or not all were open.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from neobench.engines.instant_log import read_instants
from neobench.results.store import iter_records

FIRST_TOKEN_MS = 100
SOFT_LIMIT = 256
TAIL_LINES = 5


class FailedError(Exception):
    """No run came about."""


def command_of(folder: Path, *, streams: int, rate: float, hold_s: float) -> list[str]:
    return [
        *(sys.executable, "-m", "neobench", "run", "--engine", "null_server", "--num-warmup", "0"),
        *("--first-token-ms", str(FIRST_TOKEN_MS), "--inter-token-ms", f"{1e3 * hold_s:g}", "--log-instants"),
        *("--workload", "synthetic:fixed:8,2", "--arrival", "constant", "--rate", f"{rate:g}"),
        *("--concurrency", str(streams), "--num-requests", str(streams), "--output", str(folder)),
    ]


def most_at_once(spans: Iterable[Sequence[int]]) -> int:
    """Of spans [start, end): the largest number that share an instant."""
    steps = sorted(step for start, end in spans for step in ((start, 1), (end, -1)))
    now = most = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


def measure(*, streams: int, rate: float, hold_s: float) -> dict[str, Any]:
    """One run into a folder that is removed. Raises FailedError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory(prefix="neobench-streams-") as scratch:
        folder = Path(scratch, "run")
        command = command_of(folder, streams=streams, rate=rate, hold_s=hold_s)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        summaries = list(folder.glob("*/summary.json"))
        if len(summaries) != 1:
            said = "\n".join(done.stderr.splitlines()[-TAIL_LINES:])
            raise FailedError(f"the run ended with exit status {done.returncode} and no summary:\n{said}")
        summary = json.loads(summaries[0].read_text())
        records = list(iter_records(summaries[0].parent))
        (log_path,) = folder.glob("*.instants.jsonl")
        served = [instants for instants in read_instants(log_path) if instants.completed]
    streamed = [record for record in records if len(record.token_ns) == 2]
    return {
        "streams": streams,
        "hold_s": hold_s,
        "outcomes": Counter(record.outcome.value for record in records),
        "open_at_once_by_server": most_at_once((instants.token_ns[0], instants.token_ns[-1]) for instants in served),
        "open_at_once_by_client": most_at_once(record.token_ns for record in streamed),
        "lag_p99_ms": summary["lag_p99_ms"],
        "client_loop_busy_share": summary["client_loop_busy_share"],
        "client_peak_rss_bytes": summary["client_peak_rss_bytes"],
        "open_files_hard_limit": hard,
        "reasons": summary["validity"]["reasons"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1_500.0, help="streams opened a second, default: %(default)s")
    parser.add_argument("--hold-s", type=float, default=10.0, help="between its tokens, default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the figures as JSON")
    given = parser.parse_args()
    if given.streams < 1 or given.rate <= 0 or given.streams / given.rate >= given.hold_s:
        parser.error("the last stream opens when the first has ended: raise --rate or --hold-s")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_LIMIT, hard), hard))
    try:
        figures = measure(streams=given.streams, rate=given.rate, hold_s=given.hold_s)
    except FailedError as error:
        sys.exit(str(error))
    text = json.dumps(figures, indent=2)
    print(text)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")
    if figures["outcomes"] != {"ok": given.streams}:
        sys.exit(f"not all of {given.streams} streams ended well: {dict(figures['outcomes'])}")
    open_at_once = min(figures["open_at_once_by_server"], figures["open_at_once_by_client"])
    if open_at_once < given.streams:
        sys.exit(f"only {open_at_once} of {given.streams} streams were open at once: raise --hold-s")


if __name__ == "__main__":
    main()
