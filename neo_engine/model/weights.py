"""Fills a Llama's weights: from a Hugging Face checkpoint, or at random for a shape without one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neobench.neo_engine.config import NAMED_SHAPES, ConfigError, EngineConfig, ModelShape
from neobench.neo_engine.model.llama import LayerWeights, LlamaModel, ModelWeights, allocate_weights

Progress = Callable[[int, int], None]
"""Called after each tensor with (bytes loaded, bytes in all)."""

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def build_model(config: EngineConfig, *, device: torch.device, progress: Progress | None = None) -> LlamaModel:
    """An engine's model: random weights from `config.seed` for a named shape, else the checkpoint of the folder."""
    dtype = TORCH_DTYPES[config.dtype]
    if config.model in NAMED_SHAPES:
        return random_model(config.shape, config.seed, dtype=dtype, device=device)
    return load_checkpoint(Path(config.model), config.shape, dtype=dtype, device=device, progress=progress)


def load_checkpoint(
    folder: Path,
    shape: ModelShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> LlamaModel:
    """Load *.safetensors of a folder, converting to `dtype`. One tensor at a time is held besides the model.

    Raises ConfigError for missing, unexpected or mis-shaped tensors, naming them, before memory is taken.
    """
    shards = _read_headers(folder)
    found = {name: size for sizes in shards.values() for name, size in sizes.items()}
    outline = allocate_weights(shape, dtype=dtype, device=torch.device("meta"))
    _check(folder, found, {name: tuple(tensor.shape) for name, tensor in _destinations(shape, outline)})
    weights = allocate_weights(shape, dtype=dtype, device=device)
    destinations = dict(_destinations(shape, weights))
    total_bytes = sum(destination.nbytes for destination in destinations.values())
    loaded_bytes = 0
    for path, sizes in shards.items():
        with safe_open(path, framework="pt") as shard:
            for name in sizes:
                if name not in destinations:
                    continue
                destinations[name].copy_(shard.get_tensor(name))
                loaded_bytes += destinations[name].nbytes
                if progress is not None:
                    progress(loaded_bytes, total_bytes)
    return LlamaModel(shape, weights)


def _read_headers(folder: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in each file, from the files themselves: a stale index cannot mislead."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index} is not a safetensors index: {error}") from None
        paths = [folder / name for name in names]
    elif (folder / "model.safetensors").is_file():
        paths = [folder / "model.safetensors"]  # there may be other things beside it, such as Meta's own layout
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ConfigError(f"{folder} has no *.safetensors; weights in other formats must be converted first")
    shards: dict[Path, dict[str, tuple[int, ...]]] = {}
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{index} names {path.name}, which is not there: the checkpoint is incomplete")
        try:
            with safe_open(path, framework="pt") as shard:
                shards[path] = {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
    return shards


def _destinations(shape: ModelShape, weights: ModelWeights) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name of every tensor, with the part of our weights that it fills, as a view of the same shape."""
    yield "model.embed_tokens.weight", weights.embedding
    yield "model.norm.weight", weights.final_norm
    if not shape.tied_embeddings:
        yield "lm_head.weight", weights.head.t()
    for number, layer in enumerate(weights.layers):
        for name, tensor in _layer_destinations(shape, layer):
            yield f"model.layers.{number}.{name}", tensor


def _layer_destinations(shape: ModelShape, layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
    query, key_value = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = [query, key_value, key_value]
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for name, part in zip(attention, layer.qkv.t().split_with_sizes(sizes), strict=True):
        yield f"{name}.weight", part
    if layer.qkv_bias is not None:
        for name, part in zip(attention, layer.qkv_bias.split_with_sizes(sizes), strict=True):
            yield f"{name}.bias", part
    if layer.output_bias is not None:
        yield "self_attn.o_proj.bias", layer.output_bias
    gate, up = layer.gate_up.t().chunk(2)
    yield "self_attn.o_proj.weight", layer.output.t()
    yield "mlp.gate_proj.weight", gate
    yield "mlp.up_proj.weight", up
    yield "mlp.down_proj.weight", layer.down.t()
    yield "input_layernorm.weight", layer.attention_norm
    yield "post_attention_layernorm.weight", layer.mlp_norm


def _check(folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = wanted.keys() - found.keys()
    if missing:
        raise ConfigError(f"{folder} lacks tensors that its config.json asks for: {_listed(missing)}")
    # Old checkpoints store the rotary frequencies, and some with tied embeddings a copy of them: both are derived.
    unexpected = {
        name
        for name in found.keys() - wanted.keys()
        if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"
    }
    if unexpected:
        raise ConfigError(f"{folder} has tensors that a Llama of its config.json has not: {_listed(unexpected)}")
    wrong = [f"{name} is {found[name]}, not {size}" for name, size in wanted.items() if found[name] != size]
    if wrong:
        raise ConfigError(f"{folder} has tensors of the wrong shape for its config.json: {_listed(wrong)}")


def _listed(names: Collection[str], limit: int = 6) -> str:
    shown = ", ".join(sorted(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def random_model(shape: ModelShape, seed: int, *, dtype: torch.dtype, device: torch.device) -> LlamaModel:
    """Random weights, the same for the same seed, dtype and kind of device; drawn in place, so nothing is held twice.

    The scales make a model whose greedy tokens depend on its whole context and seldom repeat:
    - projections keep unit variance; q and k are drawn larger, so that attention scores have a standard deviation
      of about `_SCORE_DEVIATION` and attention picks out a few tokens instead of averaging all of them away;
    - embeddings are small against what the layers add, so that the next token is no function of the last alone;
      more so with tied embeddings, where a large one would make every token follow itself;
    - logits have a standard deviation of `_LOGIT_DEVIATION`: near the point where a softmax over a vocabulary of
      some thousands goes from flat to dominated by one token, so that temperature and top-p have something to do.
    """
    weights = allocate_weights(shape, dtype=dtype, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    hidden_scale = 1.0 / math.sqrt(shape.hidden_size)
    branch_scale = 2.0 if shape.tied_embeddings else 1.0

    def draw(tensor: Tensor, deviation: float) -> None:
        tensor.normal_(0.0, deviation, generator=generator)

    draw(weights.embedding, _LOGIT_DEVIATION * hidden_scale)
    if not shape.tied_embeddings:
        draw(weights.head, _LOGIT_DEVIATION * hidden_scale)
    weights.final_norm.fill_(1.0)
    rotated_columns = (shape.num_query_heads + shape.num_kv_heads) * shape.head_dim
    for layer in weights.layers:
        draw(layer.qkv, hidden_scale)
        layer.qkv[:, :rotated_columns].mul_(math.sqrt(_SCORE_DEVIATION))
        draw(layer.output, branch_scale / math.sqrt(layer.output.shape[0]))
        draw(layer.gate_up, hidden_scale)
        draw(layer.down, branch_scale / math.sqrt(shape.intermediate_size))
        layer.attention_norm.fill_(1.0)
        layer.mlp_norm.fill_(1.0)
        for bias in (layer.qkv_bias, layer.output_bias):
            if bias is not None:
                draw(bias, hidden_scale)
    return LlamaModel(shape, weights)


_SCORE_DEVIATION = 3.0
_LOGIT_DEVIATION = 4.0
