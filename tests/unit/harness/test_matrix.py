"""Sweep files: points in order, and errors with their lines."""

from __future__ import annotations

import pytest

from neobench.harness.matrix import SweepError, load_sweep

KNOWN = ("engine", "rate", "device-blocks", "workload")


def points(text: str) -> list[dict[str, object]]:
    return [dict(point.values) for point in load_sweep(text, KNOWN).points]


def test_product_defaults_exclude_and_include() -> None:
    text = """
defaults: {workload: carperai}
matrix:
  engine: [neo, gpu_only]
  rate: [1, 2.5]
  device_blocks: 24
exclude:
  - {engine: gpu_only, rate: 2.5}
include:
  - {engine: "null", rate: 9, workload: "synthetic:4,4"}
repeats: 3
"""
    common = {"workload": "carperai", "device-blocks": 24}
    assert points(text) == [
        {"engine": "neo", "rate": 1, **common},
        {"engine": "neo", "rate": 2.5, **common},
        {"engine": "gpu_only", "rate": 1, **common},
        {"engine": "null", "rate": 9, "workload": "synthetic:4,4"},
    ]
    assert load_sweep(text, KNOWN).repeats == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("repeats: 2", "line 1: no points"),
        ("matrix:\n  engin: [neo]", "line 2: unknown setting 'engin'; the nearest known one is 'engine'"),
        ("matrx: {engine: [neo]}", "line 1: unknown section 'matrx'; the nearest known one is 'matrix'"),
        ("matrix:\n  rate: [1]\n  rate: [2]", "line 3: 'rate' is there twice"),
        ("matrix:\n  rate: [1, 1]", "line 2: rate has 1 twice"),
        ("matrix:\n  rate: []", "line 2: rate has no values"),
        ("matrix:\n  rate: [{a: 1}]", "line 2: a single value"),
        (
            "matrix:\n  engine: [null]",
            "line 2: a single value is wanted here: a text, a number, true or false; the engine null",
        ),
        ("matrix: {rate: [1]}\nexclude:\n  - {rate: 2}", "line 3: this entry of exclude covers no point"),
        ("matrix: {rate: [1]}\ninclude: {rate: 2}", "line 2: a list of settings"),
        ("matrix: {rate: [1]}\nrepeats: 0", "line 2: repeats is a whole number"),
        ("matrix: {rate: [1]}\nrepeats: yes", "line 2: repeats is a whole number"),
        ("matrix: {rate: [1]\nrepeats: 1", "line 2: not YAML"),
        ("- 1", "line 1: names and values"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(SweepError) as caught:
        load_sweep(text, KNOWN)
    assert message in str(caught.value)
