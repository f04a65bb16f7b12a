from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neobench.workloads.registry import WORKLOADS, create
from neobench.workloads.workload import WorkloadError


def test_every_workload_can_be_made_and_describes_its_source(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("prompt,max_tokens\n10,20\n30,4\n")
    arguments = {"synthetic": ":100,20", "trace": f":{trace}"}
    for name, entry in WORKLOADS.items():
        if name in ("hf", "sharegpt"):  # They need a tokenizer: see test_datasets.py.
            continue
        workload = create(name + arguments.get(name, ""), {})
        assert workload.name.startswith(name)
        assert entry.description
        assert workload.describe()["source"]
        assert json.loads(json.dumps(workload.describe())) == workload.describe()
        prompt_tokens, output_tokens = workload.draw_lengths(300, np.random.default_rng(0))
        assert prompt_tokens.shape == output_tokens.shape == (300,)
        assert prompt_tokens.min() >= 1
        assert output_tokens.min() >= 1
        longest = workload.longest_request_tokens()
        assert longest is not None
        assert (prompt_tokens + output_tokens).max() <= longest


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(WorkloadError, match="did you mean carperai"):
        create("carper", {})


def test_importing_the_registry_loads_nothing_heavy() -> None:
    heavy = ("numpy", "msgspec", "datasets")
    code = f"import sys, neobench.workloads.registry; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "prompt_range", "output_range"),
    [
        ("synthetic:100,20", (90, 110), (18, 22)),
        ("synthetic:1,1", (1, 1), (1, 1)),
        ("synthetic:15,7", (14, 16), (7, 7)),
    ],
)
def test_synthetic_lengths_fill_their_range(
    name: str, prompt_range: tuple[int, int], output_range: tuple[int, int]
) -> None:
    prompt_tokens, output_tokens = create(name, {}).draw_lengths(2_000, np.random.default_rng(0))
    assert (prompt_tokens.min(), prompt_tokens.max()) == prompt_range
    assert (output_tokens.min(), output_tokens.max()) == output_range


def test_fixed_lengths_are_the_ones_asked_for() -> None:
    workload = create("synthetic:fixed:100,20", {})
    prompt_tokens, output_tokens = workload.draw_lengths(5, np.random.default_rng(0))
    assert prompt_tokens.tolist() == [100] * 5
    assert output_tokens.tolist() == [20] * 5
    assert workload.longest_request_tokens() == 120


def test_lognormal_lengths_have_their_mean_and_their_sigma() -> None:
    workload = create("synthetic:lognormal:2000,300", {"sigma": "0.5"})
    for tokens, mean in zip(workload.draw_lengths(200_000, np.random.default_rng(0)), (2000, 300), strict=True):
        assert tokens.mean() == pytest.approx(mean, rel=0.01)
        assert np.log(tokens).std() == pytest.approx(0.5, rel=0.01)
    assert workload.describe()["sigma"] == 0.5


def test_zipf_lengths_follow_the_power_law() -> None:
    workload = create("synthetic:zipf:50,4", {"exponent": 2})
    prompt_tokens, output_tokens = workload.draw_lengths(200_000, np.random.default_rng(0))
    counts = np.bincount(prompt_tokens, minlength=51)
    assert counts[0] == 0
    assert len(counts) == 51
    assert counts[1] / counts[2] == pytest.approx(4, rel=0.03)
    assert counts[1] / counts[3] == pytest.approx(9, rel=0.05)
    assert output_tokens.max() == 4
    assert workload.longest_request_tokens() == 54


@pytest.mark.parametrize(
    "name", ["synthetic", "synthetic:", "synthetic:5", "synthetic:5,0", "synthetic:a,b", "synthetic:1,2,3"]
)
def test_a_bad_synthetic_argument_shows_the_form(name: str) -> None:
    with pytest.raises(WorkloadError, match=f"'{name}' is not synthetic:IN,OUT"):
        create(name, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("synthetic:5,5", {"seed": 1}, "takes no options"),
        ("synthetic:normal:5,5", {}, "the shape is one of uniform, fixed"),
        ("synthetic:zipf:5,5", {"sigma": 1}, "unknown option 'sigma' of synthetic:zipf; It has exponent"),
        ("synthetic:zipf:5,5", {"exponent": "x"}, "exponent must be a positive number, not 'x'"),
        ("azure-code:5", {}, "takes no argument"),
        ("azure-conv", {"fil": "x"}, "did you mean 'file'"),
        ("azure-conv", {"skip_malformed": True}, "skip_malformed is about a file"),
        ("carperai", {"skip_malformed": True}, "skip_malformed is about a file"),
        ("trace", {}, "trace needs a file"),
        ("trace:x.csv", {"skip_malformed": "perhaps"}, "skip_malformed must be true or false, not 'perhaps'"),
        ("trace:/nowhere/x.csv", {}, "cannot read /nowhere/x.csv"),
        ("carperai:5", {}, "takes no argument"),
        ("carperai", {"fil": "x"}, "unknown option 'fil'"),
        ("carperai", {"file": "x.json", "tokenizer": "y"}, "not from both"),
        ("carperai", {"tokenizer": "/nowhere/tokenizer.json"}, "cannot load the tokenizer"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        create(name, options)


def test_a_local_file_is_used_up_before_a_row_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl"
    path.write_text("".join(f'{{"prompt": {n}, "max_tokens": {n + 1}}}\n' for n in range(1, 11)))
    workload = create("carperai", {"file": str(path)})
    prompt_tokens, output_tokens = workload.draw_lengths(25, np.random.default_rng(0))
    assert sorted(prompt_tokens[:10]) == sorted(prompt_tokens[10:20]) == list(range(1, 11))
    assert (output_tokens == prompt_tokens + 1).all()
    assert workload.longest_request_tokens() == 21
    assert workload.describe()["file_requests"] == 10
