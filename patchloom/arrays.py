"""Arrays from .npy, .npz and .safetensors files; nothing is ever unpickled."""

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import InputError

Arrays = dict[str, NDArray[Any]]
# What readers of damaged files raise; NumPy parses headers as Python.
UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError,
    NotImplementedError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
SUFFIXES = (".npy", ".npz", ".safetensors")


def read_arrays(path: Path) -> Arrays:
    """Every array of a file by name; the one of an .npy file is named ''."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must be a file that ends in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path.read_bytes())
        if path.suffix == ".npy":
            return {"": np.array(np.load(path, mmap_mode="r", allow_pickle=False))}  # mapped: it cannot claim more
        with np.load(path, allow_pickle=False) as loaded:
            return dict(loaded)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path} cannot be read: {reason}") from error


def _safetensors(data: bytes) -> Arrays:
    from safetensors import SafetensorError, deserialize  # noqa: PLC0415 - a driver that reads none starts without

    try:
        parts: Any = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return {name: _decoded(**stored) for name, stored in parts}


# Of safetensors' element types; NumPy has no bfloat16.
TYPES = {"F": "f", "I": "i", "U": "u"}


def _decoded(shape: list[int], dtype: str, data: bytes) -> NDArray[Any]:
    if dtype == "BOOL":
        return np.frombuffer(data, np.bool_).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype[0] not in TYPES or dtype[1:] not in ("8", "16", "32", "64") or dtype == "F8":
        raise ValueError(f"it holds elements of type {dtype}")
    return np.frombuffer(data, f"<{TYPES[dtype[0]]}{int(dtype[1:]) // 8}").reshape(shape)


def read_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """One array of a file; without a key, the only one."""
    arrays = read_arrays(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key is None or key not in arrays:
        raise InputError(f"{path} holds {', '.join(map(repr, sorted(arrays)))}: key must be one of them, not {key!r}")
    return arrays[key]
