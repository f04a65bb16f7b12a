"""Calls of the CUDA driver that torch has not, or only slower: stream-ordered 32-bit writes and waits, streams of the
current context, copies on a stream that is not torch's current one."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_GREATER_OR_EQUAL = 0  # CU_STREAM_WAIT_VALUE_GEQ
_RAISED = 1

# Arguments of each call: with their types known ctypes takes plain integers, which halves the time of a call.
_STREAM, _ADDRESS, _WORD, _FLAGS = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuStreamCreate": (ctypes.c_void_p, _FLAGS),
    "cuStreamWriteValue32_v2": (_STREAM, _ADDRESS, _WORD, _FLAGS),
    "cuStreamWaitValue32_v2": (_STREAM, _ADDRESS, _WORD, _FLAGS),
    "cuMemcpyDtoHAsync_v2": (_ADDRESS, _ADDRESS, ctypes.c_size_t, _STREAM),
}


class DriverError(RuntimeError):
    """A call of the CUDA driver failed; the message names it and the driver's reason."""


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"the CUDA driver cannot be loaded: {error}") from None


@functools.cache
def _function(name: str) -> Any:
    function = getattr(_driver(), name)
    function.argtypes = _ARGUMENTS[name]
    return function


def _call(name: str, *arguments: object) -> None:
    code = _function(name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of the context that is current, a green one included; torch's own belong to the primary context."""
    torch.cuda.current_stream(device)  # makes sure that there is a context
    handle = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.addressof(handle), _NON_BLOCKING)
    return torch.cuda.ExternalStream(handle.value or 0, device=device)  # type: ignore[no-untyped-call]


def raise_flag(stream: torch.cuda.Stream, address: int) -> None:
    """Writes 1 to the word at `address` of pinned memory once all that is queued before has come so far."""
    _call("cuStreamWriteValue32_v2", stream.cuda_stream, address, _RAISED, 0)


def await_flag(stream: torch.cuda.Stream, address: int) -> None:
    """Keeps what is queued after it from starting until the word at `address` is 1 or more."""
    _call("cuStreamWaitValue32_v2", stream.cuda_stream, address, _RAISED, _GREATER_OR_EQUAL)


def copy_to_host(stream: torch.cuda.Stream, source: torch.Tensor, target: torch.Tensor) -> None:
    """Queues a copy of contiguous device memory into as many bytes of pinned memory, by a copy engine."""
    assert source.is_contiguous()
    assert source.nbytes == target.nbytes
    _call("cuMemcpyDtoHAsync_v2", target.data_ptr(), source.data_ptr(), source.nbytes, stream.cuda_stream)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def pin(address: int, num_bytes: int) -> None:
    """Page-locks memory that is already there, so that copies run at the link's speed and kernels can read it."""
    code = int(_runtime().cudaHostRegister(address, num_bytes, 0))
    if code:
        raise DriverError(f"cudaHostRegister of {num_bytes / 2**30:.2f} GiB failed with error {code}: see `ulimit -l`")


def unpin(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def problem(device: torch.device) -> str | None:
    """Why flags cannot be used on this device, as a sentence; None where a write, a wait and a read back worked."""
    try:
        flags = torch.zeros(2, dtype=torch.int32, pin_memory=True)
        stream = new_stream(device)
        raise_flag(stream, flags.data_ptr())
        await_flag(stream, flags.data_ptr())
        raise_flag(stream, flags.data_ptr() + 4)
        stream.synchronize()
    except (DriverError, RuntimeError) as error:
        return f"stream-ordered flags do not work here: {error}"
    return None if flags.tolist() == [1, 1] else "stream-ordered flags do not work here: a write did not arrive"
