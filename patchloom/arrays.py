"""Arrays from .npy, .npz and .safetensors files; nothing is ever unpickled."""

import sys
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from patchloom.compiler.machine.errors import Error

Arrays = dict[str, NDArray[Any]]
Samples = dict[str, NDArray[np.floating[Any]]]
# What readers of damaged files raise; NumPy parses headers as Python.
UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError,
    NotImplementedError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error, SafetensorError,
)  # fmt: skip
SUFFIXES = (".npy", ".npz", ".safetensors")


class InputError(Error, ValueError):
    """Data that a model or Program cannot take; the message names it, the rule and the value."""


def read_arrays(path: Path) -> Arrays:
    """Every array of a file by name; the one of an .npy file is named ''."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must be a file that ends in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            parts: Any = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
            return {name: _decoded(**stored) for name, stored in parts}
        if path.suffix == ".npy":
            return {"": np.array(np.load(path, mmap_mode="r", allow_pickle=False))}  # mapped: it cannot claim more
        with np.load(path, allow_pickle=False) as loaded:
            return dict(loaded)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path} cannot be read: {reason}") from error


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


def _from_torch(tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def is_tensor(value: Any) -> bool:
    """Whether it is torch's, which need not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def read_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """One array of a file; without a key, the only one."""
    arrays = read_arrays(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key is None or key not in arrays:
        raise InputError(f"{path} holds {', '.join(map(repr, sorted(arrays)))}: key must be one of them, not {key!r}")
    return arrays[key]


def as_floats(name: str, value: Any) -> NDArray[np.floating[Any]]:
    """A tensor or array of numbers as finite floats."""
    array = _from_torch(value) if is_tensor(value) else np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold numbers, not {array.dtype}")
    floats: NDArray[np.floating[Any]] = array if array.dtype.kind == "f" else array.astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(floats))
    if bad:
        raise InputError(f"{name} must be finite, {bad} of its {floats.size} values are NaN or infinite")
    return floats


def by_name(what: str, value: Any, names: list[str]) -> dict[str, Any]:
    """One value per input, given as a dictionary, as a tuple in the inputs' order, or alone."""
    if isinstance(value, dict):
        if set(value) != set(names):
            raise InputError(f"{what} must be given for {_listed(names)}, not for {_listed(value)}")
        return {name: value[name] for name in names}
    values = list(value) if isinstance(value, tuple) else [value]
    if len(values) != len(names):
        raise InputError(f"{what} must be given for {_listed(names)}, not {len(values)} of them")
    return dict(zip(names, values, strict=True))


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no input"
