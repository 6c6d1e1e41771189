"""Added constants, e.g. positions, join the layer before: its bias when alike for all tokens, else its residual.

A norm takes in what is alike for all tokens. With the scales; again before the tokens, so that a class token can join
what is one layer by now; and with them, for positions that are added to joined tokens.
"""

from dataclasses import replace
from typing import TypeVar

from patchloom.compiler.node import Floats, Node, View, float32, whole
from patchloom.compiler.nodes import Constant, Matmul, Moe
from patchloom.compiler.nodes.captured import Add, Normalise
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.views import clips, constant, layer, producer, value_of

Layer = TypeVar("Layer", bound=Matmul | Moe)


def fuse_constant(node: Add, at: Run) -> Node | View | None:
    """Constants join the residual of the layer before, or its bias when alike for all tokens."""
    for view, other in ((node.a, node.b), (node.b, node.a)):
        value = constant(other)
        if value is None or view.base is None:
            continue
        norm = producer(view, Normalise)
        if norm and at.only_here(norm) and (value == value[0]).all():
            return replace(norm, beta=norm.beta + value[0])
        before = layer(view)
        if before is None or clips(before) or not at.only_here(before) or not is_fixed(before.residual):
            continue
        alike = before.residual is None and bool((value == value[0]).all())
        if alike and isinstance(before, Matmul) and before.activation == "none":
            return replace(before, bias=before.bias + value[0])
        return plus(before, value, node)
    return None


def is_fixed(view: View | None) -> bool:
    return view is None or constant(view) is not None


def plus(before: Layer, value: Floats, node: Node) -> Layer:
    total = value if before.residual is None else float32(value + value_of(before.residual))
    return replace(before, residual=whole(Constant(origin=node.origin, value=total)))


PASS = Pass("constants", {Add: fuse_constant})
