"""How long modelled runs take here: each engine at each rate, by `neobench run --hardware`, in a process of its own.

python -m benchmarks.model.speed PROFILE.json [--requests 2000] [--engines neo,vllm:512] [--rates 0.5,2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def measure(profile: Path, engine: str, rate: float, requests: int, folder: Path) -> dict[str, float | str]:
    """CPU seconds and the peak of memory of the whole command, imports included."""
    command = [
        *(sys.executable, "-m", "neobench", "run", "--engine", engine, "--model", "llama-2-7b", "--json"),
        *("--hardware", str(profile), "--device-blocks", "54", "--host-memory", "40GiB", "--timeout", "1000000"),
        *("--rate", f"{rate:g}", "--num-requests", str(requests), "--output", str(folder)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"engine": engine, "rate": rate, "cpu_s": round(cpu_s, 2), "peak_mib": usage.ru_maxrss / 2**10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--engines", default="neo,vllm-neo-paper:256,vllm-neo-paper:512")
    parser.add_argument("--rates", default="0.2,0.4,0.5,0.6,1.5,2.5,3.1,3.5")
    chosen = parser.parse_args()
    total_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for engine in chosen.engines.split(","):
            for rate in chosen.rates.split(","):
                row = measure(chosen.profile, engine, float(rate), chosen.requests, Path(folder) / f"{engine}-{rate}")
                total_s += float(row["cpu_s"])
                print(json.dumps(row), flush=True)
    print(json.dumps({"total_cpu_s": round(total_s, 1)}))


if __name__ == "__main__":
    main()
