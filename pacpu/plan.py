"""The public face of the native kernels: worker pools and decode plans, with every argument checked once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neobench.pacpu import _native
from neobench.pacpu.arrays import (
    FLOAT_DTYPES,
    ArrayInfo,
    inspect_array,
    require_contiguous_tail,
    require_separate_rows,
    require_shape,
)
from neobench.pacpu.layout import HEAD_DIMS, KvLayout

if TYPE_CHECKING:
    from neobench.pacpu._pacpu import BuildInfo

MAX_THREADS = 1024


def targets() -> tuple[str, ...]:
    """Kernels that this CPU can run, best first; "cpp", the portable one, is always among them."""
    return tuple(_native.targets())


def build_info() -> BuildInfo:
    """What the native module was built with: compiler, ispc (a version, or None), compiled_targets."""
    return _native.build_info()


class WorkerPool:
    """Persistent native threads, for any number of plans; the calling thread never computes.

    Idle workers spin for some 50 microseconds and then sleep. Layers started by several plans are served first in,
    first out; with 64 under way the next start waits for the oldest. `cpus` pins thread i to CPU cpus[i]. Not usable
    in a forked child.
    """

    def __init__(self, num_threads: int, *, cpus: Sequence[int] | None = None) -> None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"num_threads: expected 1..{MAX_THREADS}, got {num_threads}")
        if cpus is not None:
            _check_cpus(cpus, num_threads)
        self._pool = _native.Pool(num_threads, list(cpus or ()))

    @property
    def num_threads(self) -> int:
        return self._pool.num_threads

    def close(self) -> None:
        """Finishes the layers under way and ends the threads; starting a layer is then a RuntimeError."""
        self._pool.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_cpus(cpus: Sequence[int], num_threads: int) -> None:
    if len(cpus) != num_threads:
        raise ValueError(f"cpus: expected one CPU for each of {num_threads} threads, got {len(cpus)}")
    if not hasattr(os, "sched_getaffinity"):
        raise ValueError("cpus: pinning needs Linux")
    usable = os.sched_getaffinity(0)
    unusable = [cpu for cpu in cpus if cpu not in usable]
    if unusable:
        raise ValueError(f"cpus: expected CPUs of {sorted(usable)}, got {unusable}")


def workspace_bytes(*, max_rows: int, num_q_heads: int, head_dim: int, max_context: int, num_threads: int) -> int:
    """Bytes of workspace with which a plan splits long rows as finely as is useful.

    A plan takes any workspace with room for its threads and one partial result; a smaller one than this means longer
    chunks, so less even threads, and the same answer.
    """
    sizes = {
        "max_rows": max_rows,
        "num_q_heads": num_q_heads,
        "head_dim": head_dim,
        "max_context": max_context,
        "num_threads": num_threads,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected 1 or more, got {size}")
    return _native.workspace_bytes(**sizes)


class DecodePlan:
    """Decode attention over fixed arrays: `begin` once an iteration, then `run`, or `start` and `wait`, each layer.

    Arrays are numpy arrays or torch tensors in CPU memory; the plan keeps them alive and reads and writes them in
    place. Floats are float32, float16 or bfloat16, accumulation is float32 (the dot products of kernels that have
    "bf16" in their name round the query and the softmax weights to bfloat16 when the cache is bfloat16).

    kv                 uint8 [num_layers, num_blocks, num_kv_heads, piece_bytes] as KvLayout(kv_dtype, head_dim,
                       block_size) says, last axis dense; fastest where pieces start at multiples of 64 bytes
    query              [max_rows, num_q_heads, head_dim], last two axes dense, as in the next two
    new_key, new_value [max_rows, num_kv_heads, head_dim] of one dtype, or both None; stored at context_len - 1
    output             [max_rows, num_q_heads, head_dim]
    block_tables       int32 [max_rows, max_blocks_per_row]: blocks in token order
    context_lens       int32 [max_rows]: tokens attended to, the new one included; 0 gives an output of zeros
    workspace          uint8 [bytes], of no one else while a layer is under way; see `workspace_bytes`

    A wrong argument is a TypeError (dtype) or ValueError (anything else) that names it. One thread at a time may
    call a plan; a plan has one layer under way at most, several plans may have one each.
    """

    def __init__(
        self,
        pool: WorkerPool,
        *,
        kv: Any,
        kv_dtype: str,
        block_size: int,
        query: Any,
        new_key: Any = None,
        new_value: Any = None,
        output: Any,
        block_tables: Any,
        context_lens: Any,
        scale: float,
        workspace: Any,
        target: str = "auto",
    ) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale: expected a finite number, got {scale}")
        queries = _inspect_rows("query", query, "max_rows, num_q_heads, head_dim", (None, None, None))
        max_rows, num_q_heads, head_dim = queries.shape
        if head_dim not in HEAD_DIMS:
            raise ValueError(f"query: expected a head_dim of {', '.join(map(str, HEAD_DIMS))}, got {head_dim}")
        layout = KvLayout(kv_dtype, head_dim, block_size)
        cache = _inspect_cache(kv, layout, writable=new_key is not None)
        num_kv_heads = cache.shape[2]
        _check_head_ratio(num_q_heads, num_kv_heads)
        outputs = _inspect_rows("output", output, "max_rows, num_q_heads, head_dim", queries.shape, writable=True)
        require_separate_rows(outputs)
        new_keys, new_values = _inspect_new_tokens(new_key, new_value, (max_rows, num_kv_heads, head_dim))
        tables = inspect_array("block_tables", block_tables, dtypes=("int32",))
        require_shape(tables, "max_rows, max_blocks_per_row", (max_rows, None))
        contexts = inspect_array("context_lens", context_lens, dtypes=("int32",))
        require_shape(contexts, "max_rows", (max_rows,))
        scratch = inspect_array("workspace", workspace, dtypes=("uint8",), writable=True)
        require_shape(scratch, "bytes", (None,))
        require_contiguous_tail(scratch, 1)
        self._plan = _native.Plan(
            pool._pool,  # noqa: SLF001
            kv=_view(cache),
            layout=_native.KvLayout(dtype=kv_dtype, head_dim=head_dim, block_size=block_size),
            query=_view(queries),
            new_key=None if new_keys is None else _view(new_keys),
            new_value=None if new_values is None else _view(new_values),
            output=_view(outputs),
            block_tables=_view(tables),
            context_lens=_view(contexts),
            workspace=_view(scratch),
            scale=scale,
            target=target,
            owners=(kv, query, new_key, new_value, output, block_tables, context_lens, workspace),
        )

    @property
    def target(self) -> str:
        """The kernel in use: one of `targets()`."""
        return self._plan.target

    @property
    def finished_ns(self) -> int:
        """When the layer last waited for was complete, on the clock of time.perf_counter_ns (Linux); 0 before."""
        return self._plan.finished_ns

    def begin(self, num_rows: int) -> None:
        """Reads context_lens[:num_rows], checks them and every block they need, and divides the work.

        ValueError names the entry that is out of range; the plan then needs another begin.
        """
        self._plan.begin(num_rows)

    def run(self, layer: int) -> None:
        """`start` and `wait`."""
        self._plan.run(layer)

    def start(self, layer: int) -> None:
        """Hands the layer to the workers and returns: they store the new K and V, then attend.

        RuntimeError: no `begin`, a layer is under way, or the pool is closed.
        """
        self._plan.start(layer)

    def wait(self) -> None:
        """Returns when the started layer's output is complete; raises what a worker raised. Releases the GIL."""
        self._plan.wait()


