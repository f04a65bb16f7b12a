"""`--emulate` and `--sms` where there is no GPU to restrict."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from neobench.cli import main

pytest.importorskip("torch")

from neobench.neo_engine.green_context import cuda_problem


@pytest.mark.skipif(cuda_problem() is None, reason="shows what happens without a GPU")
@pytest.mark.parametrize("command", ["run", "serve", "profile"])
@pytest.mark.parametrize("options", [["--emulate", "a10g", "--model", "llama-3.1-8b"], ["--sms", "8"]])
def test_emulating_a_card_is_refused_without_a_gpu(command: str, options: list[str]) -> None:
    result = CliRunner().invoke(main, [command, *options])
    assert result.exit_code == 2
    assert "torch finds none here" in result.output
