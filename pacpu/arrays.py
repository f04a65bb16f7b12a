"""What an array looks like to native code: pointer, shape, strides, dtype. Knows torch by its duck type only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "uint8": 1}


@dataclass(frozen=True)
class ArrayInfo:
    """One array argument as given, by name for the errors."""

    name: str
    data: int
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        return _ITEM_BYTES[self.dtype]


def inspect_array(name: str, array: Any, *, dtypes: Sequence[str], writable: bool = False) -> ArrayInfo:
    """Reads a numpy array or anything with a torch tensor's data_ptr(), shape, stride(), dtype and device.

    TypeError: not an array, or none of `dtypes`. ValueError: not on the CPU, read-only, or not aligned to its items.
    """
    if isinstance(array, np.ndarray):
        device = "cpu"
        dtype = array.dtype.name if array.dtype.isnative else f"{array.dtype.name} in foreign byte order"
        data, strides_bytes = array.ctypes.data, array.strides
        if writable and not array.flags.writeable:
            raise ValueError(f"{name}: expected a writable array, got a read-only one")
    elif all(hasattr(array, attribute) for attribute in ("data_ptr", "shape", "stride", "dtype", "device")):
        device = str(array.device).partition(":")[0]
        dtype = str(array.dtype).rpartition(".")[2]
        data = array.data_ptr() if device == "cpu" else 0
        strides_bytes = tuple(step * array.element_size() for step in array.stride())
    else:
        raise TypeError(f"{name}: expected a numpy array or a torch tensor, got {type(array).__name__}")
    if device != "cpu":
        raise ValueError(f"{name}: expected memory of the CPU, got device {array.device}")
    if dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {dtype}")
    info = ArrayInfo(name, data, tuple(int(size) for size in array.shape), tuple(strides_bytes), dtype)
    if any(address % info.item_bytes for address in (info.data, *info.strides_bytes)):
        raise ValueError(f"{name}: expected items aligned to {info.item_bytes} bytes, got an unaligned view")
    return info


def require_shape(info: ArrayInfo, axes: str, expected: Sequence[int | None]) -> None:
    """ValueError unless the shape is `expected`, where None stands for any size; `axes` names them for the message."""
    if len(info.shape) == len(expected) and all(
        want is None or want == got for want, got in zip(expected, info.shape, strict=True)
    ):
        return
    names = [axis.strip() for axis in axes.split(",")]
    wanted = ", ".join(
        axis if size is None or axis.isdigit() else f"{axis}={size}" for axis, size in zip(names, expected, strict=True)
    )
    raise ValueError(f"{info.name}: expected shape [{wanted}], got {list(info.shape)}")


def require_contiguous_tail(info: ArrayInfo, num_axes: int) -> None:
    """ValueError unless the last `num_axes` axes are dense in memory, in order."""
    expected = info.item_bytes
    for size, step in zip(info.shape[: -num_axes - 1 : -1], info.strides_bytes[: -num_axes - 1 : -1], strict=True):
        if size > 1 and step != expected:
            raise ValueError(
                f"{info.name}: expected its last {num_axes} axes contiguous, got strides of "
                f"{list(info.strides_bytes)} bytes for shape {list(info.shape)}"
            )
        expected *= size


def require_separate_rows(info: ArrayInfo) -> None:
    """ValueError when two rows of a written array share memory."""
    row_bytes = info.item_bytes
    for size in info.shape[1:]:
        row_bytes *= size
    if info.shape[0] > 1 and abs(info.strides_bytes[0]) < row_bytes:
        raise ValueError(
            f"{info.name}: expected rows {row_bytes} bytes apart or more, got a stride of {info.strides_bytes[0]} bytes"
        )
