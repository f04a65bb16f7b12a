"""The arithmetic of a Llama decoder around its attention, which the executor does. Runs on any torch device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neobench.neo_engine.config import ModelShape
from neobench.neo_engine.model.rotary import rotary_table, rotate_


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; projections that share an input are joined into one.

    Projections are [inputs, outputs], the transpose of a checkpoint's: with 1 to 16 rows torch's float32 GEMM on a
    CPU then takes 0.4 to 0.9 of the time, because it streams along long rows of outputs.
    """

    attention_norm: Tensor  # [hidden]
    qkv: Tensor  # [hidden, (Hq + 2 Hkv) * D], columns of q, then k, then v
    qkv_bias: Tensor | None  # [(Hq + 2 Hkv) * D]
    output: Tensor  # [Hq * D, hidden]
    output_bias: Tensor | None  # [hidden]
    mlp_norm: Tensor  # [hidden]
    gate_up: Tensor  # [hidden, 2 * intermediate], columns of gate, then up
    down: Tensor  # [intermediate, hidden]


@dataclass(frozen=True)
class ModelWeights:
    """All parameters. With tied embeddings `head` is a view of `embedding`, transposed."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    head: Tensor  # [hidden, vocab]


def allocate_weights(shape: ModelShape, *, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Uninitialised weights of a shape."""

    def empty(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device=device)

    hidden = shape.hidden_size
    qkv_columns = (shape.num_query_heads + 2 * shape.num_kv_heads) * shape.head_dim
    layers = tuple(
        LayerWeights(
            attention_norm=empty(hidden),
            qkv=empty(hidden, qkv_columns),
            qkv_bias=empty(qkv_columns) if shape.attention_bias else None,
            output=empty(shape.num_query_heads * shape.head_dim, hidden),
            output_bias=empty(hidden) if shape.attention_bias else None,
            mlp_norm=empty(hidden),
            gate_up=empty(hidden, 2 * shape.intermediate_size),
            down=empty(shape.intermediate_size, hidden),
        )
        for _ in range(shape.num_layers)
    )
    embedding = empty(shape.vocab_size, hidden)
    head = embedding.t() if shape.tied_embeddings else empty(hidden, shape.vocab_size)
    return ModelWeights(embedding=embedding, layers=layers, final_norm=empty(hidden), head=head)


class LlamaModel:
    """Llama without its attention and without its KV cache.

    Rows are tokens of any mix of requests. n rows, hidden = hidden_size, Hq query heads, Hkv KV heads of D each.
    One pass: `embed`, then for each layer `pre_attention`, attention, `post_attention`, at last `logits`.
    Holds no state between calls, so passes of two sub-batches may be interleaved. Call it under inference_mode.
    """

    def __init__(self, shape: ModelShape, weights: ModelWeights) -> None:
        self.shape = shape
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._rotary_table = rotary_table(shape, dtype=self.dtype, device=self.device).flatten(1)
        self._norm_shape = (shape.hidden_size,)
        self._rotated_heads = shape.num_query_heads + shape.num_kv_heads
        self._head_counts = (shape.num_query_heads, shape.num_kv_heads, shape.num_kv_heads)

    @property
    def num_bytes(self) -> int:
        """Memory of the parameters."""
        weights = self.weights
        tensors = [weights.embedding, weights.final_norm]
        if not self.shape.tied_embeddings:
            tensors.append(weights.head)
        for layer in weights.layers:
            tensors += [tensor for tensor in vars(layer).values() if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids [n] int64 -> [n, hidden]."""
        return F.embedding(token_ids, self.weights.embedding)

    def pre_attention(self, layer: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [n, hidden], positions [n] int64 -> q [n, Hq, D], k [n, Hkv, D], v [n, Hkv, D], q and k rotated.

        The three are views of one new contiguous [n, Hq + 2 Hkv, D], which one copy can take elsewhere.
        """
        weights = self.weights.layers[layer]
        normed = F.rms_norm(x, self._norm_shape, weights.attention_norm, self.shape.rms_norm_eps)
        if weights.qkv_bias is None:
            heads = torch.mm(normed, weights.qkv)
        else:
            heads = torch.addmm(weights.qkv_bias, normed, weights.qkv)
        heads = heads.view(-1, sum(self._head_counts), self.shape.head_dim)
        # Gathered anew for each layer, which costs about 4 us, so that no state is kept between calls.
        rotation = F.embedding(positions, self._rotary_table).view(-1, 2, 1, self.shape.head_dim)
        rotate_(heads[:, : self._rotated_heads], rotation[:, 0], rotation[:, 1])
        q, k, v = heads.split_with_sizes(self._head_counts, 1)
        return q, k, v

    def post_attention(self, layer: int, x: Tensor, attention: Tensor) -> Tensor:
        """x [n, hidden] as given to `pre_attention`, attention [n, Hq * D] -> input of the next layer [n, hidden]."""
        weights = self.weights.layers[layer]
        x = torch.addmm(x, attention, weights.output)
        if weights.output_bias is not None:
            x.add_(weights.output_bias)
        normed = F.rms_norm(x, self._norm_shape, weights.mlp_norm, self.shape.rms_norm_eps)
        gate, up = torch.mm(normed, weights.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), weights.down)

    def logits(self, x: Tensor) -> Tensor:
        """x [m, hidden] out of the last layer -> [m, vocab] float32."""
        normed = F.rms_norm(x, self._norm_shape, self.weights.final_norm, self.shape.rms_norm_eps)
        return torch.mm(normed, self.weights.head).float()
