"""The native module. Its callers check arguments; see neobench.pacpu.plan."""

from collections.abc import Sequence
from typing import TypedDict, final

class BuildInfo(TypedDict):
    compiler: str
    ispc: str | None
    compiled_targets: tuple[str, ...]

def targets() -> list[str]: ...
def build_info() -> BuildInfo: ...
def workspace_bytes(*, max_rows: int, num_q_heads: int, head_dim: int, max_context: int, num_threads: int) -> int: ...

@final
class KvLayout:
    def __init__(self, *, dtype: str, head_dim: int, block_size: int) -> None: ...
    @property
    def piece_bytes(self) -> int: ...

READ_CHUNK_BYTES: int

def read_stream(
    pool: Pool, *, data: int, num_chunks: int, first_chunk: int, chunks_to_read: int
) -> tuple[int, int]: ...

@final
class ArrayView:
    def __init__(self, *, data: int, shape: Sequence[int], strides_bytes: Sequence[int], dtype: str) -> None: ...

@final
class Pool:
    def __init__(self, num_threads: int, cpus: Sequence[int]) -> None: ...
    @property
    def num_threads(self) -> int: ...
    def close(self) -> None: ...

@final
class Memory:
    def __init__(self, num_bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def touch(self, pool: Pool | None, begin: int, end: int) -> None: ...

@final
class Plan:
    def __init__(
        self,
        pool: Pool,
        *,
        kv: ArrayView,
        layout: KvLayout,
        query: ArrayView,
        new_key: ArrayView | None,
        new_value: ArrayView | None,
        output: ArrayView,
        block_tables: ArrayView,
        context_lens: ArrayView,
        workspace: ArrayView,
        scale: float,
        target: str,
        owners: object,
    ) -> None: ...
    @property
    def target(self) -> str: ...
    @property
    def finished_ns(self) -> int: ...
    def begin(self, num_rows: int) -> None: ...
    def run(self, layer: int) -> None: ...
    def start(self, layer: int) -> None: ...
    def wait(self) -> None: ...
