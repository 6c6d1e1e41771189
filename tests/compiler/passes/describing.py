"""Operations and views as text, and what they compute: the forms in which a pass is tested."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS, tried
from patchloom.compiler.node import Node, View
from patchloom.compiler.nodes import (
    Attention,
    Constant,
    Expert,
    Input,
    Map,
    Matmul,
    Maximum,
    Mix,
    Moe,
    Products,
    Shares,
    Tabulated,
)
from patchloom.compiler.nodes.captured import Activate, Add, Function, Multiply, Normalise, Product, Scale, Softmax
from patchloom.compiler.passes.engine import in_order

# --- Text ---


def describe(results: Mapping[str, View]) -> str:
    """One line per operation, then one per result."""
    numbers = {base: f"%{i}" for i, base in enumerate(in_order(results.values()))}

    def line(base: Node) -> str:
        parts = [
            f"{part.name} {_value(getattr(base, part.name), numbers)}"
            for part in fields(base)
            if part.name not in ("origin", "index", "apply") and getattr(base, part.name) is not part.default
        ]
        head = f"{numbers[base]} = {type(base).__name__.lower()} '{base.origin.name}' {_sizes(base.shape)}"
        return ", ".join([head, *parts])

    lines = [*(line(base) for base in numbers), *(f"{name}: {_view(view, numbers)}" for name, view in results.items())]
    return "".join(f"{text}\n" for text in lines)


def _value(value: Any, numbers: Mapping[Node, str]) -> str:
    if isinstance(value, View):
        return _view(value, numbers)
    if isinstance(value, Expert):
        return f"({', '.join(f'{part.name} {_numbers(getattr(value, part.name))}' for part in fields(value))})"
    if isinstance(value, tuple):
        return f"({', '.join(_value(part, numbers) for part in value)})"
    return _numbers(value) if isinstance(value, np.ndarray) else str(value)


def _view(view: View, numbers: Mapping[Node, str]) -> str:
    """`2*%0`, and of which shape and from which elements where it is not the operation's whole result."""
    terms = " ++ ".join(f"{factor:g}*" * (factor != 1) + numbers[base] for base, factor in view.terms)
    whole = view.base is not None and view.scaled(1 / view.terms[0][1]).is_whole()
    return terms if whole else f"{terms} as {_sizes(view.shape)} of {' '.join(_runs(view.index.reshape(-1)))}"


def _runs(index: np.ndarray[Any, Any]) -> Iterable[str]:
    """first:end of each run of consecutive elements; -1 alone."""
    cuts = np.flatnonzero((np.diff(index) != 1) | (index[:-1] < 0)) + 1
    for run in np.split(index, cuts):
        yield f"{run[0]}:{run[-1] + 1}" if len(run) > 1 else str(run[0])


def _numbers(array: np.ndarray[Any, Any]) -> str:
    if array.ndim == 1:
        return f"[{' '.join(f'{value + 0:g}' for value in array)}]"
    return f"[{' '.join(_numbers(row) for row in array)}]"


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


# --- Meaning ---


