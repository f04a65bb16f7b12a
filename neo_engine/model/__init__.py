"""Llama: its arithmetic, its weights and the choice of tokens. Knows nothing of requests' KV cache or of scheduling."""

from neobench.neo_engine.model.llama import LlamaModel
from neobench.neo_engine.model.sampling import sample
from neobench.neo_engine.model.weights import build_model, load_checkpoint, random_model

__all__ = ["LlamaModel", "build_model", "load_checkpoint", "random_model", "sample"]
