"""What operations written one by one compute together, tried on numbers.

However users write an activation or a norm, it is a function of some operation's result. The operations between are
run on probes, and their result is compared with what the machine can compute.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.activations import ACTIVATIONS, tried
from patchloom.compiler.node import Indices, Node, View
from patchloom.compiler.nodes import Constant, Matmul
from patchloom.compiler.nodes.captured import Activate, Add, Function, Multiply, Scale

Probes = NDArray[np.float64]  # probes x elements
Look = Callable[[View], Probes]

FARTHEST = 32  # operations that a function is looked for in


def _per_token(node: Matmul, look: Look) -> Probes:
    x = look(node.x).reshape(-1, *node.x.shape)
    result: Probes = (x @ node.weight.T.astype(np.float64) + node.bias).reshape(len(x), -1)
    return result


FORMULAS: dict[type[Node], Callable[[Any, Look], Probes]] = {
    Add: lambda node, look: look(node.a) + look(node.b),
    Multiply: lambda node, look: look(node.a) * look(node.b),
    Scale: lambda node, look: look(node.x) * node.factor.reshape(-1),
    Function: lambda node, look: tried(node.apply, look(node.x)),
    Activate: lambda node, look: ACTIVATIONS[node.activation](look(node.x)),
    Matmul: _per_token,
}


def is_tried(node: Node) -> bool:
    """Whether it is a function of single elements, or means of a token's: each feature counts for one of them."""
    if isinstance(node, Matmul):
        linear = node.activation == "none" and node.second is None and node.epsilon is None
        return linear and bool((np.count_nonzero(node.weight, axis=0) == 1).all()) and node.shape[1] < node.x.shape[1]
    return type(node) in FORMULAS


def sources(top: Node) -> Iterator[Node]:
    """Operations whose result the top may be a function of, the nearest first."""
    found: dict[Node, None] = {}
    pending = [top]
    while pending and len(found) < FARTHEST:
        node = pending.pop(0)
        for base in node.inputs:
            found.pop(base, None)  # the last to be reached is the farthest
            found[base] = None
        pending += [base for base in node.inputs if is_tried(base)]
    yield from (node for node in found if not isinstance(node, Constant))


def depends_alone(top: Node, source: Node) -> bool:
    """On nothing but the source."""
    known: dict[Node, bool] = {source: True}

    def alone(node: Node) -> bool:
        if node not in known:
            known[node] = isinstance(node, Constant) or (is_tried(node) and all(map(alone, node.inputs)))
        return known[node]

    return alone(top)


def run(top: Node, source: Node, probes: Probes) -> Probes:
    """What the top, which depends on the source alone, is of these results of it."""
    known: dict[Node, Probes] = {source: probes}

    def value(node: Node) -> Probes:
        if isinstance(node, Constant):
            return np.broadcast_to(node.value.reshape(-1).astype(np.float64), (len(probes), node.size))
        if node not in known:
            known[node] = FORMULAS[type(node)](node, look).reshape(len(probes), -1)
        return known[node]

    def look(view: View) -> Probes:
        parts = [value(base) * factor for base, factor in view.terms]
        flat = np.concatenate([*parts, np.zeros((len(probes), 1))], axis=1)
        return flat[:, view.index.reshape(-1)]

    with np.errstate(all="ignore"):
        return value(top)


def places(top: Node, source: Node) -> Indices | None:
    """Which of the source's elements stands where, on some way from there that changes elements one by one."""
    for view in top.views:
        if view.base is source:
            return view.index.reshape(top.shape)
        if view.base is not None and is_tried(view.base) and not isinstance(view.base, Matmul):
            inner = places(view.base, source)
            if inner is not None and (view.index >= 0).all():
                return inner.reshape(-1)[view.index].reshape(top.shape)
    return None
