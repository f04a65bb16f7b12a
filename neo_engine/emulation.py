"""Smaller cards that a large GPU can stand for: which share of it, how much KV, how many CPU threads. Knows no torch.

The share is a CUDA green context of some streaming multiprocessors (SMs), which `green_context` applies. It restricts
compute and bandwidth together, so a card is met in one of them and approached in the other; a run records what the
restricted device then measured. Numbers of such a run are "emulated".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neobench.neo_engine.config import DTYPE_BYTES, USABLE_MEMORY_FRACTION, ConfigError, EngineConfig


@dataclass(frozen=True)
class Card:
    """A card and the host it is usually rented with.

    `sms` of an H200, from copies and fp16 GEMMs measured there (docs/emulation.md); `memory_bytes` as nvidia-smi
    reports it; `host_threads` the physical cores of the named instance.
    """

    name: str
    sms: int
    memory_bytes: int
    host_threads: int
    host: str


def _card(name: str, *, sms: int, memory_mib: int, host_threads: int, host: str) -> Card:
    return Card(name, sms, memory_mib * 2**20, host_threads, host)


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _card("t4", sms=8, memory_mib=15360, host_threads=8, host="g4dn.4xlarge"),
        _card("a10g", sms=8, memory_mib=23028, host_threads=8, host="g5.4xlarge"),
        _card("l4", sms=16, memory_mib=23034, host_threads=8, host="g6.4xlarge"),
        _card("h100", sms=104, memory_mib=81559, host_threads=12, host="an eighth of p5.48xlarge"),
    )
}


def resolve_card(name: str) -> Card:
    """Raises ConfigError for an unknown card, with the nearest known one."""
    if name not in CARDS:
        near = difflib.get_close_matches(name, CARDS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"unknown card {name!r}{hint} Cards: {', '.join(CARDS)}")
    return CARDS[name]


def kv_blocks_left(card: Card, config: EngineConfig) -> int:
    """KV blocks that fit beside 16-bit weights of the config's model, whatever dtype it computes in.

    Raises ConfigError when not one does.
    """
    weight_bytes = config.shape.num_parameters * DTYPE_BYTES["float16"]
    left_bytes = int(USABLE_MEMORY_FRACTION * card.memory_bytes) - weight_bytes
    blocks = left_bytes // config.block_bytes(config.device_layout)
    if blocks < 1:
        raise ConfigError(
            f"{config.model} has {weight_bytes / 2**30:.1f} GiB of weights in 16 bits, and the {card.name} has "
            f"{card.memory_bytes / 2**30:.1f} GiB: choose a smaller model or card, or say --device-blocks"
        )
    return blocks


def emulated_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """EngineConfig's settings with what the card named by "emulate" implies; what is given already stays.

    Without "emulate" they are returned as they are, except that "sms" alone already means a CUDA device.
    """
    filled = dict(settings)
    if filled.get("sms") is not None or filled.get("emulate") is not None:
        filled.setdefault("device", "cuda")
    if filled.get("emulate") is not None:
        card = resolve_card(filled["emulate"])
        filled.setdefault("sms", card.sms)
        filled.setdefault("host_threads", card.host_threads)
        if "device_blocks" not in filled:
            filled["device_blocks"] = kv_blocks_left(card, EngineConfig(**filled))
    return filled