def meaning(results: Mapping[str, View], inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """What the results are for these inputs, in float64."""
    values: dict[Node, np.ndarray[Any, Any]] = {}

    def look(view: View) -> np.ndarray[Any, Any]:
        flat = [values[base].reshape(-1) * factor for base, factor in view.terms]
        return np.concatenate([*flat, [0.0]])[view.index]

    for base in in_order(results.values()):
        values[base] = (
            inputs[base.name].reshape(base.shape) if isinstance(base, Input) else MEANING[type(base)](base, look)
        )
    return {name: look(view) for name, view in results.items()}


Look = Callable[[View], np.ndarray[Any, Any]]


def _normal(x: np.ndarray[Any, Any], epsilon: float | None, *, centred: bool = True) -> np.ndarray[Any, Any]:
    if epsilon is None:
        return x
    distance = x - x.mean(-1, keepdims=True) if centred else x
    return distance / np.sqrt(np.square(distance).mean(-1, keepdims=True) + epsilon)


def _normalise(base: Normalise, look: Look) -> np.ndarray[Any, Any]:
    normal = _normal(look(base.x), base.epsilon, centred=base.centred)
    return normal * base.gamma + base.beta


def _softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _linear(base: Matmul, look: Look) -> np.ndarray[Any, Any]:
    sums = _normal(look(base.x), base.epsilon, centred=base.centred) @ base.weight.T.astype(np.float64) + base.bias
    result = ACTIVATIONS[base.activation](sums)
    if base.factor is not None:
        return result * look(base.factor)
    return result + (0 if base.residual is None else look(base.residual))


def _mixture(base: Moe, look: Look) -> np.ndarray[Any, Any]:
    """Of all experts: `top_k` is their number here."""
    assert base.top_k == len(base.experts)
    x = _normal(look(base.x), base.epsilon, centred=base.centred)
    scores = _softmax(x @ base.gate_weight.T + base.gate_bias)
    hidden = [ACTIVATIONS[base.activation](x @ e.w1.T + e.b1) @ e.w2.T + e.b2 for e in base.experts]
    mixed = sum(scores[:, [i]] * part for i, part in enumerate(hidden))
    return mixed + (0 if base.residual is None else look(base.residual))


def _attend(base: Attention, look: Look) -> np.ndarray[Any, Any]:
    scores = look(base.q) @ look(base.k).transpose(0, 2, 1) * base.scale + (0 if base.bias is None else base.bias)
    heads = (_softmax(scores) @ look(base.v)).reshape(base.windows, base.across, base.queries, base.value_dim)
    return heads.transpose(0, 2, 1, 3).reshape(base.shape)


def _mix(base: Mix, look: Look) -> np.ndarray[Any, Any]:
    result = np.full(base.shape, np.nan)
    for view, matrix, (row, column) in zip(base.x, base.matrices, base.places, strict=True):
        part = matrix @ look(view)
        result[row : row + len(part), column : column + part.shape[1]] = part
    return result


def _in_map(base: Map, look: Look) -> np.ndarray[Any, Any]:
    top, bottom, left, right = base.edges
    tokens = look(base.x).reshape(-1, base.width, base.shape[1])
    edge = -1e9 if base.lowest else 0.0
    padded = np.pad(tokens, ((top, bottom), (left, right), (0, 0)), constant_values=edge)
    return np.asarray(padded).reshape(base.shape)


def _largest(base: Maximum, look: Look) -> np.ndarray[Any, Any]:
    """Of what is there: an edge has nothing."""
    there = [np.where(view.index < 0, -np.inf, look(view)) for view in base.x]
    return np.asarray(np.maximum.reduce(there))


def _by_head(base: Products | Shares, heads: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    count, rows, columns = base.rectangles
    parts = heads.reshape(base.windows, count // base.windows, rows, columns)
    return parts.transpose(0, 2, 1, 3).reshape(base.shape)


MEANING: dict[type[Node], Callable[[Any, Look], np.ndarray[Any, Any]]] = {
    Constant: lambda base, _: base.value,
    Map: _in_map,
    Matmul: _linear,
    Maximum: _largest,
    Mix: _mix,
    Moe: _mixture,
    Normalise: _normalise,
    Function: lambda base, look: tried(base.apply, look(base.x)),
    Multiply: lambda base, look: look(base.a) * look(base.b),
    Activate: lambda base, look: ACTIVATIONS[base.activation](look(base.x)),
    Scale: lambda base, look: look(base.x) * base.factor,
    Add: lambda base, look: look(base.a) + look(base.b),
    Product: lambda base, look: look(base.a) @ look(base.b),
    Softmax: lambda base, look: _softmax(look(base.x)),
    Attention: _attend,
    Tabulated: lambda base, look: tried(base.apply, look(base.x)),
    Products: lambda base, look: _by_head(base, look(base.a) @ look(base.b) * base.scale),
    Shares: lambda base, look: _by_head(base, _softmax(look(base.x) * base.scale)),
}
