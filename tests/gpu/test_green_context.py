"""On a real GPU: a restricted device is slower, and the whole one is back afterwards."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from neobench.neo_engine.device_limits import copy_bytes_per_s, gemm_flops_per_s  # noqa: E402
from neobench.neo_engine.green_context import Restriction, create_context, cuda_problem  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(cuda_problem() is not None, reason=cuda_problem() or "")]


def test_a_restricted_device_has_its_share_of_compute_and_bandwidth() -> None:
    device = torch.device("cuda")
    sms = torch.cuda.get_device_properties(device).multi_processor_count // 4 // 8 * 8
    whole = copy_bytes_per_s(device), gemm_flops_per_s(device)
    facts = Restriction(create_context(sms, device), card=None, sms=sms, device=device).measure()
    again = gemm_flops_per_s(device)
    assert facts["fp16_tflops"] < 0.5 * whole[1] / 1e12
    assert facts["copy_gbps"] < 0.9 * whole[0] / 1e9
    assert again > 0.7 * whole[1]


def test_results_do_not_depend_on_the_share() -> None:
    device = torch.device("cuda")
    left, right = (torch.randn(512, 512, device=device) for _ in range(2))
    with Restriction(create_context(8, device), card=None, sms=8, device=device):
        restricted = left @ right
    torch.testing.assert_close(restricted, left @ right)
