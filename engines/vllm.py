"""Adapter of vLLM: a real `vllm serve` of this or another environment, driven over HTTP like any other engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neobench.engines.launch import Launch
from neobench.engines.openai_http import CompletionsClient
from neobench.engines.process import HOST, ServerProcess, free_port
from neobench.engines.vllm_log import KILLED_ADVICE, explanation
from neobench.engines.vllm_metrics import MetricsReader, read_cache_config
from neobench.engines.vllm_release import PAPER_FLAGS_GONE, PAPER_HANDICAPS, Installed, find_vllm
from neobench.engines.vllm_settings import VllmSettings
from neobench.harness.engine import ClientRecipe, Completion, EngineError, TokenSink
from neobench.harness.request import PromptRequest
from neobench.neo_engine.hf_config import write_config

DEFAULT_START_TIMEOUT_S = 900.0
"""Enough to load a large model and to compile and capture its graphs on a cold machine."""


class VllmEngine:
    """One `vllm serve` from start to stop; may be started again."""

    def __init__(self, name: str, launch: Launch, *, paper: bool) -> None:
        self.name = name
        self._launch = launch
        self._settings = VllmSettings.of(launch.model, launch.options, argument=launch.argument, paper=paper)
        self._python = str(self._settings.options.get("engine_python") or sys.executable)
        self._start_timeout_s = float(self._settings.options.get("start_timeout_s") or DEFAULT_START_TIMEOUT_S)
        self._installed: Installed | None = None
        self._command: list[str] = []
        self._log_start = 0
        self._process: ServerProcess | None = None
        self._client: CompletionsClient | None = None
        self._metrics: MetricsReader | None = None

    @property
    def process_id(self) -> int | None:
        """Of the guard whose descendants the server's processes are, while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        assert self._process is None, f"{self.name} is started already"
        installed = self._installed = await find_vllm(self._python)
        self._settings.check_device(installed)
        if installed.untried_note is not None:
            self._launch.progress(f"Note: {installed.untried_note}")
        port = free_port()
        self._command = self._serve_command(installed, port)
        log_path = self._launch.log_path
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        self._process = ServerProcess(
            self._command,
            port=port,
            log_path=log_path,
            environment=self._settings.environment(installed),
            several_processes=True,
        )
        try:
            await self._process.start(timeout_s=self._start_timeout_s, progress=self._launch.progress)
        except EngineError as error:
            raise self._explained(error, installed.untried_note) from error
        self._client = CompletionsClient(self._process.url)
        await self._client.open()
        self._metrics = MetricsReader(self._process.url)

    async def generate(self, request: PromptRequest, sink: TokenSink) -> Completion:
        if self._client is None:
            raise EngineError(f"{self.name} is not started")
        return await self._client.generate(request, sink)

    async def check_alive(self) -> None:
        if self._process is None:
            raise EngineError(f"{self.name} is not started")
        try:
            self._process.check_alive()
        except EngineError as error:
            raise self._explained(error) from error

    async def describe(self) -> Mapping[str, Any]:
        """How it was started, and what it made of its KV cache. "handicaps" are the paper's, by flag."""
        installed, settings = self._installed, self._settings
        if installed is None or self._client is None or self._metrics is None:
            raise EngineError(f"{self.name} is not started")
        cache = read_cache_config(await self._metrics.text())
        models = await self._client.get_json("/v1/models")
        handicaps = {flag: PAPER_HANDICAPS[flag] for flag in settings.handicaps}
        return {
            "name": self.name,
            "version": installed.version,
            "tried_release": installed.is_tried,
            "python": self._python,
            "command": self._command,
            "environment": settings.environment(installed),
            "device": "cpu" if installed.is_cpu else "cuda",
            "dtype": settings.config.dtype,
            "vocab_size": settings.config.shape.vocab_size,
            "max_model_tokens": models["data"][0].get("max_model_len"),
            "max_batch_tokens": settings.token_budget,
            "block_size": int(cache["block_size"]) if "block_size" in cache else None,
            "device_blocks": int(cache["num_gpu_blocks"]) if cache.get("num_gpu_blocks", "").isdecimal() else None,
            "device_kv_tokens": settings.kv_cache(installed).tokens,
            "prefix_caching": bool(settings.options.get("prefix_caching")),
            "served_models": [model["id"] for model in models["data"]],
            **({"handicaps": handicaps, "handicaps_without_a_flag": list(PAPER_FLAGS_GONE)} if handicaps else {}),
        }

    async def stats(self) -> Mapping[str, int | float]:
        """Counters and levels of /metrics, see `vllm_release.METRICS`."""
        if self._metrics is None:
            raise EngineError(f"{self.name} is not started")
        return await self._metrics.stats()

    def client_recipe(self) -> ClientRecipe:
        assert self._process is not None, f"{self.name} is not started"
        return ClientRecipe(
            factory="neobench.engines.openai_http:CompletionsClient", arguments={"base_url": self._process.url}
        )

    async def stop(self) -> None:
        if self._metrics is not None:
            await self._metrics.close()
            self._metrics = None
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process is not None:
            await self._process.stop()
            self._process = None

    def _serve_command(self, installed: Installed, port: int) -> list[str]:
        folder = self._model_folder()
        # The module and not the `vllm` script: an environment moved or unpacked has no script that works.
        serve = [self._python, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--host", HOST]
        return [*serve, "--port", str(port), *self._settings.flags(installed, folder)]

    def _model_folder(self) -> Path:
        """The model's own, or for a named shape one with its config.json beside the log."""
        config = self._settings.config
        if not self._settings.is_named_shape:
            return Path(config.model).resolve()
        folder = self._launch.log_path.resolve().with_suffix(".model")
        write_config(folder, config.shape, config.dtype)
        return folder

    def _explained(self, error: EngineError, note: str | None = None) -> EngineError:
        cause = explanation(self._launch.log_path, self._log_start)
        if cause is None and "killed by SIGKILL" in str(error):
            cause = KILLED_ADVICE
        return EngineError("\n".join(part for part in (cause, note and f"Note: {note}.", str(error)) if part))
