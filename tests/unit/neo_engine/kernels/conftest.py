"""Triton kernels run on the GPU where there is one, else in Triton's interpreter: numpy, so shapes are small.

Whether triton compiles or interprets is settled when it is first imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def _kernels(name: str) -> ModuleType:
    """A module of neo_engine/kernels; Triton's are compiled or interpreted."""
    if name.startswith("triton"):
        triton = pytest.importorskip("triton", reason="triton is not installed")
        if not torch.cuda.is_available():
            if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
                pytest.skip("before 3.7 Triton's interpreter cannot loop under the numpy of today")
            if not triton.knobs.runtime.interpret:
                pytest.skip("triton was imported before it could be told to interpret")
    return importlib.import_module(f"neobench.neo_engine.kernels.{name}")


@pytest.fixture(scope="session")
def triton_attention() -> ModuleType:
    return _kernels("triton_attention")


@pytest.fixture(params=["reference", "triton_fused", "fused"])
def steps(request) -> ModuleType:
    """The torch twins, the Triton kernels, and the door that chooses between them."""
    return _kernels(request.param)


@pytest.fixture(params=["reference", "triton_copies", "copies"])
def copiers(request) -> ModuleType:
    """As `steps`."""
    return _kernels(request.param)
