"""One measurement of real vLLM, offline and all requests at once. Runs where vLLM is; knows nothing of neobench."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.h200.jobs import MeasurementError, Result, child_main


def throughput(settings: dict[str, Any]) -> Result:
    """Output tokens a second of one `LLM.generate` over all requests, after one over the warm-up requests.

    Tokens are counted from token ids. Random weights, no tokenizer, no prefix cache, chunked prefill; CUDA graphs
    unless `settings["llm"]["enforce_eager"]`. Raises MeasurementError for a wrong number of tokens.
    """
    if settings.get("in_process"):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm

    parts = [(part["case"], json.loads(Path(part["path"]).read_text())) for part in settings["parts"]]
    llm = vllm.LLM(
        model=settings["model_folder"],
        skip_tokenizer_init=True,
        load_format="dummy",
        enable_prefix_caching=False,
        enable_chunked_prefill=True,
        disable_log_stats=True,
        **settings["llm"],
    )
    facts = {
        "vllm": vllm.__version__,
        "llm": settings["llm"],
        "in_process": bool(settings.get("in_process")),
        "num_gpu_blocks": _num_gpu_blocks(llm),
    }
    for _, prompts in parts:
        _generate(vllm, llm, prompts["warmup"])
    answers = (_measured(vllm, llm, case, prompts) for case, prompts in parts for _ in range(settings["measurements"]))
    first = next(answers)
    result = Result(first["metrics"], facts | first["facts"], first["raw"])

    def rest() -> None:
        for answer in answers:
            result.again.append(answer)
            result.save()

    result.rest = rest
    return result


def _measured(vllm: Any, llm: Any, case: str, prompts: dict[str, Any]) -> dict[str, Any]:
    requests = prompts["requests"]
    start = time.perf_counter()
    counts = _generate(vllm, llm, requests)
    wall_s = time.perf_counter() - start
    wanted = [output_tokens for _, output_tokens in requests]
    if counts != wanted:
        wrong = sum(count != number for count, number in zip(counts, wanted, strict=True))
        raise MeasurementError(f"{wrong} of {len(wanted)} requests got another number of tokens than asked for")
    metrics = {"output_tokens_per_s": sum(counts) / wall_s, "requests_per_s": len(counts) / wall_s}
    return {"case": case, "metrics": metrics, "facts": {"prompts": prompts["facts"]}, "raw": {"wall_s": wall_s}}


def _num_gpu_blocks(llm: Any) -> int | None:
    """What vLLM made of the override; None where a release keeps it elsewhere, which must not cost the run."""
    try:
        return int(llm.llm_engine.vllm_config.cache_config.num_gpu_blocks)
    except (AttributeError, TypeError):
        return None


def _generate(vllm: Any, llm: Any, requests: list[tuple[list[int], int]]) -> list[int]:
    """Output tokens of each request, in order."""
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [
        vllm.SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        for _, output_tokens in requests
    ]
    return [len(done.outputs[0].token_ids) for done in llm.generate(prompts, params, use_tqdm=False)]


if __name__ == "__main__":
    child_main(throughput)
