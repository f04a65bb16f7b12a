"""Stream-ordered 32-bit writes and waits of the CUDA driver, and streams of the current context; torch has neither."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_GREATER_OR_EQUAL = 0  # CU_STREAM_WAIT_VALUE_GEQ
_RAISED = ctypes.c_uint32(1)


class DriverError(RuntimeError):
    """A call of the CUDA driver failed; the message names it and the driver's reason."""


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"the CUDA driver cannot be loaded: {error}") from None


def _call(name: str, *arguments: object) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of the context that is current, a green one included; torch's own belong to the primary context."""
    torch.cuda.current_stream(device)  # makes sure that there is a context
    handle = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
    return torch.cuda.ExternalStream(handle.value or 0, device=device)  # type: ignore[no-untyped-call]


def raise_flag(stream: torch.cuda.Stream, address: int) -> None:
    """Writes 1 to the word at `address` of pinned memory once all that is queued before has come so far."""
    _call("cuStreamWriteValue32_v2", ctypes.c_void_p(stream.cuda_stream), ctypes.c_uint64(address), _RAISED, 0)


def await_flag(stream: torch.cuda.Stream, address: int) -> None:
    """Keeps what is queued after it from starting until the word at `address` is 1 or more."""
    handle, where = ctypes.c_void_p(stream.cuda_stream), ctypes.c_uint64(address)
    _call("cuStreamWaitValue32_v2", handle, where, _RAISED, _GREATER_OR_EQUAL)


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
