"""What tests on a GPU and tests without one share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def fail_in_layer_4(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, until the monkeypatch is undone, the GPU executor raises ArithmeticError in mid-step."""

    def start_failing() -> None:
        from neobench.neo_engine.model.fused_layers import FusedLayers

        real = FusedLayers.after_attention

        def fails(self: FusedLayers, layer: int, *arguments: Any) -> Any:
            if layer == 4:
                raise ArithmeticError("as if a kernel had failed")
            return real(self, layer, *arguments)

        monkeypatch.setattr(FusedLayers, "after_attention", fails)

    return start_failing
