"""Experts as the machine has them, `w2 @ activation(w1 @ x + b1) + b2`, all of one shape, from what is linear in what.

Exact: low-rank updates are merged, sums of several layers lie side by side, unequal widths are filled with zeros, and
what has no activation is the difference of two halves, as gelu(x) - gelu(-x) = relu(x) - relu(-x) = x.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from patchloom.compiler.frontend.functions import Affine, Doubles, Function, Linearity
from patchloom.compiler.frontend.trace import Computed
from patchloom.compiler.node import float32
from patchloom.compiler.nodes import Expert
from patchloom.compiler.nodes.captured import Activate
from patchloom.compiler.problems import UnsupportedError

ODD = ("gelu", "relu")  # f(x) - f(-x) = x
FORM = "an expert must be two linear layers with a supported activation between them, and may add what is linear"


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Layers:
    """An expert in parts: hidden layers, each with its weights behind, and what is linear in its operands."""

    hidden: list[tuple[str, Affine, Doubles]] = field(default_factory=list)
    linear: dict[Function, Doubles] = field(default_factory=dict)
    constant: Doubles | float = 0.0


def experts_of(affine: Sequence[Affine], linearity: Linearity) -> tuple[tuple[Expert, ...], str, tuple[Function, ...]]:
    """The experts, their activation, and what they read."""
    layers = [_told(number, _layers, each, linearity) for number, each in enumerate(affine)]
    names = {name: number for number, expert in reversed([*enumerate(layers)]) for name, _, _ in expert.hidden}
    if len(names) > 1:
        told = " and ".join(f"expert {number} has {name}" for name, number in sorted(names.items(), key=lambda n: n[1]))
        raise UnsupportedError(f"{told}, but all experts must have the same activation", FORM)
    name = next(iter(names), "none")
    bases = _operands(layers)
    made = [_told(number, _matrices, expert, name, bases) for number, expert in enumerate(layers)]
    width = max(1, *(len(w1) for w1, _, _, _ in made))
    return tuple(_padded(width, *parts) for parts in made), name, bases


def _told(number: int, make: Callable[..., T], *args: Any) -> T:
    try:
        return make(*args)
    except UnsupportedError as refusal:
        raise UnsupportedError(f"expert {number} {refusal.text}", refusal.hint) from refusal


def _layers(expert: Affine, linearity: Linearity) -> Layers:
    layers = Layers(constant=expert.constant)
    for base, matrix in expert.parts.items():
        if not np.abs(matrix).max(initial=0.0):
            continue
        if base.kind == "activate" and isinstance(base.node, Activate):
            inner = linearity.of_row(base.rows[0], base.width)
            for under in inner.parts:
                readable(under)
            layers.hidden.append((base.node.activation, inner, matrix))
        else:
            readable(base)
            layers.linear[base] = matrix
    return layers


def readable(base: Function) -> None:
    """Raises what is known of operations that have no meaning here."""
    if isinstance(base.node, Computed):
        raise UnsupportedError(f"computes {base.node.origin}, which {base.node.refusal.text}", base.node.refusal.hint)
    if base.kind == "product":
        raise UnsupportedError("multiplies two results that depend on the input", FORM)
    if base.kind == "softmax":
        raise UnsupportedError("has a softmax", FORM)
    for row in base.rows:
        for slot in row:
            readable(slot.function)


def has_layer(base: Function) -> bool:
    return base.kind == "matmul" or any(has_layer(slot.function) for row in base.rows for slot in row)


def weighs_inside(function: Function) -> bool:
    """Something is multiplied by scores before its last layer."""
    return any(slot.scores or weighs_inside(slot.function) for row in function.rows for slot in row)


def _operands(layers: Sequence[Layers]) -> tuple[Function, ...]:
    """What the experts read: the same of all."""
    found: dict[Function, int] = {}
    for number, expert in enumerate(layers):
        for base in [base for _, inner, _ in expert.hidden for base in inner.parts] + list(expert.linear):
            found.setdefault(base, number)
    own = [number for base, number in found.items() if has_layer(base) and len(found) > 1]
    if own:
        raise UnsupportedError(f"expert {own[0]} has more than two layers", FORM)
    return tuple(found)


def _matrices(expert: Layers, name: str, bases: tuple[Function, ...]) -> tuple[Doubles, ...]:
    """w1, b1, w2, b2."""
    inputs = sum(base.width for base in bases)
    ups = [(_joined(inner.parts, bases), inner.constant, down) for _, inner, down in expert.hidden]
    if expert.linear:
        matrix = _joined(expert.linear, bases)
        outputs = len(matrix)
        narrow = inputs <= outputs
        up, down = (np.eye(inputs), matrix) if narrow else (matrix, np.eye(outputs))
        ups.append((up, np.zeros(len(up)), down))
        if name in ODD:
            ups.append((-up, np.zeros(len(up)), -down))
        elif name != "none":
            raise UnsupportedError(f"has no activation where others have {name}, which has none inside", FORM)
    constant = np.asarray(expert.constant)
    if not ups:
        return np.zeros((0, inputs)), np.zeros(0), np.zeros((len(constant), 0)), constant
    w1, b1, w2 = (np.concatenate(parts, axis) for parts, axis in zip(zip(*ups, strict=True), (0, 0, 1), strict=True))
    return w1, b1, w2, constant


def _joined(parts: dict[Function, Doubles], bases: tuple[Function, ...]) -> Doubles:
    height = len(next(iter(parts.values())))
    return np.concatenate([parts.get(base, np.zeros((height, base.width))) for base in bases], axis=1)


def _padded(width: int, w1: Doubles, b1: Doubles, w2: Doubles, b2: Doubles) -> Expert:
    more = width - len(w1)
    rows, columns = ((0, more), (0, 0)), ((0, 0), (0, more))
    return Expert(float32(np.pad(w1, rows)), float32(np.pad(b1, (0, more))), float32(np.pad(w2, columns)), float32(b2))
