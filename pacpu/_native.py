"""The native module, or, where it was not built, an error with the fix at its first use."""

__all__ = [
    "READ_CHUNK_BYTES",
    "ArrayView",
    "FlagSequence",
    "KvLayout",
    "Memory",
    "NativeModuleError",
    "Plan",
    "Pool",
    "build_info",
    "read_stream",
    "targets",
    "workspace_bytes",
]


class NativeModuleError(ImportError):
    """The native module of pacpu is missing or cannot be loaded."""


try:
    from neobench.pacpu._pacpu import (
        READ_CHUNK_BYTES,
        ArrayView,
        FlagSequence,
        KvLayout,
        Memory,
        Plan,
        Pool,
        build_info,
        read_stream,
        targets,
        workspace_bytes,
    )
except ImportError as error:
    _REASON = str(error)

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NativeModuleError(
            "neobench was installed without its native CPU attention: install it from source with a C++ compiler "
            f"(pip install . without NEOBENCH_NATIVE=0). The import said: {_REASON}"
        )
