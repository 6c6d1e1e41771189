"""What a view is of: one layer's whole result, constants alone, something that is reported already."""

from typing import TypeVar

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.node import Floats, Indices, Node, View, float32
from patchloom.compiler.nodes import Constant, Input, Matmul, Moe
from patchloom.compiler.nodes.captured import Opaque

T = TypeVar("T", bound=Node)


def producer(view: View, kind: type[T]) -> T | None:
    """The operation of that kind whose whole result the view is."""
    return view.base if isinstance(view.base, kind) and view.is_whole() else None


def layer(view: View) -> Matmul | Moe | None:
    return producer(view, Matmul) or producer(view, Moe)


def clips(layer: Matmul | Moe) -> bool:
    """Its last step is to saturate at its activation's limit: what is added to it must be added behind it."""
    return isinstance(layer, Matmul) and ACTIVATIONS[layer.activation].limit is not None


def constant(view: View) -> Floats | None:
    """The value of a view of nothing but constants."""
    if not all(isinstance(base, Constant) for base, _ in view.terms):
        return None
    flat = [base.value.reshape(-1) * factor for base, factor in view.terms if isinstance(base, Constant)]
    return float32(np.concatenate([*flat, [0]])[view.index])


def value_of(view: View) -> Floats:
    value = constant(view)
    assert value is not None
    return value


def fixed_part(view: View) -> Floats | None:
    if not any(isinstance(base, Constant) for base, _ in view.terms):
        return None
    flat = [
        base.value.reshape(-1) * factor if isinstance(base, Constant) else np.zeros(base.size)
        for base, factor in view.terms
    ]
    return float32(np.concatenate([*flat, [0]])[view.index])


def is_opaque(view: View) -> bool:
    """Depends on what is reported already."""
    return any(isinstance(base, Opaque) for base, _ in view.terms)


def grid(view: View) -> Indices | None:
    """Which element of the view is where in the rows and columns of the operation, if it is each of them once.

    Some may have another factor.
    """
    base, *others = (base for base, _ in view.terms)
    if any(other is not base for other in others) or isinstance(base, Input | Constant) or len(base.shape) != 2:
        return None
    index = np.where(view.index < 0, -1, view.index % base.size)
    order = np.argsort(index, axis=None, kind="stable")
    rows, columns = np.divmod(index.reshape(-1)[order], base.shape[1])
    height = len(np.unique(rows))
    if rows[0] < 0 or order.size % height:
        return None
    rows, columns = rows.reshape(height, -1), columns.reshape(height, -1)
    regular = (rows == rows[:, :1]).all() and (columns == columns[:1]).all() and (np.diff(columns[0]) > 0).all()
    return order.reshape(height, -1) if regular else None
