"""Where K and V of a token lie in memory: the Python side of src/layout.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TILE_TOKENS = 16
KV_DTYPES = ("float32", "float16", "bfloat16", "int8")
HEAD_DIMS = (64, 80, 96, 128, 256)

_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
# Elements that a dot-product instruction takes from one 32-bit lane; float16 has none.
_PACK = {"float32": 1, "float16": 1, "bfloat16": 2, "int8": 4}
# As numpy sees them: it has no bfloat16.
_STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
_SCALE_BYTES = 4

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KvLayout:
    """A piece: K and V of one block, layer and KV head, in `piece_bytes` bytes.

    For each tile of 16 tokens first K as [head_dim / pack, 16, pack], then V as [16 / pack, head_dim, pack]; for int8
    then a float32 scale a token for K, then for V. A block_size that is no multiple of 16 leaves the end of its last
    tile unused. docs/kernels.md says why.
    """

    dtype: str
    head_dim: int
    block_size: int

    def __post_init__(self) -> None:
        if self.dtype not in KV_DTYPES:
            raise TypeError(f"kv_dtype: expected {' or '.join(KV_DTYPES)}, got {self.dtype}")
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim: expected {', '.join(map(str, HEAD_DIMS))}, got {self.head_dim}")
        if self.block_size < 1:
            raise ValueError(f"block_size: expected 1 token or more, got {self.block_size}")

    @property
    def pack(self) -> int:
        return _PACK[self.dtype]

    @property
    def num_tiles(self) -> int:
        return -(-self.block_size // TILE_TOKENS)

    @property
    def stored_tokens(self) -> int:
        """block_size rounded up to whole tiles."""
        return self.num_tiles * TILE_TOKENS

    @property
    def key_shape(self) -> tuple[int, int, int]:
        """Of K in a tile."""
        return (self.head_dim // self.pack, TILE_TOKENS, self.pack)

    @property
    def value_shape(self) -> tuple[int, int, int]:
        """Of V in a tile."""
        return (TILE_TOKENS // self.pack, self.head_dim, self.pack)

    @property
    def key_scale_offset(self) -> int:
        """Bytes from a piece's start to the scales, so also the bytes of its tiles."""
        return 2 * self.stored_tokens * self.head_dim * _ELEMENT_BYTES[self.dtype]

    @property
    def value_scale_offset(self) -> int:
        return self.key_scale_offset + self.stored_tokens * _SCALE_BYTES

    @property
    def piece_bytes(self) -> int:
        scales = 2 * self.stored_tokens * _SCALE_BYTES if self.dtype == "int8" else 0
        return self.key_scale_offset + scales

    def pack_tokens(self, keys: Floats, values: Floats) -> Bytes:
        """keys, values [tokens, head_dim], at most a block of them -> the piece, zeros where it is not used."""
        piece = np.zeros(self.piece_bytes, dtype=np.uint8)
        elements, scales = zip(*(self._to_storage(self._fill_block(part)) for part in (keys, values)), strict=True)
        key, value, *scale_views = self._views(piece)
        tiles = elements[0].reshape(self.num_tiles, TILE_TOKENS, -1, self.pack)
        key[...] = tiles.transpose(0, 2, 1, 3)
        tiles = elements[1].reshape(self.num_tiles, -1, self.pack, self.head_dim)
        value[...] = tiles.transpose(0, 1, 3, 2)
        for view, scale in zip(scale_views, scales, strict=False):
            view[...] = scale
        return piece

    def unpack_tokens(self, pieces: Bytes) -> tuple[Floats, Floats]:
        """pieces [..., piece_bytes] -> keys, values [..., block_size, head_dim]."""
        key, value, *scales = self._views(pieces)
        shape = (*pieces.shape[:-1], self.stored_tokens, self.head_dim)
        elements = (np.moveaxis(key, -2, -3).reshape(shape), np.moveaxis(value, -1, -2).reshape(shape))
        keys, values = (self._from_storage(part)[..., : self.block_size, :] for part in elements)
        if scales:
            key_scales, value_scales = (scale[..., : self.block_size, None] for scale in scales)
            return keys * key_scales, values * value_scales
        return keys, values

    def _views(self, pieces: Bytes) -> list[npt.NDArray[Any]]:
        lead = (*pieces.shape[:-1], self.num_tiles)
        tiles = pieces[..., : self.key_scale_offset].view(_STORAGE[self.dtype]).reshape(*lead, 2, -1)
        views = [
            tiles[..., 0, :].reshape(*lead, *self.key_shape),
            tiles[..., 1, :].reshape(*lead, *self.value_shape),
        ]
        if self.dtype == "int8":
            views += [
                pieces[..., self.key_scale_offset : self.value_scale_offset].view(np.float32),
                pieces[..., self.value_scale_offset :].view(np.float32),
            ]
        return views

    def _fill_block(self, tokens: Floats) -> Floats:
        if tokens.shape[1:] != (self.head_dim,) or len(tokens) > self.block_size:
            raise ValueError(
                f"tokens: expected up to {self.block_size} of {self.head_dim} elements, got shape {list(tokens.shape)}"
            )
        block = np.zeros((self.stored_tokens, self.head_dim), dtype=np.float32)
        block[: len(tokens)] = tokens
        return block

    def _to_storage(self, tokens: Floats) -> tuple[npt.NDArray[Any], Floats | None]:
        if self.dtype == "int8":
            largest = np.abs(tokens).max(axis=-1)
            scales = np.where(np.isfinite(largest), largest / np.float32(127), np.float32("nan"))
            usable = scales > 0
            elements = np.rint(tokens[usable] / scales[usable, None])
            quantized = np.zeros(tokens.shape, dtype=np.int8)
            quantized[usable] = elements
            return quantized, scales
        if self.dtype == "bfloat16":
            bits = tokens.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), None
        return tokens.astype(_STORAGE[self.dtype]), None

    def _from_storage(self, elements: npt.NDArray[Any]) -> Floats:
        if self.dtype == "bfloat16":
            return (elements.astype(np.uint32) << 16).view(np.float32)
        return elements.astype(np.float32)
