"""A shape as Hugging Face writes it, the other way round than config.py: for engines that read model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neobench.neo_engine.config import ModelShape


def hf_config(shape: ModelShape, dtype: str) -> dict[str, Any]:
    """config.json of a Llama of this shape, as releases before and after transformers 5 read it."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        scaling = shape.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_query_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": rope,
        **({"rope_scaling": rope} if shape.rope_scaling is not None else {}),
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_bias": shape.attention_bias,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": list(shape.eos_token_ids) or 2,
        "torch_dtype": dtype,
    }


def write_config(folder: Path, shape: ModelShape, dtype: str) -> None:
    """A model folder without weights, for an engine that makes them up."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(shape, dtype), indent=2))
