"""The cases as data: every job can be started as far as its settings go, and every row has a job that fills it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neobench.neo_engine.config import EngineConfig, resolve_shape, shape_from_hf_config
from neobench.neo_engine.emulation import emulated_settings
from neobench.neo_engine.request import SamplingParams, check_request

pytest.importorskip("torch")

from benchmarks.h200.cases import CASES, Device, Scale, comparisons, jobs
from benchmarks.h200.drive import read_prompts
from benchmarks.h200.prompts import WARMUP_OUTPUT_TOKENS, draw
from neobench.neo_engine.hf_config import write_config

SCALES: list[tuple[Scale, Device]] = [("full", "cuda"), ("tiny", "cpu")]


@pytest.mark.parametrize(("scale", "device"), SCALES)
@pytest.mark.parametrize("case", CASES)
def test_every_engine_holds_every_request_of_its_case(case: str, scale: Scale, device: Device, tmp_path: Path) -> None:
    for job in jobs(case, scale=scale, device=device):
        if job.prompts is None:
            continue
        requests = []
        for arguments in (job.prompts, *job.also.values()):
            draw(tmp_path / "prompts.json", **arguments)
            prompts = read_prompts(str(tmp_path / "prompts.json"))
            assert len(prompts["requests"]) == arguments["num_requests"]
            requests += [*prompts["requests"], *prompts["warmup"]]
        if job.child == "vllm_child":
            llm = job.settings["llm"]
            longest = max(len(prompt) + output for prompt, output in requests)
            assert longest <= llm["max_model_len"] <= llm["num_gpu_blocks_override"] * llm["block_size"]
            continue
        config = EngineConfig(**emulated_settings(job.settings["engine"]))
        for prompt, output in requests:
            check_request(config, prompt, SamplingParams(max_tokens=output))


@pytest.mark.parametrize(("scale", "device"), SCALES)
def test_every_row_has_jobs_that_fill_it_and_every_job_a_row(scale: Scale, device: Device) -> None:
    for case in CASES:
        made = {(part, job.system) for job in jobs(case, scale=scale, device=device) for part in (job.case, *job.also)}
        rows = comparisons(case, scale=scale, device=device)
        needed = {(row.case, system) for row in rows for system in (row.system, *row.baselines)}
        assert needed == made


def test_the_same_prompts_go_to_every_system_of_a_case() -> None:
    for case in ("2", "3", "5"):
        assert (
            len({json.dumps(job.prompts) for job in jobs(case, scale="full", device="cuda") if job.case == case}) == 1
        )


def test_settings_of_the_cases_are_those_asked_for() -> None:
    engines = {
        (job.case, job.system): job.settings["engine"]
        for case in CASES
        for job in jobs(case, scale="full", device="cuda")
        if job.child in ("neo_child", "iterations_child")
    }
    assert engines["3", "asymmetric_pipeline"]["device_blocks"] == 54
    assert engines["3", "asymmetric_pipeline"]["max_batch_tokens"] == 2048
    assert engines["3", "chunked_prefill"]["max_batch_tokens"] == 512
    assert engines["4a", "asymmetric_pipeline"]["device_blocks"] == 831
    assert engines["6-out50", "asymmetric_pipeline-4t"]["host_threads"] == 4
    a10g = EngineConfig(**emulated_settings(engines["6-out50", "gpu_only"]))
    assert (a10g.sms, a10g.device_blocks * a10g.block_size) == (8, 26_400)
    assert all(engine["device"] == "cuda" for engine in engines.values())


def test_timelines_are_taken_of_neo_on_a_gpu_and_shown_where_they_are() -> None:
    replayed = {
        (part, job.system)
        for case in CASES
        for job in jobs(case, scale="full", device="cuda")
        for part in job.settings.get("timeline_requests", {})
    }
    assert {case for case, _ in replayed} == {"3", "4b-500-500", "6-out50"}
    assert {system.partition("-")[0] for _, system in replayed} == {"asymmetric_pipeline"}
    rows = [row for case in CASES for row in comparisons(case, scale="full", device="cuda")]
    gaps = {(row.case, row.system): row.required for row in rows if row.metric == "device_gap_fraction"}
    assert gaps == dict.fromkeys(replayed | {("4a", "asymmetric_pipeline")}, "<= 0.10")


def test_a_cpu_has_no_timeline() -> None:
    for case in CASES:
        assert not any("timeline_requests" in job.settings for job in jobs(case, scale="tiny", device="cpu"))
        metrics = {row.metric for row in comparisons(case, scale="tiny", device="cpu")}
        assert not metrics & {"device_idle_fraction", "device_gap_fraction"}


def test_profiles_come_first_once_and_only_when_asked_for() -> None:
    plain = jobs("3", scale="full", device="cuda")
    thorough = jobs("3", scale="full", device="cuda", thorough=True)
    profiles = thorough[: -len(plain)]
    assert thorough[len(profiles) :] == plain
    assert len(profiles) == sum(job.system.startswith("asymmetric_pipeline") for job in plain)
    for profile in profiles:
        assert profile.once
        assert profile.settings["kind"] == "profile"


def test_prompts_are_the_same_for_the_same_seed_and_warm_up_is_short(tmp_path: Path) -> None:
    arguments = {"workload": "exact:30,64", "num_requests": 5, "num_warmup": 3, "model": "tiny"}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(tmp_path / name, **arguments, seed=seed)
    first, second, third = (read_prompts(str(tmp_path / name)) for name in "abc")
    assert first == second
    assert first["requests"] != third["requests"]
    assert [(len(prompt), output) for prompt, output in first["requests"]] == [(30, 64)] * 5
    assert [output for _, output in first["warmup"]] == [WARMUP_OUTPUT_TOKENS] * 3
    assert first["facts"]["output_tokens"] == 320
    heads = [prompt[0] for prompt, _ in first["requests"] + first["warmup"]]
    assert len(set(heads)) == len(heads)


@pytest.mark.parametrize("model", ["tiny", "llama-2-7b", "llama-3.1-8b", "llama-3.1-70b"])
def test_config_json_describes_the_same_shape(model: str, tmp_path: Path) -> None:
    shape = resolve_shape(model)
    write_config(tmp_path / model, shape, "bfloat16")
    read = shape_from_hf_config(tmp_path / model)
    eos = shape.eos_token_ids or (2,)
    assert (read, eos) == (type(shape)(**{**vars(shape), "eos_token_ids": eos}), read.eos_token_ids)
