"""A Llama's layers on a device, its small steps fused: GEMMs by torch, the rest by kernels/fused.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neobench.neo_engine.kernels.fused import add_rms_norm_, rotate_and_store_, silu_mul
from neobench.neo_engine.kv_cache.layout import KvLayout
from neobench.neo_engine.model.llama import LlamaModel
from neobench.neo_engine.model.rotary import rotary_table


@dataclass(frozen=True)
class Store:
    """Where K and V of some neighbouring rows go: a layer of a slab, by the rows' slots."""

    rows: slice
    kv: Tensor
    layer: int


class FusedLayers:
    """The arithmetic of `LlamaModel` around its attention, with the residual added in the norm that follows it.

    n rows. x [n, hidden] is the residual stream, changed in place; delta [n, hidden], what a layer's MLP adds to it,
    is added by the next layer, or after the last by the caller.
    """

    def __init__(self, model: LlamaModel, layout: KvLayout) -> None:
        self._model = model
        self._shape = model.shape
        self._layout = layout
        self._table = rotary_table(model.shape, dtype=model.dtype, device=model.device)
        self._num_heads = model.shape.num_query_heads + 2 * model.shape.num_kv_heads

    def embed(self, token_ids: Tensor, *, out: Tensor) -> None:
        """token_ids [n] int64 -> out [n, hidden]."""
        torch.index_select(self._model.weights.embedding, 0, token_ids, out=out)

    def before_attention(
        self,
        layer: int,
        x: Tensor,
        delta: Tensor | None,
        *,
        positions: Tensor,
        slots: Tensor,
        stores: tuple[Store, ...],
        out: Tensor,
    ) -> None:
        """Heads of q, k, v, rotated, into `out` [n, Hq + 2 Hkv, D]; K and V stored as `stores` say, which cover all
        rows."""
        weights = self._model.weights.layers[layer]
        normed = add_rms_norm_(x, delta, weight=weights.attention_norm, eps=self._shape.rms_norm_eps)
        _linear(normed, weights.qkv, weights.qkv_bias, out=out.flatten(1))
        for store in stores:
            rotate_and_store_(
                out[store.rows],
                positions[store.rows],
                table=self._table,
                kv=store.kv,
                layout=self._layout,
                layer=store.layer,
                slots=slots[store.rows],
            )

    def after_attention(self, layer: int, x: Tensor, attention: Tensor) -> Tensor:
        """attention [n, Hq, D] -> delta; x gets the attention's part."""
        weights = self._model.weights.layers[layer]
        projected = _linear(attention.flatten(1), weights.output, weights.output_bias, out=torch.empty_like(x))
        normed = add_rms_norm_(x, projected, weight=weights.mlp_norm, eps=self._shape.rms_norm_eps)
        return torch.mm(silu_mul(torch.mm(normed, weights.gate_up)), weights.down)

    def logits(self, x: Tensor) -> Tensor:
        """x [m, hidden] of the rows that predict a token, out of the last layer -> [m, vocab] float32."""
        weights = self._model.weights
        normed = add_rms_norm_(x, None, weight=weights.final_norm, eps=self._shape.rms_norm_eps)
        return torch.mm(normed, weights.head).float()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)
