"""What the device does for one sub-batch, in steps between which its rows are at host attention."""

from __future__ import annotations

from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.executor.host_link import HostLink
from neobench.neo_engine.executor.lanes import Lane
from neobench.neo_engine.executor.stopwatch import Stopwatch
from neobench.neo_engine.executor.tiers import Tiers
from neobench.neo_engine.kernels.decode_attention import DecodeAttention
from neobench.neo_engine.model.fused_layers import FusedLayers, Store


class LaneSteps:
    """num_layers + 1 steps of a lane. Step i ends layer i - 1, from its attention on, and begins layer i up to q, k, v.

    After each step but the last the lane's host rows have q, k, v to be sent; the next receives what came of them. A
    step may be captured in a graph where the lane is padded and without prompts, and the link can be.
    """

    def __init__(self, config: EngineConfig, layers: FusedLayers, tiers: Tiers, link: HostLink) -> None:
        self._layers = layers
        self._tiers = tiers
        self._link = link
        self._num_layers = config.shape.num_layers
        self._num_query_heads = config.shape.num_query_heads
        self._max_context = config.max_request_tokens
        self._attention = DecodeAttention(
            config.device_layout,
            num_query_heads=config.shape.num_query_heads,
            num_kv_heads=config.shape.num_kv_heads,
            device=tiers.device.device,
        )

    def run(self, step: int, lane: Lane, watch: Stopwatch) -> None:
        if step:
            self._attend_on_device(step - 1, lane, watch)
            if lane.num_host:
                with watch.stage("host_wait"):
                    self._link.receive(step - 1, lane)
            with watch.stage("linear"):
                lane.delta = self._layers.after_attention(step - 1, lane.x, lane.attention)
        else:
            lane.delta = None
            self._layers.embed(lane.token_ids, out=lane.x)
        if step < self._num_layers:
            with watch.stage("linear"):
                self._before_attention(step, lane)
        elif lane.delta is not None:
            lane.x += lane.delta

    def _before_attention(self, layer: int, lane: Lane) -> None:
        stores: tuple[Store, ...] = (Store(slice(0, lane.num_rows), self._tiers.device, layer),)
        if lane.prompts is not None:
            stores = lane.prompts.stores(layer, lane.num_rows)
        self._layers.before_attention(
            layer, lane.x, lane.delta, positions=lane.positions, slots=lane.slots, stores=stores, out=lane.heads
        )

    def _attend_on_device(self, layer: int, lane: Lane, watch: Stopwatch) -> None:
        if lane.prompts is not None:
            with watch.stage("prefill_attention"):
                rows = slice(0, lane.num_prompt_tokens)
                lane.attention[rows] = lane.prompts.attend(layer, lane.heads[rows])
        if lane.num_device:
            with watch.stage("device_decode"):
                # Rows of the host have no context here: what this makes of them `receive` replaces.
                self._attention(
                    lane.heads[lane.decode_rows, : self._num_query_heads],
                    self._tiers.device,
                    layer=layer,
                    block_tables=lane.tables,
                    context_lens=lane.contexts,
                    max_context=self._max_context,
                    out=lane.attention[lane.decode_rows],
                )
