"""Where K and V of a token lie within a block: the layout is the one that host attention reads fastest, for both tiers.

Blocks then move between the tiers as they are.
"""

from neobench.pacpu.layout import HEAD_DIMS, TILE_TOKENS, KvLayout

__all__ = ["HEAD_DIMS", "TILE_TOKENS", "KvLayout"]
