"""Compile what the kernels' callers launch, for the architecture on the command line; print what each uses as JSON.

Needs no GPU: tensors are without memory and say they are on one, and launching is replaced by compiling.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from neobench.neo_engine.kernels import triton_attention, triton_copies, triton_fused
from neobench.neo_engine.kernels.decode_attention import STEP_BYTES, STEP_BYTES_IN_REGISTERS, Spans, step_tokens
from neobench.neo_engine.kv_cache.layout import KvLayout

TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
ARCHITECTURE = int(sys.argv[1])
used: dict[str, dict[str, int]] = {}


def compile_launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In place of JITFunction.run: the specialisation that Triton would choose, compiled."""
    assert all(0 < size < 65536 for size in grid[1:])
    assert not warmup
    signature, constants, attributes = {}, {}, {}
    arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(place,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            attributes[(place,)] = [["tt.divisibility", 16]] if value % 16 == 0 else []
    options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used[f"{kernel.__name__} {label} {len(used)}"] = {
        "shared_bytes": compiled.metadata.shared,
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global.*0x10", compiled.asm["ptx"])),
        "matrix_products": compiled.asm["ptx"].count("mma.sync"),
    }


def launch_attention(layout: KvLayout, *, num_query_heads: int, num_kv_heads: int, num_spans: int) -> None:
    query = torch.empty(4, num_query_heads, layout.head_dim, dtype=getattr(torch, layout.dtype))
    step_bytes = STEP_BYTES if ARCHITECTURE >= 80 else STEP_BYTES_IN_REGISTERS
    room = (torch.empty(4) for _ in range(3))
    triton_attention.decode_attention(
        query,
        torch.empty(9, 3, num_kv_heads, layout.piece_bytes, dtype=torch.uint8),
        layout=layout,
        layer=1,
        block_tables=torch.empty(4, 7, dtype=torch.int32),
        context_lens=torch.empty(4, dtype=torch.int32),
        scale=0.1,
        out=torch.empty_like(query),
        spans=Spans(num_spans, step_tokens(layout, step_bytes), *room),
    )


def launch_steps(layout: KvLayout) -> None:
    """The rest, in the sizes of a 70B model."""
    dtype = getattr(torch, layout.dtype)
    kv = torch.empty(9, 3, 8, layout.piece_bytes, dtype=torch.uint8)
    indices = torch.empty(4, dtype=torch.int64)
    x = torch.empty(4, 8192, dtype=dtype)
    triton_fused.add_rms_norm_(x, x, weight=x[0], eps=1e-5)
    triton_fused.add_rms_norm_(x, None, weight=x[0], eps=1e-5)
    triton_fused.silu_mul(torch.empty(4, 2 * 28672, dtype=dtype))
    table = torch.empty(100, 2, layout.head_dim, dtype=dtype)
    heads = torch.empty(4, 80, layout.head_dim, dtype=dtype)
    triton_fused.rotate_and_store_(heads, indices, table=table, kv=kv, layout=layout, layer=1, slots=indices)
    triton_copies.unpack_context(kv, layout, layer=1, blocks=indices, num_tokens=60)
    triton_copies.copy_pieces(kv, kv, layers=(0, 1), source_blocks=indices, target_blocks=indices)
    triton_copies.copy_rows(x, x, count=torch.empty(1, dtype=torch.int32))


JITFunction.run = compile_launch
torch.Tensor.is_cuda = True
torch.set_default_device("meta")
for label in ("float16", "bfloat16")[: 2 if ARCHITECTURE >= 80 else 1]:
    launch_attention(KvLayout(label, 128, 16), num_query_heads=32, num_kv_heads=32, num_spans=1)
    launch_attention(KvLayout(label, 64, 32), num_query_heads=64, num_kv_heads=8, num_spans=5)
    launch_steps(KvLayout(label, 128, 16))
sys.stdout.write(json.dumps(used))
