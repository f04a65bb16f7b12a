from __future__ import annotations

from typing import Any

import pytest

from neobench.reports.run import ReportRun, describe_machine

from .conftest import MakeRun


def test_a_run_is_read_from_its_two_documents(make_run: MakeRun) -> None:
    run = {
        "spec": {
            "engine": {"name": "neo", "options": {}},
            "workload": {"name": "carperai"},
            "model": "tiny-llama",
            "arrival": {"kind": "poisson", "rate": 2.5},
        },
        "request_rate": 2.5,
        "fingerprint": {"cpu": {"model": "Xeon", "available_cores": 1}, "gpus": None},
    }
    summary = make_run("neo", 2.5, 0.5).summary
    expected = ReportRun(
        engine="neo", workload="carperai", model="tiny-llama", request_rate=2.5, machine="Xeon, 1 core", summary=summary
    )
    assert ReportRun.from_documents(run, summary) == expected
    assert expected.per_token_latency_s == 0.5


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ({}, ""),
        ({"cpu": None, "gpus": None}, ""),
        (
            {"cpu": {"model": "Intel(R) Xeon(R)  Gold CPU", "available_cores": 8}, "gpus": []},
            "Intel Xeon Gold CPU, 8 cores",
        ),
        ({"gpus": [{"name": "H200"}, {"name": "H200"}, {"name": "T4"}], "cpu": {}}, "2 x H200, T4"),
    ],
)
def test_a_machine_in_a_few_words(fingerprint: dict[str, Any], words: str) -> None:
    assert describe_machine(fingerprint) == words


@pytest.mark.parametrize(
    ("engine_stats", "share"),
    [
        ({"cpu_decode_tokens": 25, "gpu_decode_tokens": 75}, 0.25),
        ({"cpu_decode_tokens": 0, "gpu_decode_tokens": 75}, 0.0),
        ({"cpu_decode_tokens": 0, "gpu_decode_tokens": 0}, None),
        ({}, None),
    ],
)
def test_the_share_of_decoding_done_on_the_host(
    make_run: MakeRun, engine_stats: dict[str, int], share: float | None
) -> None:
    assert make_run("neo", 1, 1, engine_stats=engine_stats).host_decode_share == share
