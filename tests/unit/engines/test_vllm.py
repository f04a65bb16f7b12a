"""The parts of the vLLM adapter that need no vLLM; tests/e2e/test_vllm.py runs the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from neobench.engines import group_guard
from neobench.engines.launch import Launch
from neobench.engines.registry import create, prompt_limits
from neobench.engines.vllm_log import explanation
from neobench.engines.vllm_metrics import read_cache_config, read_stats
from neobench.engines.vllm_release import Installed
from neobench.engines.vllm_settings import VllmSettings
from neobench.harness.engine import EngineError

CPU, GPU = Installed("0.32.0+cpu", True), Installed("0.26.0", False)


def settings(argument: str | None = None, *, paper: bool = False, **options: Any) -> VllmSettings:
    return VllmSettings.of("tiny", options, argument=argument, paper=paper)


def value_of(flags: list[str], flag: str) -> str:
    return flags[flags.index(flag) + 1]


def test_kv_on_a_cpu_has_the_tokens_of_the_other_engines(tmp_path: Path) -> None:
    flags = settings(device_blocks=54).flags(CPU, tmp_path)
    assert value_of(flags, "--block-size") == "32"
    assert value_of(flags, "--num-gpu-blocks-override") == str(27 + 1)
    assert value_of(flags, "--max-model-len") == str(54 * 16)
    kv_bytes_per_token = 2 * 8 * 2 * 64 * 4
    assert value_of(flags, "--kv-cache-memory-bytes") == str(28 * 32 * kv_bytes_per_token)


def test_kv_on_a_gpu(tmp_path: Path) -> None:
    blocks = settings(device="cuda", device_blocks=54).flags(GPU, tmp_path)
    assert (value_of(blocks, "--block-size"), value_of(blocks, "--num-gpu-blocks-override")) == ("16", "55")
    fits = settings(device="cuda").flags(GPU, tmp_path)
    assert value_of(fits, "--gpu-memory-utilization") == "0.9"
    assert "--num-gpu-blocks-override" not in fits


def test_the_name_fixes_the_token_budget(tmp_path: Path) -> None:
    assert value_of(settings("256", max_batch_tokens=999).flags(CPU, tmp_path), "--max-num-batched-tokens") == "256"
    assert "--max-num-batched-tokens" not in settings().flags(CPU, tmp_path)


def test_handicaps_and_prefix_cache_only_when_asked_for(tmp_path: Path) -> None:
    plain, paper = settings().flags(CPU, tmp_path), settings(paper=True, prefix_caching=True).flags(CPU, tmp_path)
    assert "--no-enable-prefix-caching" in plain
    assert "--enforce-eager" not in plain
    assert {"--enforce-eager", "--no-async-scheduling", "--enable-prefix-caching"} <= set(paper)


def test_a_device_that_the_build_cannot_use_is_refused() -> None:
    with pytest.raises(EngineError, match="built for CPUs"):
        settings(device="cuda").check_device(CPU)
    with pytest.raises(EngineError, match="add --device cuda"):
        settings().check_device(GPU)


@pytest.mark.parametrize(
    ("argument", "options", "message"),
    [
        ("many", {}, "number of tokens an iteration, as in vllm:256"),
        (None, {"engine_pyton": "x"}, "did you mean engine_python"),
        (None, {"dtype": "int3"}, "dtype 'int3' is not one of"),
    ],
)
def test_impossible_options_are_refused(argument: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        settings(argument, **options)


def test_prompts_fit_into_the_kv_cache() -> None:
    limits = prompt_limits("vllm:256", "tiny", {"device_blocks": 10})
    assert (limits.vocab_size, limits.max_model_tokens) == (4096, 160)


@pytest.mark.parametrize("options", [{}, {"hardware": "g4dn.xlarge"}])
def test_a_name_with_a_wrong_token_budget_is_refused_before_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="number of tokens"):
        prompt_limits("vllm:many", "tiny", options)


@pytest.mark.parametrize(
    ("python", "message"),
    [("/nowhere/python", "cannot run --engine-python"), (sys.executable, "not installed .* with --engine-python")],
)
async def test_no_vllm_says_what_to_give(tmp_path: Path, python: str, message: str) -> None:
    engine = create("vllm", Launch(model="tiny", options={"engine_python": python}, log_path=tmp_path / "log"))
    with pytest.raises(EngineError, match=message):
        await engine.start()
    await engine.stop()


def test_metrics_become_counters_and_levels() -> None:
    text = (
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        'vllm:gpu_cache_usage_perc{engine="0"} 0.5\nvllm:gpu_cache_usage_perc{engine="1"} 0.25\n'
        'vllm:request_success_total{finished_reason="stop"} 2.0\n'
        'vllm:request_success_total{finished_reason="length"} 1e+06\n'
        'vllm:cache_config_info{block_size="32",num_gpu_blocks="129"} 1.0\n'
    )
    stats = read_stats(text)
    assert stats == {"running_requests": 4.0, "device_kv_used_fraction": 0.375, "finished_requests": 1_000_002}
    assert [type(value) for value in stats.values()] == [float, float, int]
    assert read_cache_config(text) == {"block_size": "32", "num_gpu_blocks": "129"}


def test_the_cause_is_found_above_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    before = "(Worker) ERROR ValueError: of an earlier start\n"
    log.write_text(
        before
        + "(APIServer) WARNING [base.py:380] ValueError: Tokenizer not available\n"
        + "(Worker) ERROR [w.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        + "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    told = explanation(log, len(before))
    assert told is not None
    assert told.startswith("OutOfMemoryError: CUDA out of memory")
    assert "fewer --device-blocks" in told


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise exists on Linux only")
def test_the_guard_takes_grandchildren_along() -> None:
    family = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    starter = (
        "import os, subprocess, sys, time\n"
        f"wrapper = [sys.executable, '-I', {group_guard.__file__!r}, str(os.getpid())]\n"
        f"program = [sys.executable, '-c', {family + '; time.sleep(99)'!r}]\n"
        "print(subprocess.Popen([*wrapper, *program], start_new_session=True).pid, flush=True)\n"
        "time.sleep(99)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        guard = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 60
        while len(guard.children(recursive=True)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family_tree = [guard, *guard.children(recursive=True)]
        os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family_tree, timeout=30)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