def _inspect_cache(kv: Any, layout: KvLayout, *, writable: bool) -> ArrayInfo:
    info = inspect_array("kv", kv, dtypes=("uint8",), writable=writable)
    require_shape(info, "num_layers, num_blocks, num_kv_heads, piece_bytes", (None, None, None, layout.piece_bytes))
    if 0 in (info.shape[0], info.shape[2]):
        raise ValueError(f"kv: expected 1 layer and KV head or more, got shape {list(info.shape)}")
    require_contiguous_tail(info, 1)
    unit = 4 if layout.dtype in ("float32", "int8") else 2
    if any(address % unit for address in (info.data, *info.strides_bytes[:-1])):
        raise ValueError(f"kv: expected pieces aligned to {unit} bytes, got an unaligned view")
    return info


def _inspect_rows(
    name: str,
    array: Any,
    axes: str,
    shape: Sequence[int | None],
    *,
    dtypes: Sequence[str] = FLOAT_DTYPES,
    writable: bool = False,
) -> ArrayInfo:
    info = inspect_array(name, array, dtypes=dtypes, writable=writable)
    require_shape(info, axes, shape)
    require_contiguous_tail(info, 2)
    return info


def _inspect_new_tokens(
    new_key: Any, new_value: Any, shape: tuple[int, int, int]
) -> tuple[ArrayInfo | None, ArrayInfo | None]:
    if (new_key is None) != (new_value is None):
        missing = "new_key" if new_key is None else "new_value"
        raise ValueError(f"{missing}: expected an array, since the other of new_key and new_value is one, got None")
    if new_key is None:
        return None, None
    axes = "max_rows, num_kv_heads, head_dim"
    keys = _inspect_rows("new_key", new_key, axes, shape)
    return keys, _inspect_rows("new_value", new_value, axes, shape, dtypes=(keys.dtype,))


def _check_head_ratio(num_q_heads: int, num_kv_heads: int) -> None:
    if num_q_heads < 1 or num_q_heads % num_kv_heads:
        raise ValueError(f"num_q_heads: expected a multiple of num_kv_heads={num_kv_heads}, got {num_q_heads}")


def _view(info: ArrayInfo) -> _native.ArrayView:
    return _native.ArrayView(data=info.data, shape=info.shape, strides_bytes=info.strides_bytes, dtype=info.dtype)
