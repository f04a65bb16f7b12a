"""What the correctness check reads of an engine: the logits that each token was chosen by."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from benchmarks.h200 import check_child  # noqa: E402
from neobench.neo_engine.config import EngineConfig  # noqa: E402
from neobench.neo_engine.executor.gpu import GpuExecutor  # noqa: E402
from neobench.neo_engine.model.weights import build_model  # noqa: E402

CONFIG = replace(
    EngineConfig(policy="asymmetric_pipeline", device_blocks=40, host_threads=1, max_batch_tokens=256),
    host_memory_bytes=2**26,
)


@pytest.mark.parametrize("policy", ["gpu_only", "chunked_prefill", "asymmetric_pipeline"])
def test_each_token_comes_with_the_logits_it_was_chosen_by(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_cpu(config: EngineConfig, **_: object) -> GpuExecutor:
        return GpuExecutor(config, build_model(config, device=torch.device("cpu")))

    monkeypatch.setattr(check_child, "build_executor", on_the_cpu)
    requests = check_child._mixed_requests(6)
    outputs, _ = check_child._generate(replace(CONFIG, policy=policy), requests)
    for (_, params), output in zip(requests, outputs, strict=True):
        assert len(output.tokens) == params.max_tokens
        assert [int(logits.argmax()) for logits in output.logits] == output.tokens
