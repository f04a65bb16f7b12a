"""Whether the engine computes what it should: against transformers, across policies, under pressure."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.h200.drive import drive
from benchmarks.h200.jobs import MeasurementError, Result, child_main
from neobench.neo_engine.build import build_executor
from neobench.neo_engine.config import EngineConfig, ModelShape
from neobench.neo_engine.cost_model import CostModel, CostTables, Curve, Surface
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.hf_config import hf_config
from neobench.neo_engine.model import sampling
from neobench.neo_engine.model.weights import TORCH_DTYPES
from neobench.neo_engine.request import SamplingParams

SHAPE = ModelShape(
    name="check",
    num_layers=4,
    hidden_size=1024,
    intermediate_size=2816,
    num_query_heads=8,
    num_kv_heads=2,
    head_dim=128,
    vocab_size=8192,
    max_position=2048,
    rope_theta=500000.0,
)

Requests = list[tuple[list[int], SamplingParams]]


@dataclass
class Output:
    """Of one request: its tokens, and for each of them the logits [vocab] that it was chosen by."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def agreement(settings: dict[str, Any]) -> Result:
    """Greedy tokens and logits of one policy, against transformers' Llama and against the plain policy gpu_only.

    The checkpoint is written by transformers, whose own forward pass over prompt and output, in float32 with the same
    (16-bit) weights, is the truth: `logit_error` is the largest ||logits - truth|| / ||truth|| of all output tokens.
    Of two policies' tokens of a request only the first difference counts, since what follows has another context. It
    is `unexplained` unless the logits of both are within `settings["tolerance"]` of the truth there: then it was a tie
    within rounding, which another batch breaks in another way.
    """
    requests = _mixed_requests(settings["num_requests"])
    with tempfile.TemporaryDirectory() as folder:
        model = _write_checkpoint(Path(folder), settings["engine"]["dtype"], settings["engine"]["device"])
        run = {**settings["engine"], "model": folder}
        outputs, stats = _generate(EngineConfig(**run), requests)
        roomy = {"policy": "gpu_only", "device_blocks": settings["roomy_blocks"], "host_memory_bytes": 0}
        plain, _ = _generate(EngineConfig(**{**run, **roomy}), requests)
    prompts = [prompt for prompt, _ in requests]
    errors, plain_errors = _logit_errors(model, prompts, outputs), _logit_errors(model, prompts, plain)
    differences = first_differences(outputs, plain)
    tolerance = settings["tolerance"]
    explained = sum(errors[i][at] <= tolerance and plain_errors[i][at] <= tolerance for i, at in differences.items())
    metrics = {
        "logit_error": max(map(max, errors)),
        "different_requests": float(len(differences)),
        "unexplained_differences": float(len(differences) - explained),
        "distinct_outputs": len({tuple(output.tokens) for output in outputs}) / len(outputs),
    }
    return Result(metrics, {"counters": stats, "requests": len(requests)}, {"logit_errors": errors})


def stress(settings: dict[str, Any]) -> Result:
    """Requests through tiers far too small for them: every one must end with its number of tokens.

    `swaps` and `preemptions` say how much was forced.
    """
    requests = [(prompt, params.max_tokens) for prompt, params in _mixed_requests(settings["num_requests"])]
    engine = _engine(_with_host_blocks(EngineConfig(**settings["engine"]), settings["host_blocks"]))
    driven = drive(engine, requests)
    left = engine.stats()["device_blocks_used"] + engine.stats()["host_blocks_used"]
    engine.close()
    if left:
        raise MeasurementError(f"{left} KV blocks are still taken after the last request")
    counters = driven.counters
    metrics = {
        "finished_requests": float(counters["finished_requests"]),
        "swaps": float(counters["swaps_in"] + counters["swaps_out"]),
        "preemptions": float(counters["preemptions"]),
    }
    return Result(metrics, {"counters": counters})


def first_differences(left: Sequence[Output], right: Sequence[Output]) -> dict[int, int]:
    """Index of each request whose tokens differ -> place of the first token that does."""
    places = {}
    for index, (ours, theirs) in enumerate(zip(left, right, strict=True)):
        pairs = enumerate(zip(ours.tokens, theirs.tokens, strict=True))
        place = next((place for place, (a, b) in pairs if a != b), None)
        if place is not None:
            places[index] = place
    return places


def offloading_tables() -> CostTables:
    """Costs of a made-up machine on which the host is worth using, so that every mode is met whatever this one is."""
    host = Surface((1, 256), (16, 2048), ((3e4, 6e4), (3e5, 6e6)))
    return CostTables(
        linear=Curve((1, 128, 2048), (4e5, 4.1e5, 6e6)),
        prefill_attention=Curve((1, 2048), (1e4, 1e6)),
        device_decode=Surface((1, 256), (16, 2048), ((1e4, 2e4), (2e4, 4e5))),
        host_decode=host,
        head=Curve((1, 256), (1e5, 2e5)),
        move=Curve((1, 64), (1e4, 5e5)),
        step_fixed_ns=1e5,
        sub_batch_fixed_ns=1e5,
    )


def _mixed_requests(count: int) -> Requests:
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, 4096, rng.integers(1, 150)).tolist(),
            SamplingParams(max_tokens=int(rng.integers(2, 40)), temperature=0.0, ignore_eos=True),
        )
        for _ in range(count)
    ]


def _with_host_blocks(config: EngineConfig, host_blocks: int) -> EngineConfig:
    return replace(config, host_memory_bytes=host_blocks * config.block_bytes(config.host_layout))


def _engine(config: EngineConfig, *, runs_ahead: bool = True) -> NeoEngine:
    """Iterations queued ahead overwrite the logits of those before: who reads logits goes without."""
    executor = build_executor(config, say=print)
    if not runs_ahead:
        vars(executor)["runs_ahead"] = False
    return NeoEngine(config, executor, CostModel(offloading_tables(), config.shape.num_layers))


def _write_checkpoint(folder: Path, dtype: str, device: str) -> Any:
    """Random weights; returns the model, in float32.

    Every part keeps unit variance, attention scores included. Sharper scores or smaller embeddings make the arithmetic
    itself ill-conditioned: with a deviation of 3 transformers' own bfloat16 is 9 % away from its float32.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM  # from_config has no annotations
    model = auto.from_config(AutoConfig.for_model(**hf_config(SHAPE, dtype)), attn_implementation="eager")
    scale = {"embed_tokens": 1.0, "lm_head": 4.0 * SHAPE.hidden_size**-0.5}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                part = name.split(".")[-2]
                weight.normal_(0.0, scale.get(part, weight.shape[1] ** -0.5))
    model.eval().to(TORCH_DTYPES[dtype]).save_pretrained(folder)
    return model.float().to(device)


def _generate(config: EngineConfig, requests: Requests) -> tuple[list[Output], dict[str, int | float]]:
    """Two requests arrive each step, so that prompts and decodes share steps."""
    engine = _engine(config, runs_ahead=False)
    outputs: dict[int, Output] = {}
    pending = list(requests)
    with _recorded_logits() as recorded:
        while pending or engine.has_work:
            for prompt, params in pending[:2]:
                outputs[engine.add_request(prompt, params)] = Output()
            del pending[:2]
            recorded.clear()
            tokens = engine.step()
            rows = [row for logits in recorded for row in logits]
            if len(rows) != len(tokens):
                raise MeasurementError(f"{len(tokens)} tokens came from {len(rows)} rows of logits")
            for token, row in zip(tokens, rows, strict=True):
                assert token.token_id is not None
                outputs[token.request_id].tokens.append(token.token_id)
                outputs[token.request_id].logits.append(row)
    stats = engine.stats()
    engine.close()
    return list(outputs.values()), stats


@contextmanager
def _recorded_logits() -> Iterator[list[Tensor]]:
    """Copies of all logits [rows, vocab] that executors hand to `sample`, in order."""
    recorded: list[Tensor] = []
    original = sampling.sample

    def record(logits: Tensor, rows: Sequence[Any], **known: Any) -> list[int]:
        recorded.append(logits[: len(rows)].float().cpu())
        return original(logits, rows, **known)

    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("neobench.neo_engine.executor") and getattr(module, "sample", None) is original
    ]
    if not users:
        raise MeasurementError("no executor chooses tokens by model.sampling.sample: its logits cannot be seen")
    for module in users:
        vars(module)["sample"] = record
    try:
        yield recorded
    finally:
        for module in users:
            vars(module)["sample"] = original


def _logit_errors(model: Any, prompts: Sequence[list[int]], outputs: Sequence[Output]) -> list[list[float]]:
    """Relative error of each output token's logits; the truth reads the tokens that the engine chose."""
    errors = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt + output.tokens[:-1]], device=model.device)
        with torch.no_grad():
            truth = model(ids).logits[0, len(prompt) - 1 :].float().cpu()
        ours = torch.stack(output.logits)
        errors.append(((ours - truth).norm(dim=1) / truth.norm(dim=1)).tolist())
    return errors


_KINDS = {"agreement": agreement, "stress": stress}


if __name__ == "__main__":
    child_main(lambda settings: _KINDS[settings["kind"]](settings))
